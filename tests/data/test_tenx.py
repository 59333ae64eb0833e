"""Cell Ranger's matrices: what is no gene, folders with prefixes, entries in any order, tables that do not fit."""

import gzip
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import sparse

from cellray import storage
from cellray.data.checks import check_block
from cellray.data.plan import describe_source
from cellray.data.sources import tenx_text
from cellray.data.sources.contract import open_source, stamp_of
from cellray.data.tokenization import TokenizeConfig
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES
from tests.data.test_formats import CELLS, COUNTS, read_rows, tenx_h5, tenx_mtx

KINDS = ["Gene Expression", "Antibody Capture"] * 20
"""Every second feature is an antibody."""


def h5_with_antibodies(folder: Path) -> Path:
    path = tenx_h5(folder)
    with h5py.File(path, "r+") as file:
        del file["matrix/features/feature_type"]
        file["matrix/features/feature_type"] = np.array(KINDS, "S")
    return path


def mtx_with_antibodies(folder: Path) -> Path:
    path = tenx_mtx(folder)
    with gzip.open(folder / "features.tsv.gz", "wt") as file:
        file.writelines(f"{gene}\tG{i}\t{KINDS[i]}\n" for i, gene in enumerate(GENES))
    return path


@pytest.mark.parametrize("write", [h5_with_antibodies, mtx_with_antibodies])
def test_what_is_no_gene_is_left_out_and_counted(
    write: Callable[[Path], Path], tmp_path: Path, vocabulary: GeneVocabulary
) -> None:
    path, genes = str(write(tmp_path)), COUNTS.toarray()[:, ::2]
    with open_source(path) as source:
        assert source.n_columns == 20
        assert source.left_out == {"Antibody Capture": 20}
        assert source.var()["ensembl_id"].tolist() == GENES[::2]
        assert np.array_equal(read_rows(source, 3, 31), genes[3:31])
        block = next(source.blocks(0, CELLS, CELLS))
        assert np.array_equal(check_block(block, source).n_counts, genes.sum(1))
    plan = describe_source(path, TokenizeConfig(source=(path,), vocabulary="v", output="o"), vocabulary)
    assert plan.warnings[0] == "20 features that are no genes are left out (20 'Antibody Capture')"


def test_a_file_without_genes_is_refused(tmp_path: Path) -> None:
    path = tenx_h5(tmp_path)
    with h5py.File(path, "r+") as file:
        file["matrix/features/feature_type"][:] = np.array(["Peaks"] * 40, "S")
    with pytest.raises(
        InputError, match=r"cells\.h5: some feature must be of type 'Gene Expression'; found types 'Peaks'"
    ):
        open_source(str(path))


def test_columns_out_of_range_are_refused_before_they_are_looked_up(tmp_path: Path) -> None:
    path = h5_with_antibodies(tmp_path)
    with h5py.File(path, "r+") as file:
        file["matrix/indices"][5] = 4000
    with pytest.raises(InputError, match=r"column indices of X must lie in 0\.\.39"), open_source(str(path)) as source:
        list(source.blocks(0, CELLS, 10))


def swapped(pointers: np.ndarray) -> np.ndarray:
    return pointers[[0, 4, 2, 3, 1, *range(5, len(pointers))]]


POINTERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "swapped": swapped,
    "far": lambda p: np.r_[p[:2], p[-1] * 10, p[3:]],
    "last too low": lambda p: np.r_[p[:-1], p[-1] - 1],
    "last too high": lambda p: np.r_[p[:-1], p[-1] + 9],
    "first not 0": lambda p: np.r_[1, p[1:]],
    "too few": lambda p: p[:-2],
    "overflowing": lambda p: np.r_[p[:1], 2**63 - 1, -(2**63) + 1, p[3:]],
    "fractional": lambda p: p.astype(float),
}


@pytest.mark.parametrize("kind", POINTERS)
def test_unsound_pointers_are_refused(tmp_path: Path, kind: str) -> None:
    path = tenx_h5(tmp_path)
    with h5py.File(path, "r+") as file:
        pointers = file["matrix/indptr"][:].astype(np.int64)
        del file["matrix/indptr"]
        file["matrix/indptr"] = POINTERS[kind](pointers)
    with pytest.raises(InputError, match=r"cells\.h5: .*pointer.* of X|cells\.h5: X must have one pointer"):
        open_source(str(path))


@pytest.mark.parametrize(("name", "kind"), [("indices", "f8"), ("data", "short"), ("indices", "short")])
def test_arrays_the_pointers_do_not_fit_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tenx_h5(tmp_path)
    with h5py.File(path, "r+") as file:
        values = file[f"matrix/{name}"][:]
        del file[f"matrix/{name}"]
        file[f"matrix/{name}"] = values[:-1] if kind == "short" else values.astype(kind)
    with pytest.raises(InputError, match=r"cells\.h5: .*pointers of X must"):
        open_source(str(path))


@pytest.mark.parametrize("table", ["barcodes", "features/id", "features"])
def test_tables_of_another_length_are_refused(tmp_path: Path, table: str) -> None:
    path = tenx_h5(tmp_path)
    with h5py.File(path, "r+") as file:
        for name in ("id", "name", "feature_type") if table == "features" else ("",):
            values = file[f"matrix/{table}/{name}"][:-1]
            del file[f"matrix/{table}/{name}"]
            file[f"matrix/{table}/{name}".rstrip("/")] = values
    with pytest.raises(InputError, match=r"cells\.h5: (barcodes and features must match|it must be a feature-barcode)"):
        open_source(str(path))


def test_any_table_of_a_folder_makes_another_version(tmp_path: Path) -> None:
    path = str(tenx_mtx(tmp_path))
    seen = {stamp_of(path).version}
    for name in ("features.tsv.gz", "barcodes.tsv.gz", "matrix.mtx.gz"):
        file = tmp_path / name
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), mtime=len(seen)))
        seen.add(stamp_of(path).version)
    assert len(seen) == 4
    assert stamp_of(path).size == sum(file.stat().st_size for file in tmp_path.iterdir())
    (tmp_path / "features.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"beside it must lie one of .*'features\.tsv', 'features\.tsv\.gz'"):
        stamp_of(path)


def test_other_formats_are_stamped_as_files(tmp_path: Path) -> None:
    path = str(tenx_h5(tmp_path))
    assert stamp_of(path) == storage.stamp(path)


@pytest.mark.parametrize("features", ["features.tsv.gz", "genes.tsv.gz"])
def test_prefixed_files_belong_together(tmp_path: Path, features: str) -> None:
    tenx_mtx(tmp_path)
    for name, new in (("matrix.mtx.gz",) * 2, ("barcodes.tsv.gz",) * 2, ("features.tsv.gz", features)):
        (tmp_path / name).rename(tmp_path / f"GSM1_{new}")
    (tmp_path / "GSM2_matrix.mtx.gz").write_bytes((tmp_path / "GSM1_matrix.mtx.gz").read_bytes())
    with open_source(str(tmp_path / "GSM1_matrix.mtx.gz")) as source:
        assert np.array_equal(read_rows(source, 0, CELLS), COUNTS.toarray())
        assert source.cell_names(0, 2).to_pylist() == ["cell0", "cell1"]
    with pytest.raises(InputError, match=r"GSM2_matrix\.mtx\.gz: beside it must lie one of 'GSM2_barcodes\.tsv'"):
        open_source(str(tmp_path / "GSM2_matrix.mtx.gz"))


def write_matrix(folder: Path, lines: list[str], declared: str) -> str:
    """Replace the matrix of a folder by hand-written text."""
    path = tenx_mtx(folder)
    text = "%%MatrixMarket matrix coordinate integer general\n% made by hand\n" + declared + "\n" + "\n".join(lines)
    path.write_bytes(gzip.compress(text.encode()))
    return str(path)


@pytest.mark.parametrize("order", ["by feature", "shuffled"])
def test_entries_may_stand_in_any_order(tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenx_text, "_LINES", 50)
    entries = sparse.coo_matrix(COUNTS)
    place = (
        np.lexsort((entries.row, entries.col))
        if order == "by feature"
        else np.random.default_rng(0).permutation(entries.nnz)
    )
    lines = [f"{entries.col[i] + 1} {entries.row[i] + 1} {entries.data[i]:g}" for i in place]
    path = write_matrix(tmp_path, lines, f"40 {CELLS} {len(lines)}")
    with open_source(path) as source:
        assert np.array_equal(read_rows(source, 0, CELLS), COUNTS.toarray())
        canonical = check_block(next(source.blocks(0, CELLS, CELLS)), source).canonical
        assert canonical == (order == "by feature")


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        (["1 1 1", "2 1 1"], "must be whole: 3 entries; found 2"),
        (["1 1 1"] * 4, "must be whole: 3 entries; found more"),
        ([], "must be whole: 3 entries; found 0"),
        (["1 1 1", "41 1 1", "1 1 1"], "a feature, a cell and a count; found 41 1 1 in a matrix of 40 x 37"),
        (["1 1 1", "1 38 1", "1 1 1"], "found 1 38 1"),
        (["1 1 1", "1 0 1", "1 1 1"], "found 1 0 1"),
        (["1 1 1", "1.5 1 1", "1 1 1"], r"found 1\.5 1 1"),
        (["1 1 1", "1 1", "1 1 1"], "found 1 1 nan"),
        (["1 1 1", "1 x 1", "1 1 1"], "the matrix must be readable"),
    ],
)
def test_entries_that_do_not_fit_are_refused(tmp_path: Path, lines: list[str], rule: str) -> None:
    path = write_matrix(tmp_path, lines, f"40 {CELLS} 3")
    with pytest.raises(InputError, match=rf"matrix\.mtx\.gz: .*{rule}"), open_source(path) as source:
        list(source.blocks(0, 1, 1))


def test_a_matrix_is_parsed_when_its_cells_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tenx_mtx(tmp_path))
    parsed = []
    parse = tenx_text.TextRows._parse
    monkeypatch.setattr(tenx_text.TextRows, "_parse", lambda rows: (parsed.append(1), parse(rows))[1])
    with open_source(path) as source:
        assert len(source.var()) == 40
        assert parsed == []
        list(source.blocks(0, 3, 1))
        list(source.blocks(3, CELLS, 5))
        assert parsed == [1]


@pytest.mark.parametrize(
    ("limit", "value", "rule"),
    [
        ("MAX_TABLE_BYTES", 100, "a table may have 100 bytes; found more"),
        ("_MAX_LINE", 20, "found a line of 20 or more"),
        ("MAX_TABLE_LINES", 39, "may have sides up to 39; found 40 x 37"),
        ("MAX_TEXT_VALUES", 100, "may hold 100 values"),
    ],
)
def test_bounds_of_text(tmp_path: Path, limit: str, value: int, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_matrix(tmp_path, [], f"40 {CELLS} 300")
    if limit == "_MAX_LINE":
        monkeypatch.setattr(tenx_text, "_header", lambda uri, stream: (40, CELLS, 300))
    monkeypatch.setattr(tenx_text, limit, value)
    with pytest.raises(InputError, match=rule):
        open_source(path)


@pytest.mark.parametrize("name", ["barcodes.tsv.gz", "features.tsv.gz"])
def test_a_table_with_another_line_is_refused(tmp_path: Path, name: str) -> None:
    path = tenx_mtx(tmp_path)
    with gzip.open(tmp_path / name, "at") as file:
        file.write("more\n")
    with pytest.raises(
        InputError, match=r"barcodes and features must match the matrix; found (38|37) barcodes and (40|41)"
    ):
        open_source(str(path))


def test_barcodes_are_read_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tenx_h5(tmp_path)
    read = h5py.Dataset.__getitem__
    sizes = []

    def watched(dataset: h5py.Dataset, key: object, **options: object) -> object:
        values = read(dataset, key, **options)
        if dataset.name.endswith("barcodes"):
            sizes.append(len(values))
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    with open_source(str(path)) as source:
        assert source.cell_names(4, 7).to_pylist() == ["cell4", "cell5", "cell6"]
    assert sizes == [3]


def test_tokens_follow_a_new_table_of_features(tmp_path: Path, vocabulary: GeneVocabulary) -> None:
    """The mapping kept in a worker process is that of the table that lies there now."""
    path = str(tenx_mtx(tmp_path))
    config = TokenizeConfig(source=(path,), vocabulary="v", output="o")
    assert describe_source(path, config, vocabulary).genes.known == 30
    with gzip.open(tmp_path / "features.tsv.gz", "wt") as file:
        file.writelines(f"{gene}\tG{i}\tGene Expression\n" for i, gene in enumerate(GENES[:12] + ["strange"] * 28))
    assert describe_source(path, config, vocabulary).genes.known == 12


def test_a_cut_matrix_is_refused(tmp_path: Path) -> None:
    path = tenx_mtx(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rule = r"matrix\.mtx\.gz: the .* must be (readable|whole)"
    with pytest.raises(InputError, match=rule), open_source(str(path)) as source:
        list(source.blocks(0, 1, 1))
