"""Quality control: rules against closed forms and brute force, metrics, verdicts, doublets, reading; without Ray."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray import schema, storage
from cellray.data.parts import Unit, find_part, make_part
from cellray.data.quality import doublets
from cellray.data.quality import plan as quality_plan
from cellray.data.quality import run as quality_run
from cellray.data.quality.metrics import MetricsWorker
from cellray.data.quality.mitochondrial import HUMAN, find_mitochondrial
from cellray.data.quality.plan import QualityConfig, QualityPlan, describe_source
from cellray.data.quality.report import report
from cellray.data.quality.rules import REASONS, CellMetrics, DatasetBounds, Moments, can_exclude, judge
from cellray.data.quality.run import quality_control
from cellray.data.quality.table import QualityTable
from cellray.errors import InputError
from cellray.plots import quality_png
from cellray.quality_schema import Bounds, QualityManifest
from cellray.safe_pickle import load_plain_dict
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES, random_counts

Make = Callable[..., Path]
MITO = sorted(HUMAN)[:5]
VAR = pd.DataFrame(index=[*GENES[:35], *MITO])
"""Forty columns of which the last five are human mitochondrial genes."""


@pytest.fixture(autouse=True)
def _serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do all units here, one after the other; the job's own test runs them on Ray."""

    def describe(uris: Sequence[str], options: object) -> list[QualityPlan | InputError]:
        found: list[QualityPlan | InputError] = []
        for uri in uris:
            try:
                found.append(describe_source(uri, options))  # type: ignore[arg-type]
            except InputError as error:
                found.append(error)
        return found

    def run(stage: str, output: str, units: list, worker: Callable, at_once: object = None) -> tuple:
        results: list = []
        for unit in units:
            try:
                results.append(find_part(unit, output) or make_part(unit, worker, output))
            except InputError as error:
                results.append(error)
        return tuple(results)

    monkeypatch.setattr(quality_plan, "_describe_all", describe)
    monkeypatch.setattr(quality_run, "run_units", run)
    monkeypatch.setattr(quality_run, "ensure_ray", lambda: None)


def control(tmp_path: Path, *paths: Path, output: str = "qc", **options: object) -> QualityManifest:
    config = QualityConfig(source=tuple(map(str, paths)), output=str(tmp_path / output), **options)  # type: ignore[arg-type]
    return quality_control(config)


def verdicts(tmp_path: Path, output: str = "qc") -> pd.DataFrame:
    """Read the verdicts as a user without cellray would."""
    return pd.read_parquet(tmp_path / output / "shards").sort_values(["source", "source_row"], ignore_index=True)


def bounded(low: float, high: float) -> Bounds:
    return Bounds(cells=1, mean=0, sd=0, low=low, high=high)


def test_bounds_have_a_closed_form() -> None:
    bounds = Moments.of(np.array([2.0, 4, 4, 4, 5, 5, 7, 9])).bounds(3)  # mean 5, population sd 2
    assert bounds is not None
    assert (bounds.cells, bounds.mean, bounds.sd) == (8, 5, 2)
    assert bounds.low == pytest.approx(-1, abs=1e-7)
    assert bounds.high == pytest.approx(11, abs=1e-7)
    assert Moments().bounds(3) is None


def test_merged_moments_are_those_of_the_whole_however_far_from_zero() -> None:
    values = np.random.default_rng(0).normal(1e9, 1, 1001)
    merged = Moments()
    for piece in np.split(values, [1, 1, 40, 700]):
        merged += Moments.of(piece)
    assert merged.n == 1001
    assert merged.mean == pytest.approx(values.mean(), rel=1e-15)
    assert merged.sd == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.0, 0.0])
def test_equal_cells_are_all_within_bounds(value: float) -> None:
    merged = Moments()
    for n in (3, 5, 11):
        merged += Moments.of(np.full(n, value))
    bounds = merged.bounds(3)
    assert bounds is not None
    assert bounds.low <= value <= bounds.high


def test_how_many_cells_a_bound_needs() -> None:
    for n in range(2, 30):
        worst = np.zeros(n)
        worst[0] = 1  # no cell can lie further out than one against all others
        assert can_exclude(n, 3) == bool((worst[0] - worst.mean()) / worst.std() > 3)
    assert not can_exclude(0, 3)


def test_the_first_reason_in_the_documented_order_counts() -> None:
    """Cell i breaks rule i and all rules after it; the last cell breaks none."""
    n = len(REASONS) + 1
    i = np.arange(n)
    cells = CellMetrics(
        n_counts=np.where(i <= 2, 0.0, np.where(i <= 3, 1000.0, 50.0)),
        mito=np.where(i <= 4, 0.9, 0.1),
        n_genes=np.where(i <= 5, 6, 7),
        file_pass=i > 0,
        malignant=i <= 1,
        dataset=np.zeros(n, int),
    )
    bounds = {0: DatasetBounds(bounded(10, 100), bounded(0, 0.5))}
    assert judge(cells, bounds, 7, i <= 6).tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
    assert REASONS == (
        "filter_pass of the file",
        "malignant or immortalised",
        "no counts",
        "total count out of bounds",
        "mitochondrial content out of bounds",
        "too few genes",
        "doublet",
    )


def test_ends_pass_and_unknown_values_are_not_bounded() -> None:
    cells = CellMetrics(
        n_counts=np.array([9.9, 10, 100, 100.1, 5000]),
        mito=np.array([0.1, 0.5, np.nan, 0.1, 0.9]),
        n_genes=np.full(5, 9),
        file_pass=np.ones(5, bool),
        malignant=np.zeros(5, bool),
        dataset=np.array([0, 0, 0, 0, 1]),
    )
    bounds = {0: DatasetBounds(bounded(10, 100), bounded(0, 0.5)), 1: DatasetBounds(None, None)}
    assert judge(cells, bounds, 7).tolist() == [3, -1, -1, 3, -1]


def test_mitochondrial_genes_by_id_symbol_or_name() -> None:
    ids = find_mitochondrial(pd.DataFrame({"s": ["A", "B", "MT-CO1"]}, index=["x", f"{MITO[0].lower()}.3", MITO[1]]))
    assert (ids.mask_g.tolist(), ids.found_by) == ([False, True, True], "human Ensembl IDs in var index")
    mouse = find_mitochondrial(pd.DataFrame({"n": [1, 2], "s": pd.Categorical(["mt-Nd1", "Mtor"])}, index=["a", "b"]))
    assert (mouse.mask_g.tolist(), mouse.found_by) == ([True, False], "symbols in MT- in var column 's'")
    named = find_mitochondrial(pd.DataFrame(index=["COX1", "MT-ND1"]), ["COX1"])
    assert (named.mask_g.tolist(), named.found_by) == ([True, False], "--mito-genes in var index")
    assert find_mitochondrial(pd.DataFrame(index=["MTOR", "A"])).n_genes == 0


def test_the_human_ids_are_those_of_the_released_symbols(shared: Path) -> None:
    symbols = load_plain_dict(shared / "data" / "geneformer_v1" / "gene_name_id_dict.pkl")
    assert {gene for symbol, gene in symbols.items() if symbol.startswith("MT-")} == HUMAN
    assert len(HUMAN) == 37


def expected(adatas: Sequence[anndata.AnnData], datasets: Sequence[str], n_sd: float, min_genes: int) -> list[object]:
    """Judge cells in the plainest way: everything in memory, one data set after the other."""
    x = np.concatenate([adata.X.toarray() for adata in adatas])
    total, genes = x.sum(1), (x > 0).sum(1)
    share = x[:, 35:].sum(1) / np.maximum(total, 1)
    reasons: list[object] = [None] * len(x)
    for name in sorted(set(datasets)):
        own = np.array([dataset == name for dataset in datasets])
        used = own & (total > 0)
        for i in np.flatnonzero(own):
            if total[i] == 0:
                reasons[i] = "no counts"
            elif abs(total[i] - total[used].mean()) > n_sd * total[used].std():
                reasons[i] = "total count out of bounds"
            elif abs(share[i] - share[used].mean()) > n_sd * share[used].std():
                reasons[i] = "mitochondrial content out of bounds"
            elif genes[i] < min_genes:
                reasons[i] = "too few genes"
    return reasons


def spread_counts(cells: int, seed: int) -> sparse.csr_matrix:
    """Return counts with deep cells, shallow ones, an empty one and cells of mostly mitochondrial counts."""
    rng = np.random.default_rng(seed)
    x = random_counts(cells, 40, seed).toarray() * rng.integers(1, 4, (cells, 1))
    x[:3] *= 9
    x[3:6, 35:] *= 40
    x[6, :] = 0
    x[7, 3:] = 0
    return sparse.csr_matrix(x.astype(np.float32))


@pytest.mark.parametrize("across", [False, True])
def test_verdicts_are_those_of_brute_force(make_h5ad: Make, tmp_path: Path, across: bool) -> None:
    """Data sets are files, or names that cross the files' borders and the parts'."""
    names = ["s", "t", "u"]
    paths = [
        make_h5ad(f"{i}.h5ad", x=spread_counts(90, i), var=VAR, obs={"donor": [names[(i + j) % 3] for j in range(90)]})
        for i in range(2)
    ]
    options = {"dataset_column": "donor"} if across else {}
    manifest = control(tmp_path, *paths, cells_per_part=40, n_sd=2, min_genes=9, **options)
    adatas = [anndata.read_h5ad(path) for path in paths]
    datasets = [str(p) for p in paths for _ in range(90)]
    if across:
        datasets = [name for adata in adatas for name in adata.obs["donor"]]
    table = verdicts(tmp_path)
    want = expected(adatas, datasets, 2, 9)
    assert len(set(want)) == 5
    assert table["reason"].where(table["reason"].notna(), None).tolist() == want
    assert table["filter_pass"].tolist() == [reason is None for reason in want]
    assert table["cell_id"].tolist() == [f"cell{i}" for i in range(90)] * 2
    assert table["source"].tolist() == [str(p) for p in paths for _ in range(90)]
    assert table["dataset"].tolist() == datasets
    x = np.concatenate([adata.X.toarray() for adata in adatas])
    assert table["n_counts"].tolist() == x.sum(1).tolist()
    assert table["mito_counts"].tolist() == x[:, 35:].sum(1).tolist()
    assert table["n_genes"].tolist() == (x > 0).sum(1).tolist()
    assert table["doublet_score"].isna().all()
    for i, source in enumerate(manifest.sources):
        own = want[90 * i : 90 * (i + 1)]
        assert source.passed == own.count(None)
        assert source.dropped == {reason: own.count(reason) for reason in REASONS}
        assert source.mito_genes == 5
    assert {d.name: (d.cells, d.passed) for d in manifest.datasets} == {
        name: (datasets.count(name), sum(w is None for w, d in zip(want, datasets, strict=True) if d == name))
        for name in set(datasets)
    }
    assert sorted(path.name for path in (tmp_path / "qc").iterdir()) == [
        "manifest.json",
        "records",
        "request.json",
        "shards",
    ]


def test_parts_of_any_size_give_the_same_verdicts(make_h5ad: Make, tmp_path: Path) -> None:
    path = make_h5ad(x=spread_counts(90, 1), var=VAR)
    control(tmp_path, path, output="one", n_sd=2)
    control(tmp_path, path, output="many", n_sd=2, cells_per_part=7)
    pd.testing.assert_frame_equal(verdicts(tmp_path, "one"), verdicts(tmp_path, "many"))


def test_mitochondrial_counts_instead_of_their_share(make_h5ad: Make, tmp_path: Path) -> None:
    x = np.ones((20, 40))
    x[0, 35:] = 50
    x[0, :35] = 500  # a large cell: its share is low, its mitochondrial counts are high
    path = make_h5ad(x=sparse.csr_matrix(x), var=VAR)
    manifest = control(tmp_path, path, mito="counts", n_sd=4)
    (dataset,) = manifest.datasets
    assert dataset.mito is not None
    assert dataset.mito.mean == pytest.approx((250 + 19 * 5) / 20)
    assert verdicts(tmp_path)["reason"].dropna().tolist() == ["total count out of bounds"]


def test_without_mitochondrial_genes_there_is_a_warning_and_no_bound(make_h5ad: Make, tmp_path: Path) -> None:
    manifest = control(tmp_path, make_h5ad())
    (source,) = manifest.sources
    assert source.mito_genes == 0
    assert source.warnings[0].startswith("no mitochondrial gene found")
    assert manifest.datasets[0].mito is None
    assert verdicts(tmp_path)[["mito_counts", "mito_fraction"]].isna().all(axis=None)
    assert "warning: no mitochondrial gene found" in report(manifest)
    assert "mitochondrial fraction not bounded" in report(manifest)


def test_genes_of_a_vocabulary_count_once(make_h5ad: Make, vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    """Two columns are one gene; columns 30 to 39 are unknown to the vocabulary."""
    vocabulary.save(str(tmp_path / "v.json"))
    x = np.zeros((3, 40))
    x[0, :8] = 1  # eight columns, seven genes
    x[1, :7] = 1  # seven columns, six genes
    x[2, [*range(2, 8), 30, 31, 32]] = 1  # six known genes
    var = pd.DataFrame(index=GENES).rename(index={GENES[1]: GENES[0] + ".2"})
    path = make_h5ad(x=sparse.csr_matrix(x), var=var)
    manifest = control(tmp_path, path, vocabulary=str(tmp_path / "v.json"))
    assert verdicts(tmp_path)["n_genes"].tolist() == [7, 6, 6]
    assert verdicts(tmp_path)["filter_pass"].tolist() == [True, False, False]
    assert manifest.rules.vocabulary_digest == vocabulary.full_digest
    assert "detected genes counted among 29 genes of the vocabulary" in report(manifest)
    control(tmp_path, path, output="all")
    assert verdicts(tmp_path, "all")["n_genes"].tolist() == [8, 7, 9]


@pytest.fixture
def gene_table(tmp_path: Path) -> str:
    """Of the first 38 genes every second is protein-coding, every tenth a miRNA, the others are lncRNA.

    Two genes are not listed; some ids have versions.
    """
    kinds = ["miRNA" if i % 10 == 9 else "protein_coding" if i % 2 == 0 else "lncRNA" for i in range(38)]
    ids = [f"{gene}.{i}" if i % 3 == 0 else gene for i, gene in enumerate(GENES[:38])]
    symbols = [f"SYM{i}" for i in range(38)]
    path = tmp_path / "genes.tsv"
    table = pd.DataFrame({"Gene stable ID": ids, "Gene type": kinds, "Gene name": symbols})
    table.to_csv(path, sep="\t", index=False)
    return str(path)


WANTED = {i for i in range(38) if i % 10 == 9 or i % 2 == 0}


@pytest.mark.parametrize("named_by", ["ids", "symbols"])
def test_genes_of_a_table_alone_count(make_h5ad: Make, gene_table: str, tmp_path: Path, named_by: str) -> None:
    x = random_counts(30, 40, seed=3, density=0.3)
    var = pd.DataFrame(index=GENES if named_by == "ids" else [*(f"SYM{i}" for i in range(38)), "AB1", "AB2"])
    path = make_h5ad(x=x, var=var)
    types = ("protein_coding", "mirna")
    manifest = control(tmp_path, path, gene_table=gene_table, gene_types=types, min_genes=9)
    expected = (x.toarray()[:, sorted(WANTED)] > 0).sum(axis=1)
    table = verdicts(tmp_path)
    assert table["n_genes"].tolist() == expected.tolist()
    assert not table["filter_pass"][expected < 9].any()
    assert manifest.sources[0].counted_genes == len(WANTED) == 22
    assert manifest.warnings == ()
    assert "detected genes counted among 22 genes of the gene table (protein_coding, mirna)" in report(manifest)
    control(tmp_path, path, output="listed", gene_table=gene_table)
    assert verdicts(tmp_path, "listed")["n_genes"].tolist() == (x.toarray()[:, :38] > 0).sum(axis=1).tolist()


def test_genes_of_both_vocabulary_and_table_count(
    make_h5ad: Make, gene_table: str, vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    """The vocabulary knows the first thirty genes; the table names one of them by an id that was replaced."""
    table = Path(gene_table).read_text().replace(GENES[2], "ENSG99999999999")
    Path(gene_table).write_text(table)
    known = replace(vocabulary, retired_ids={"ENSG99999999999": GENES[2]})
    known.save(str(tmp_path / "v.json"))
    x = random_counts(30, 40, seed=4, density=0.3)
    options = {"gene_table": gene_table, "gene_types": ("protein_coding", "miRNA")}
    manifest = control(tmp_path, make_h5ad(x=x), vocabulary=str(tmp_path / "v.json"), **options)
    both = sorted(i for i in WANTED if i < 30)
    assert verdicts(tmp_path)["n_genes"].tolist() == (x.toarray()[:, both] > 0).sum(axis=1).tolist()
    assert f"counted among {len(both)} genes of the vocabulary and the gene table" in report(manifest)


def test_another_table_is_another_request_and_no_gene_is_an_error(
    make_h5ad: Make, gene_table: str, tmp_path: Path
) -> None:
    path = make_h5ad()
    first = control(tmp_path, path, gene_table=gene_table, gene_types=("miRNA",))
    assert control(tmp_path, path, gene_table=gene_table, gene_types=("MIRNA",), output="again").rows == first.rows
    with pytest.raises(InputError, match="must be empty or hold this very result"):
        control(tmp_path, path, gene_table=gene_table)
    foreign = make_h5ad("mouse.h5ad", var=pd.DataFrame(index=[f"m{i}" for i in range(40)]))
    with pytest.raises(InputError, match=r"mouse\.h5ad: some column must be a gene of the gene table; found none"):
        control(tmp_path, foreign, gene_table=gene_table, output="mouse")


def test_without_either_every_column_counts_and_the_manifest_says_so(make_h5ad: Make, tmp_path: Path) -> None:
    manifest = control(tmp_path, make_h5ad())
    assert [warning for warning in manifest.warnings if warning.startswith("every column counts as a gene")]
    assert "warning: every column counts as a gene" in report(manifest)
    assert manifest.sources[0].counted_genes is None


def test_stored_zeros_and_doubled_entries_are_no_genes(make_h5ad: Make, tmp_path: Path) -> None:
    data = np.array([1, 1, 0, 2], np.float32)
    x = sparse.csr_matrix((data, [3, 3, 4, 5], [0, 4]), shape=(1, 40))
    control(tmp_path, make_h5ad(x=x), min_genes=0)
    assert verdicts(tmp_path)[["n_counts", "n_genes"]].to_numpy().tolist() == [[4, 2]]


def test_filter_pass_of_the_file_and_marked_cells(make_h5ad: Make, tmp_path: Path) -> None:
    obs = {
        "filter_pass": [0, 1, 1, 1, 1],
        "origin": pd.Categorical(["Tumour", "tumour", "healthy", None, "Line"]),
        "flag": [True, False, True, False, False],
        "number": [1.0, np.nan, 0, 1, 0],
    }
    path = make_h5ad(x=random_counts(5, 40), obs=obs)
    file, marked = "filter_pass of the file", "malignant or immortalised"
    for name, options, reasons in (
        (
            "a",
            {"malignant_column": "origin", "malignant_values": ("tumour", "line")},
            [file, marked, None, None, marked],
        ),
        ("b", {"malignant_column": "flag"}, [file, None, marked, None, None]),
        ("c", {"malignant_column": "number"}, [file, None, None, marked, None]),
        ("d", {"malignant_column": "number", "malignant_values": ("0",)}, [file, None, marked, None, marked]),
    ):
        manifest = control(tmp_path, path, output=name, **options)  # type: ignore[arg-type]
        found = verdicts(tmp_path, name)["reason"]
        assert found.where(found.notna(), None).tolist() == reasons
        lacking = (
            "1 cells have no value in --malignant-column; they count as not marked" in manifest.sources[0].warnings
        )
        assert lacking == (name != "b")
    manifest = control(tmp_path, path, output="e", malignant_column="origin", malignant_values=("tumor",))
    assert "no cell is marked by tumor in 'origin'" in manifest.warnings


def test_cells_without_a_data_set_form_one(make_h5ad: Make, tmp_path: Path) -> None:
    path = make_h5ad(x=random_counts(4, 40), obs={"run": pd.Categorical(["a", None, "a", None])})
    manifest = control(tmp_path, path, dataset_column="run")
    assert verdicts(tmp_path)["dataset"].tolist() == ["a", "(missing)", "a", "(missing)"]
    assert any(w.startswith("2 cells have no value in --dataset-column") for w in manifest.sources[0].warnings)
    assert any("so small that no cell can lie 3 standard deviations" in w for w in manifest.warnings)


def test_what_a_column_cannot_mean_is_refused(make_h5ad: Make, tmp_path: Path) -> None:
    path = make_h5ad(x=random_counts(2, 40), obs={"text": ["a", "b"], "real": [0.5, 1.5]})
    for options, message in (
        ({"malignant_column": "text"}, "must hold flags.*--malignant-values"),
        ({"malignant_column": "tumour"}, "--malignant-column must name an obs column; found no 'tumour'"),
        ({"dataset_column": "real"}, "data sets have names or whole numbers"),
        ({"dataset_column": "batch"}, "--dataset-column must name an obs column"),
    ):
        with pytest.raises(InputError, match=message):
            control(tmp_path, path, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "qc").exists()


def test_bad_files_fail_or_are_left_out(make_h5ad: Make, tmp_path: Path) -> None:
    """One is bad from its first cell, one only far inside; the sound one stays."""
    late = random_counts(1500, 40)
    late.data[-1] = 0.5
    paths = [
        make_h5ad("first.h5ad", x=random_counts(5, 40) * 0.37),
        make_h5ad("late.h5ad", x=late),
        make_h5ad("sound.h5ad", cells=30, seed=3),
    ]
    with pytest.raises(InputError, match=r"first\.h5ad: X must hold raw counts"):
        control(tmp_path, *paths)
    with pytest.raises(InputError, match=r"late\.h5ad: X must hold raw counts.*rows 1024-1500"):
        control(tmp_path, *paths[1:])
    assert not (tmp_path / "qc" / schema.MANIFEST).exists()
    manifest = control(tmp_path, *paths, output="some", on_bad_file="skip")
    assert [source.uri for source in manifest.sources] == [str(paths[2])]
    assert [failed.uri for failed in manifest.failed] == [str(paths[0]), str(paths[1])]
    assert {part.source for part in manifest.parts} == {0}
    assert len(verdicts(tmp_path, "some")) == 30
    assert report(manifest).count("left out: ") == 2


def test_the_table_answers_for_row_ranges_of_the_very_files(make_h5ad: Make, tmp_path: Path) -> None:
    paths = [make_h5ad(f"{i}.h5ad", x=spread_counts(50, i), var=VAR) for i in range(2)]
    control(tmp_path, *paths, n_sd=2, cells_per_part=20)
    table = QualityTable.open(str(tmp_path / "qc"))
    flags = verdicts(tmp_path)["filter_pass"].to_numpy()
    for i, path in enumerate(paths):
        version = storage.stamp(str(path)).version
        whole = flags[50 * i : 50 * (i + 1)]
        assert 0 < whole.sum() < 50
        for start, stop in ((0, 50), (0, 7), (13, 45), (20, 40), (49, 50), (9, 9)):
            assert np.array_equal(table.passed(str(path), version, start, stop), whole[start:stop])
    with pytest.raises(InputError, match=r"0\.h5ad: it must be as it was when .*found it changed"):
        table.passed(str(paths[0]), "another", 0, 5)
    with pytest.raises(InputError, match=r"other\.h5ad: it must be a source of the quality control"):
        table.passed(str(tmp_path / "other.h5ad"), "any", 0, 5)
    with pytest.raises(InputError, match=r"quality control holds manifest\.json"):
        QualityTable.open(str(tmp_path))


def test_a_rerun_writes_nothing_and_another_request_is_refused(make_h5ad: Make, tmp_path: Path) -> None:
    path, output = make_h5ad(), tmp_path / "qc"
    first = control(tmp_path, path)
    stamps = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    assert control(tmp_path, path, workers=1) == first
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == stamps
    with pytest.raises(InputError, match="must be empty or hold this very result"):
        control(tmp_path, path, n_sd=2)
    lost = next(output.glob("shards/*.parquet"))
    content = lost.read_bytes()
    lost.unlink()
    (output / schema.MANIFEST).unlink()
    assert control(tmp_path, path) == first
    assert lost.read_bytes() == content


def test_metrics_of_real_cells_are_those_of_scanpy(shared: Path, tmp_path: Path) -> None:
    import scanpy as sc

    path = shared / "data" / "pbmc_facs.h5ad"
    manifest = control(tmp_path, path, cells_per_part=1500)
    adata = anndata.read_h5ad(path)
    adata.var["mt"] = adata.var["gene_symbol"].str.startswith("MT-")
    sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False, inplace=True)
    table = verdicts(tmp_path)
    assert table["n_counts"].tolist() == adata.obs["total_counts"].tolist()
    assert table["n_genes"].tolist() == adata.obs["n_genes_by_counts"].tolist()
    assert np.allclose(table["mito_fraction"], adata.obs["pct_counts_mt"] / 100, rtol=1e-6)
    total, share = adata.obs["total_counts"], adata.obs["pct_counts_mt"]
    within = [(abs(v - v.mean()) <= 3 * v.std(ddof=0)).to_numpy() for v in (total, share)]
    assert table["filter_pass"].tolist() == (within[0] & within[1]).tolist()
    assert (manifest.sources[0].passed, manifest.sources[0].mito_genes) == (3754, 13)


def test_after_an_interruption_the_metrics_are_not_measured_again(
    make_h5ad: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_h5ad(x=spread_counts(50, 1), var=VAR)
    whole = control(tmp_path, path, output="whole", cells_per_part=20)
    run, made = quality_run.run_units, []

    def interrupted(stage: str, *args: object, **kwargs: object) -> tuple:
        if stage == "verdicts":
            raise KeyboardInterrupt
        return run(stage, *args, **kwargs)  # type: ignore[arg-type]

    def noted(self: MetricsWorker, unit: Unit, *args: object) -> None:
        made.append((unit.start, unit.stop))
        measure(self, unit, *args)  # type: ignore[arg-type]

    measure = MetricsWorker.__call__
    monkeypatch.setattr(MetricsWorker, "__call__", noted)
    monkeypatch.setattr(quality_run, "run_units", interrupted)
    with pytest.raises(KeyboardInterrupt):
        control(tmp_path, path, cells_per_part=20)
    assert not (tmp_path / "qc" / schema.MANIFEST).exists()
    next((tmp_path / "qc" / "metrics" / "shards").iterdir()).unlink()
    monkeypatch.setattr(quality_run, "run_units", run)
    assert control(tmp_path, path, cells_per_part=20) == whole
    assert sorted(made[:3]) == [(0, 20), (20, 40), (40, 50)]
    assert len(made) == 4


@pytest.mark.parametrize("when", ["tally_parts", "_judge"])
def test_the_loser_of_two_runs_returns_the_winners_result(
    make_h5ad: Make, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of the same request finishes, and clears its stages away, while another is between two of them."""
    path = make_h5ad(x=spread_counts(50, 1), var=VAR)
    whole = control(tmp_path, path, output="whole", cells_per_part=20)
    stage, others = getattr(quality_run, when), []

    def overtaken(*args: object) -> object:
        monkeypatch.setattr(quality_run, when, stage)
        others.append(control(tmp_path, path, cells_per_part=20))
        assert not (tmp_path / "qc" / "metrics").exists()
        return stage(*args)

    monkeypatch.setattr(quality_run, when, overtaken)
    assert control(tmp_path, path, cells_per_part=20) == whole
    assert others == [whole]
    assert sorted(path.name for path in (tmp_path / "qc").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def test_lost_metrics_are_an_error_where_nobody_has_finished(
    make_h5ad: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(folder: str, *_: object) -> None:
        raise FileNotFoundError(folder)

    monkeypatch.setattr(quality_run, "tally_parts", lost)
    with pytest.raises(FileNotFoundError, match="metrics"):
        control(tmp_path, make_h5ad())


def test_sources_and_verdicts_in_an_object_store(make_h5ad: Make, tmp_path: Path, bucket: str) -> None:
    path = make_h5ad(x=spread_counts(50, 1), var=VAR)
    storage.write_bytes(f"{bucket}/in/cells.h5ad", path.read_bytes())
    local = control(tmp_path, path, n_sd=2, cells_per_part=20)
    config = QualityConfig(source=(f"{bucket}/in/cells.h5ad",), output=f"{bucket}/qc", n_sd=2, cells_per_part=20)
    manifest = quality_control(config)
    assert manifest.sources[0].dropped == local.sources[0].dropped
    table = QualityTable.open(config.output)
    (source,) = manifest.sources
    flags = verdicts(tmp_path)["filter_pass"].to_numpy()
    assert np.array_equal(table.passed(source.uri, source.version, 5, 45), flags[5:45])
    assert not storage.exists(f"{bucket}/qc/metrics")
    assert quality_control(config) == manifest


def planted(seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return cells of four kinds, and sums of two cells of different kinds at the end."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.5, 1, (4, 300)) * 2
    kind = rng.integers(0, 4, 400)
    cells = rng.poisson(rates[kind])
    first = rng.integers(0, 400, 30)
    second = np.array([rng.choice(np.flatnonzero(kind != kind[i])) for i in first])
    x = np.concatenate([cells, cells[first] + cells[second]])
    return sparse.csr_matrix(x.astype(np.float32)), np.arange(len(x)) >= 400


@pytest.fixture
def mixture(make_h5ad: Make) -> tuple[Path, np.ndarray]:
    """Write a file of a run with planted doublets, an empty cell, and a second run too small to be scored."""
    x, doublet = planted()
    x = sparse.vstack([x, sparse.csr_matrix((1, 300)), x[:20]], format="csr")
    runs = ["big"] * (len(doublet) + 1) + ["small"] * 20
    return make_h5ad(x=x, var=pd.DataFrame(index=[f"g{i}" for i in range(300)]), obs={"run": runs}), doublet


def test_planted_doublets_score_higher(mixture: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, doublet = mixture
    n = len(doublet)
    manifest = control(
        tmp_path, path, dataset_column="run", n_sd=9, doublets=True, doublet_threshold=0.1, cells_per_part=100
    )
    table = verdicts(tmp_path)
    score = table["doublet_score"].to_numpy()
    assert score[:n][doublet].mean() > 2 * score[:n][~doublet].mean()
    assert np.isnan(score[n:]).all()
    assert (score[:n] > 0.1).tolist() == doublet.tolist()
    assert (table["reason"] == "doublet").tolist() == [*doublet, *[False] * 21]
    assert table["reason"][n] == "no counts"
    (source,) = manifest.sources
    assert [(d.dataset, d.scored, d.threshold) for d in source.doublets] == [("big", n, 0.1), ("small", 0, None)]
    assert "no doublet scores for data sets of less than 100 cells: 'small'" in source.warnings
    again = control(
        tmp_path, path, output="b", dataset_column="run", n_sd=9, doublets=True, doublet_threshold=0.1, seed=0
    )
    assert np.array_equal(verdicts(tmp_path, "b")["doublet_score"].to_numpy(), score, equal_nan=True)
    assert again.sources == manifest.sources


def test_scrublets_own_threshold_is_recorded(mixture: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    manifest = control(tmp_path, mixture[0], n_sd=9, doublets=True)
    (record,) = manifest.sources[0].doublets
    score = verdicts(tmp_path)["doublet_score"]
    assert record.threshold is not None
    assert manifest.sources[0].dropped["doublet"] == int((score > record.threshold).sum())
    assert f"threshold {record.threshold:.3f}" in report(manifest)


def test_a_data_set_too_large_for_doublets_is_refused(
    mixture: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doublets, "MAX_DOUBLET_CELLS", 200)
    with pytest.raises(InputError, match=r"scores at most 200 cells.*found 430 in 'big'.*--dataset-column"):
        control(tmp_path, mixture[0], n_sd=9, dataset_column="run", doublets=True)


def test_pictures_of_any_data_set(make_h5ad: Make, tmp_path: Path) -> None:
    """Full ones, one without mitochondrial genes, one of empty cells."""
    empty = sparse.csr_matrix((4, 40), dtype=np.float32)
    paths = [
        make_h5ad("a.h5ad", x=spread_counts(60, 0), var=VAR),
        make_h5ad("b.h5ad", x=spread_counts(60, 1)),
        make_h5ad("c.h5ad", x=empty, var=VAR),
    ]
    manifest = control(tmp_path, *paths, n_sd=2, cells_per_part=25)
    table = QualityTable.open(str(tmp_path / "qc"))
    samples = table.samples({dataset.name: dataset.cells for dataset in manifest.datasets}, 20)
    assert [len(sample) for sample in samples.values()] == [20, 20, 4]
    whole = verdicts(tmp_path)["n_counts"]
    assert samples[str(paths[1])]["n_counts"].tolist() == whole[60:120:3].tolist()
    for dataset in manifest.datasets:
        target = tmp_path / "picture.png"
        quality_png(samples[dataset.name], dataset, manifest.rules, target)
        assert target.read_bytes().startswith(b"\x89PNG")
