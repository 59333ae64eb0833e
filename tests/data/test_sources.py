"""Reading .h5ad files, checking counts, finding genes; and the message for each thing that is wrong."""

from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray.data import gene_ids
from cellray.data.checks import check_block, sum_duplicates
from cellray.data.plan import describe_source
from cellray.data.sources.contract import open_source, require_obs
from cellray.data.tokenization import TokenizeConfig
from cellray.errors import InputError
from cellray.rank_value import UNKNOWN_GENE
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES, random_counts
from tests.data.test_formats import read_rows

Make = Callable[..., Path]


def describe(path: Path, vocabulary: GeneVocabulary, **options: object) -> None:
    config = TokenizeConfig(source=(str(path),), vocabulary="v", output="o", **options)  # type: ignore[arg-type]
    describe_source(str(path), config, vocabulary)


def test_row_ranges_are_those_of_anndata(make_h5ad: Make) -> None:
    path = make_h5ad(cells=50)
    whole = anndata.read_h5ad(path).X.toarray()
    with open_source(str(path)) as source:
        assert (source.n_cells, source.n_columns) == whole.shape
        for start, stop in ((0, 50), (7, 19), (49, 50), (3, 3)):
            assert np.array_equal(read_rows(source, start, stop), whole[start:stop])
        assert source.cell_names(2, 4).to_pylist() == ["cell2", "cell3"]


def test_obs_columns_of_every_kind(make_h5ad: Make) -> None:
    obs = {
        "category": pd.Categorical(["a", None, "b"]),
        "text": ["x", "y", "z"],
        "whole": np.array([1, 2, 3], np.int32),
        "nullable": pd.array([1, None, 3], dtype="Int64"),
        "real": [0.5, np.nan, 2.0],
        "flag": [True, False, True],
        "numbered": pd.Categorical([10, 20, 10]),
    }
    path = make_h5ad(x=random_counts(3, 40), obs=obs)
    with open_source(str(path)) as source:
        kinds = source.obs_kinds()
        assert kinds == {
            "category": "text",
            "text": "text",
            "whole": "integer",
            "nullable": "integer",
            "real": "real",
            "flag": "flag",
            "numbered": "integer",
        }
        assert {name: source.obs(name, 0, 3).to_pylist() for name in kinds} == {
            "category": ["a", None, "b"],
            "text": ["x", "y", "z"],
            "whole": [1, 2, 3],
            "nullable": [1, None, 3],
            "real": [0.5, None, 2.0],
            "flag": [True, False, True],
            "numbered": [10, 20, 10],
        }
        assert source.obs("category", 1, 3).to_pylist() == [None, "b"]


def test_layers_and_raw(make_h5ad: Make) -> None:
    counts = random_counts(4, 40)
    path = make_h5ad(x=counts.copy() / 3, layers={"counts": counts})
    adata = anndata.read_h5ad(path)
    adata.raw = anndata.AnnData(counts * 2, var=adata.var)
    adata.write_h5ad(path)
    for matrix, factor in (("layers/counts", 1), ("raw", 2)):
        with open_source(str(path), matrix) as source:
            assert source.matrices() == ["X", "raw", "layers/counts"]
            assert read_rows(source, 0, 4).sum() == counts.sum() * factor
            assert len(source.var()) == 40


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda x: x.multiply(0.37), r"(\d+) fractional of \1 values.*log-normalised"),
        (lambda x: x * 33.3, r"\d+ fractional of.*looks normalised"),
        (lambda x: -x, r"(\d+) negative of \1 values.*looks scaled"),
        (lambda x: x * np.nan, r"(\d+) NaN or infinite of \1 values"),
        (lambda x: x * np.inf, r"(\d+) NaN or infinite of \1 values"),
    ],
)
def test_what_is_no_raw_count_is_refused(
    make_h5ad: Make, vocabulary: GeneVocabulary, spoil: Callable[[sparse.csr_matrix], sparse.csr_matrix], found: str
) -> None:
    counts = random_counts(9, 40)
    path = make_h5ad(x=sparse.csr_matrix(spoil(counts)), layers={"counts": counts})
    with pytest.raises(
        InputError, match=rf"cells\.h5ad: X must hold raw counts.*{found}.*--matrix \('layers/counts'\)"
    ):
        describe(path, vocabulary)
    describe(path, vocabulary, matrix="layers/counts")


def test_categories_as_old_files_store_them(make_h5ad: Make) -> None:
    path = make_h5ad(x=random_counts(3, 40), obs={"kind": ["x", "y", "z"]})
    with h5py.File(path, "r+") as file:
        del file["obs/kind"]
        file["obs/__categories/kind"] = np.array(["a", "b"], "S")
        file["obs/kind"] = np.array([1, 0, -1], np.int8)
        file["obs/kind"].attrs["categories"] = file["obs/__categories/kind"].ref
    with open_source(str(path)) as source:
        assert source.obs_kinds() == {"kind": "text"}
        assert source.obs("kind", 0, 3).to_pylist() == ["b", "a", None]


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">i4", "u8", "?", "i1"])
def test_counts_of_any_number_type(make_h5ad: Make, vocabulary: GeneVocabulary, dtype: str) -> None:
    counts = random_counts(5, 40)
    counts.data = np.minimum(counts.data, 1)
    path = make_h5ad(x=counts)
    with h5py.File(path, "r+") as file:
        for name, kind in (("data", dtype), ("indices", ">i8" if dtype == "u8" else "i8")):
            values = file[f"X/{name}"][:]
            del file[f"X/{name}"]
            file[f"X/{name}"] = values.astype(kind)
    describe(path, vocabulary)
    with open_source(str(path)) as source:
        assert np.array_equal(read_rows(source, 0, 5), counts.toarray())


def _short_obs(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        names = file["obs/_index"][:-1]
        del file["obs/_index"]
        file["obs/_index"] = names


def _huge_indptr(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["X/indptr"]
        file.create_dataset("X/indptr", (1 << 40,), "i8", chunks=(1 << 16,))


def _text_counts(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        size = len(file["X/data"])
        del file["X/data"]
        file["X/data"] = np.array(["x"] * size, "S")


def _no_index(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["obs"].attrs["_index"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bad_indices(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["X/indices"][5] = 4000


def _negative_indices(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["X/indices"][5] = -1


def _bad_indptr(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["X/indptr"][3] = 10**6


def _no_obs(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["obs"]


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda path: path.write_bytes(b""), "must hold data; found an empty file"),
        (lambda path: path.write_bytes(b"a,b\n1,2\n" * 99), "must be a whole HDF5 file; found another kind of file"),
        (_truncate, r"must be a whole HDF5 file; found [\d,]+ of [\d,]+ bytes: the end is missing"),
        (_bad_indices, r"column indices of X must lie in 0\.\.39; found 0\.\.4000"),
        (_negative_indices, r"column indices of X must lie in 0\.\.39; found -1"),
        (_bad_indptr, "the pointers of X must rise"),
        (_no_obs, "holds obs and var"),
        (_short_obs, "obs must have a row for each cell; found 49 for 50"),
        (_huge_indptr, "may not claim much more than its file holds"),
        (_text_counts, "cells 0-50 must be readable; found values of type"),
        (_no_index, "must be a whole AnnData file"),
        (Path.unlink, "must exist and be readable; found no such file"),
    ],
)
def test_damaged_files(
    make_h5ad: Make, vocabulary: GeneVocabulary, damage: Callable[[Path], object], rule: str
) -> None:
    path = make_h5ad()
    damage(path)
    with pytest.raises(InputError, match=rf"cells\.h5ad.*{rule}"):
        describe(path, vocabulary)


def test_only_known_formats_and_matrices(make_h5ad: Make, vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("a")
    with pytest.raises(InputError, match=r"ends in one of '\.h5', '\.h5ad', '\.loom'"):
        describe(tmp_path / "cells.csv", vocabulary)
    with pytest.raises(InputError, match="must hold 'layers/counts'; found 'X'"):
        describe(make_h5ad(), vocabulary, matrix="layers/counts")


def test_missing_obs_columns_are_named(make_h5ad: Make, vocabulary: GeneVocabulary) -> None:
    with pytest.raises(InputError, match=r"no 'donor', 'tissue'; the file has 'kind'.*--missing-obs null"):
        describe(make_h5ad(), vocabulary, obs_columns=("donor", "kind", "tissue"))
    with pytest.raises(InputError, match="may not bear a name of the corpus; found 'length'"):
        describe(make_h5ad(x=random_counts(2, 40), obs={"length": [1, 2]}), vocabulary, obs_columns=("length",))
    with open_source(str(make_h5ad())) as source:
        assert require_obs(source, ["kind"]) == {"kind": "text"}


def mapping(names: list[str], vocabulary: GeneVocabulary) -> gene_ids.ColumnMapping:
    return gene_ids.map_columns(names, "var index", vocabulary, "file")


def test_names_become_tokens(vocabulary: GeneVocabulary) -> None:
    named = GeneVocabulary(
        vocabulary.special_tokens,
        vocabulary.genes,
        vocabulary.medians,
        16,
        symbols={"TP53": GENES[1]},
        retired_ids={"ENSG00000099999": GENES[2]},
    )
    names = [GENES[0].lower() + ".12", "TP53", "ENSG00000099999", "tp53", "", GENES[35], GENES[0]]
    result = mapping(names, named)
    assert result.genes.token_g.tolist() == [2, 3, 4, UNKNOWN_GENE, UNKNOWN_GENE, UNKNOWN_GENE, 2]
    assert result.genes.median_g[:3].tolist() == [0.5, 1.0, 1.5]
    assert result.repeated
    report = result.report
    assert (report.columns, report.known, report.summed, report.without_median, report.unknown) == (7, 3, 1, 0, 3)


def test_a_gene_without_a_median_is_told_apart(vocabulary: GeneVocabulary) -> None:
    medians = {gene: median for gene, median in vocabulary.medians.items() if gene != GENES[0]}
    partial = GeneVocabulary(vocabulary.special_tokens, vocabulary.genes, medians, 16)
    assert mapping(GENES[:2], partial).report.without_median == 1


def test_few_known_genes_are_worth_a_warning(vocabulary: GeneVocabulary) -> None:
    strange = [f"Gene{i}" for i in range(90)]
    assert gene_ids.few_genes_warning(mapping(GENES[:30] + strange[:60], vocabulary).report) == ()
    (warning,) = gene_ids.few_genes_warning(mapping(GENES[:10] + strange, vocabulary).report)
    assert warning.startswith("only 10 of 100 columns are genes of the vocabulary")


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        ([f"ENSMUSG{i:011d}" for i in range(5)], "another species"),
        (["Gapdh", "Actb"], "no table of symbols"),
        (["ENSG00000099998"], "--gene-ids"),
        ([f"Gene{i}" for i in range(99)] + [GENES[0]], "found 1 of 100.*check the species"),
    ],
)
def test_no_known_gene(names: list[str], fix: str, vocabulary: GeneVocabulary) -> None:
    with pytest.raises(InputError, match=f"at least 2% of the genes must be in the vocabulary.*{fix}"):
        mapping(names, vocabulary)


def test_gene_ids_come_from_the_column_asked_for(make_h5ad: Make) -> None:
    var = pd.DataFrame({"ensembl_id": GENES[:3], "other": ["x", "y", "z"]}, index=["a", "b", "c"])
    with open_source(str(make_h5ad(x=random_counts(4, 3), var=var))) as source:
        assert gene_ids.column_names(source, None) == (GENES[:3], "var column 'ensembl_id'")
        assert gene_ids.column_names(source, "index") == (["a", "b", "c"], "var index")
        assert gene_ids.column_names(source, "other") == (["x", "y", "z"], "var column 'other'")
        with pytest.raises(InputError, match="must have the column 'symbol'"):
            gene_ids.column_names(source, "symbol")


def test_columns_of_one_gene_are_summed(make_h5ad: Make) -> None:
    x = sparse.csr_matrix(np.array([[1, 2, 4, 8], [0, 3, 0, 5]], np.float32))
    with open_source(str(make_h5ad(x=x))) as source:
        block = sum_duplicates(next(source.blocks(0, 2, 9)), np.array([1, 0, 1, -1], np.int32), 2)
    assert block.columns.tolist() == [0, 1, 0]
    assert block.counts.tolist() == [2, 5, 3]


def test_an_unsorted_row_is_noticed(make_h5ad: Make) -> None:
    path = make_h5ad()
    with open_source(str(path)) as source:
        assert check_block(next(source.blocks(0, 50, 50)), source).canonical
    with h5py.File(path, "r+") as file:
        file["X/indices"][:2] = file["X/indices"][:2][::-1]
    with open_source(str(path)) as source:
        totals = check_block(next(source.blocks(0, 50, 50)), source)
        assert not totals.canonical
        assert np.array_equal(totals.n_counts, anndata.read_h5ad(path).X.toarray().sum(1))
