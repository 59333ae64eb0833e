"""Nonzero medians against numpy, exact and sketched, and the vocabulary built from them."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray.data.medians import measure
from cellray.data.medians import sources as median_sources
from cellray.data.medians.build import MedianConfig, build_vocabulary, describe_origin
from cellray.data.medians.gene_tables import GeneTables
from cellray.data.medians.measure import grouped_median
from cellray.data.medians.sketch import ACCURACY
from cellray.data.session import plain_errors
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES, random_counts

pytestmark = pytest.mark.usefixtures("ray_session")
Make = Callable[..., Path]


def test_grouped_median_by_eye() -> None:
    medians = grouped_median(np.array([1, 0, 1, 1, 3]), np.array([5.0, 2.0, 1.0, 3.0, 4.0]), 4)
    assert np.array_equal(medians, [2.0, 3.0, np.nan, 4.0], equal_nan=True)
    assert grouped_median(np.array([0, 0]), np.array([1.0, 2.0]), 1).tolist() == [1.5]


@pytest.mark.parametrize("exact", [True, False])
def test_medians_are_those_of_numpy_over_all_files(make_h5ad: Make, exact: bool) -> None:
    paths = [make_h5ad("a.h5ad", cells=60, seed=1), make_h5ad("b.h5ad", cells=33, seed=2)]
    config = MedianConfig(source=tuple(map(str, paths)), generation="v2", input_size=64, exact=exact)
    vocabulary = build_vocabulary(config)
    scaled = np.concatenate([x / x.sum(1, keepdims=True) for x in (anndata.read_h5ad(p).X.toarray() for p in paths)])
    scaled = scaled.astype(np.float64) * 10_000
    for i, gene in enumerate(GENES):
        wanted = np.median(scaled[scaled[:, i] > 0, i])
        assert vocabulary.medians[gene] == pytest.approx(wanted, rel=1e-6 if exact else ACCURACY)
    assert list(vocabulary.genes.values()) == list(range(4, 44))
    assert vocabulary.input_size == 64
    assert vocabulary.origin["largest_error"] == (0 if exact else ACCURACY)
    assert vocabulary.origin["values"] == np.count_nonzero(scaled)
    assert (vocabulary.origin["cells"], vocabulary.origin["files"]) == (93, 2)


def test_unseen_genes_get_no_token_and_filtered_cells_do_not_count(make_h5ad: Make) -> None:
    x = np.array([[2, 2, 0], [1, 3, 0], [0, 0, 9]], np.float32)
    obs = {"filter_pass": [True, True, False], "total": [4.0, 8.0, 9.0]}
    path = str(make_h5ad(x=sparse.csr_matrix(x), obs=obs))
    vocabulary = build_vocabulary(MedianConfig(source=(path,), exact=True))
    assert dict(vocabulary.medians) == {GENES[0]: (5000 + 2500) / 2, GENES[1]: (5000 + 7500) / 2}
    assert vocabulary.origin["cells_left_out"] == {"filter_pass": 1}
    assert vocabulary.origin["genes_of_few_cells"] == 2
    totals = build_vocabulary(MedianConfig(source=(path,), n_counts_column="total", exact=True))
    assert dict(totals.medians) == {GENES[0]: (5000 + 1250) / 2, GENES[1]: (5000 + 3750) / 2}


def test_symbols_are_taken_where_there_is_nothing_else(make_h5ad: Make) -> None:
    names = pd.DataFrame(index=["TP53", "MYC", "C1orf112"])
    path = str(make_h5ad(x=random_counts(9, 3, density=1), var=names))
    vocabulary = build_vocabulary(MedianConfig(source=(path,)))
    assert vocabulary.id_type == "symbol"
    assert list(vocabulary.genes) == ["C1orf112", "MYC", "TP53"]
    with pytest.raises(InputError, match="one kind of gene id"):
        build_vocabulary(MedianConfig(source=(path, str(make_h5ad("b.h5ad")))))


def test_a_wrong_generation_and_totals_that_are_none(make_h5ad: Make) -> None:
    with pytest.raises(ValueError, match="'v1' or 'v2'"):
        MedianConfig(generation="v3")
    path = str(make_h5ad(x=random_counts(2, 40), obs={"total": [0.0, 3.0]}))
    with pytest.raises(InputError, match="'total' must hold positive totals"):
        build_vocabulary(MedianConfig(source=(path,), n_counts_column="total"))
    path = str(make_h5ad(x=random_counts(2, 40), obs={"total": [1e-40, 3.0]}))
    with pytest.raises(InputError, match=r"totals must be plausible.*1e-40..3"):
        build_vocabulary(MedianConfig(source=(path,), n_counts_column="total"))


def test_too_many_values_for_exact_medians(make_h5ad: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_VALUES", 100)
    with pytest.raises(InputError, match="--exact: exact medians hold at most 100 nonzero values"):
        build_vocabulary(MedianConfig(source=(str(make_h5ad()),), exact=True))


def test_how_the_work_is_cut_and_by_how_many_it_is_done_cannot_be_seen(
    make_h5ad: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker, one task of small files together; two workers, many tasks and levels of merging."""
    paths = tuple(str(make_h5ad(f"{i}.h5ad", cells=40 + i, seed=i)) for i in range(5))
    one = build_vocabulary(MedianConfig(source=paths, workers=1))
    monkeypatch.setattr(median_sources, "_LEAST_UNIT_CELLS", 1)
    monkeypatch.setattr(median_sources, "MOST_UNIT_CELLS", 9)
    monkeypatch.setattr("cellray.data.medians.map_merge.FAN_IN", 3)
    many = build_vocabulary(MedianConfig(source=paths, workers=2))
    assert many.to_json() == one.to_json()
    assert build_vocabulary(MedianConfig(source=paths[::-1])).digest == one.digest


def test_columns_of_one_gene_and_retired_ids_are_summed_and_tokenization_knows_them(
    make_h5ad: Make, tmp_path: Path
) -> None:
    """Columns: a gene, the same with a version, one of its earlier ids, two other genes of which one is not wanted."""
    x = sparse.csr_matrix(np.array([[1, 2, 3, 4, 0], [0, 0, 5, 5, 9]], np.float32))
    names = pd.DataFrame(index=[GENES[0], f"{GENES[0]}.3", GENES[30], GENES[1], GENES[2]])
    path = str(make_h5ad(x=x, var=names))
    (tmp_path / "retired.csv").write_text(f"old,new\n{GENES[30]},{GENES[31]}\n{GENES[31]},{GENES[0]}\n")
    genes = f"gene_id,gene_type,gene_name\n{GENES[0]},miRNA,M\n{GENES[1]},protein_coding,P\n{GENES[2]},lncRNA,L\n"
    (tmp_path / "genes.csv").write_text(genes)
    config = MedianConfig(
        source=(path,),
        gene_table=str(tmp_path / "genes.csv"),
        gene_types=("protein_coding", "miRNA"),
        retired_ids=str(tmp_path / "retired.csv"),
        exact=True,
    )
    vocabulary = build_vocabulary(config)
    n = [10, 19]
    assert vocabulary.medians == pytest.approx(
        {GENES[0]: (6 / n[0] + 5 / n[1]) / 2 * 1e4, GENES[1]: (4 / n[0] + 5 / n[1]) / 2 * 1e4}
    )
    sketched = build_vocabulary(config.model_copy(update={"exact": False}))
    assert sketched.medians == pytest.approx(vocabulary.medians, rel=ACCURACY)
    assert vocabulary.retired_ids == {GENES[30]: GENES[0], GENES[31]: GENES[0]}
    assert vocabulary.symbols == {"M": GENES[0], "P": GENES[1]}
    assert vocabulary.origin["columns_left_out"] == {"a gene of another type": 1}
    assert vocabulary.origin["columns_replaced"] == 1
    assert "a gene of another type" in describe_origin(vocabulary)
    vocabulary.save(str(tmp_path / "v.json"))
    assert GeneVocabulary.load(str(tmp_path / "v.json")).to_json() == vocabulary.to_json()
    manifest = tokenize_corpus(
        TokenizeConfig(source=(path,), vocabulary=str(tmp_path / "v.json"), output=str(tmp_path / "corpus"))
    )
    (source,) = manifest.sources
    assert (source.genes.known, source.genes.summed, source.genes.unknown) == (2, 2, 1)


def test_all_bad_files_are_named_and_a_file_may_not_change(make_h5ad: Make, tmp_path: Path) -> None:
    good = make_h5ad()
    for name in ("bad.h5ad", "worse.h5ad"):
        (tmp_path / name).write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"(?s)2 files.*bad.h5ad.*worse.h5ad.*leave them out with --on-bad-file skip"):
        build_vocabulary(MedianConfig(source=(str(tmp_path),)))
    sources, _ = median_sources.open_sources([str(good)], median_sources.ReadOptions("X", None, None), GeneTables())
    plan = median_sources.plan_sources(sources)
    make_h5ad(cells=51)
    with pytest.raises(InputError, match="may not change while it is read"), plain_errors():
        measure.sketched(plan, median_sources.ReadOptions("X", None, None), None)


@pytest.mark.parametrize("exact", [True, False])
def test_bad_files_are_left_out_whenever_they_show(make_h5ad: Make, tmp_path: Path, exact: bool) -> None:
    """One shows when it is opened, one when its last counts are read; both in one unit with sound files."""
    good = [make_h5ad(f"{i}.h5ad", cells=20, seed=i) for i in range(2)]
    negative = random_counts(20, 40, seed=7)
    negative.data[-1] = -1
    late = make_h5ad("late.h5ad", x=negative)
    (tmp_path / "bad.h5ad").write_bytes(b"no HDF5")
    config = MedianConfig(source=(str(tmp_path),), exact=exact, on_bad_file="skip")
    vocabulary = build_vocabulary(config)
    without = build_vocabulary(MedianConfig(source=tuple(map(str, good)), exact=exact))
    assert vocabulary.medians == without.medians
    assert [Path(failed["uri"]).name for failed in vocabulary.origin["failed"]] == ["bad.h5ad", "late.h5ad"]
    assert (vocabulary.origin["files"], vocabulary.origin["cells"]) == (2, 40)
    assert "left out, " in describe_origin(vocabulary)
    with pytest.raises(InputError, match=r"late\.h5ad"):
        build_vocabulary(MedianConfig(source=(str(late), str(good[0])), exact=exact))
    with pytest.raises(InputError, match=r"late\.h5ad"):
        build_vocabulary(MedianConfig(source=(str(late),), exact=exact, on_bad_file="skip"))


def test_nothing_is_left(make_h5ad: Make, tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("gene_id\nENSG99999999999\n")
    path = str(make_h5ad(obs={"filter_pass": [0] * 50}))
    with pytest.raises(InputError, match=r"some gene must be left.*40 not in the gene table"):
        build_vocabulary(MedianConfig(source=(path,), gene_table=str(tmp_path / "g.csv")))
    for exact in (False, True):
        with pytest.raises(InputError, match=r"must be above zero.*cells left out: 50 filter_pass"):
            build_vocabulary(MedianConfig(source=(path,), exact=exact))
    with pytest.raises(ValueError, match="--gene-types needs --gene-table"):
        MedianConfig(gene_types=("miRNA",))


@pytest.mark.parametrize("name", ["kang_ifnb.h5ad", "pbmc_facs.h5ad"])
def test_real_cells(shared: Path, name: str) -> None:
    """The sketch against exact medians of the real sets: the largest error stays below 0.5 %."""
    source = (str(shared / "data" / name),)
    exact = build_vocabulary(MedianConfig(source=source, exact=True))
    sketched = build_vocabulary(MedianConfig(source=source))
    assert list(sketched.genes) == list(exact.genes)
    errors = np.array([abs(sketched.medians[gene] / median - 1) for gene, median in exact.medians.items()])
    assert errors.max() <= ACCURACY * (1 + 1e-9)
    assert ACCURACY < 0.005
