"""`InSilicoPerturber` and `InSilicoPerturberStats`: the golden numbers, our screens, and what is refused."""

import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellray.compat.geneformer import EmbExtractor, InSilicoPerturber, InSilicoPerturberStats
from cellray.data.corpora.hf_dataset import export_dataset
from cellray.errors import InputError
from cellray.infer.shift_tables import ShiftTable
from cellray.vocabulary import GeneVocabulary, import_official
from tests.compat.conftest import clone, golden_dataset
from tests.conftest import GENES
from tests.infer.tiny import corpus_in, model_in, rows_in, screened

RPL18 = "ENSG00000063177"
STATES = {"state_key": "state", "start_state": "A", "goal_state": "B", "alt_states": ["C"]}
TINY = {"state_key": "state", "start_state": "sick", "goal_state": "well", "alt_states": ["other"]}
Place = tuple[str, str, Path]


def rows_of(uri: str) -> pd.DataFrame:
    screen = ShiftTable.open(uri)
    return rows_in(Path(uri), screen.manifest.parts)


def golden_values(shared: Path, generation: str, kind: str, genes: str, mode: str) -> pd.DataFrame:
    table = pd.read_parquet(shared / "golden" / "perturbation.parquet").astype({"state": str, "perturbed": str})
    table = table[(table["model"] == generation) & (table["perturb_type"] == kind) & (table["genes"] == genes)]
    return table[table["emb_mode"] == mode]


@pytest.mark.parametrize(("generation", "kind", "mode"), [("v1", "delete", "cell"), ("v2", "overexpress", "cls")])
def test_golden_shifts(shared: Path, tmp_path: Path, generation: str, kind: str, mode: str) -> None:
    model, dataset = clone(shared, tmp_path, generation), golden_dataset(shared, tmp_path, generation)
    states = dict(zip("ABC", np.load(shared / "golden" / "embeddings.npz")[f"{generation}_states"], strict=True))
    perturber = InSilicoPerturber(
        perturb_type=kind,
        emb_mode=mode,
        cell_states_to_model=STATES,
        state_embs_dict=states,
        max_ncells=100,
        job_options={"max_perturbations": 6},  # of each cell; enough to see that they are the official values
    )
    found = rows_of(perturber.perturb_data(model, dataset, tmp_path / "out", "golden"))
    assert (tmp_path / "out" / f"in_silico_{kind}_golden.shifts" / "manifest.json").exists()
    official = golden_values(shared, generation, kind, "all", mode)
    official = official[official["affected"] == "cell_emb"].drop_duplicates(["cell_id", "perturbed", "state"])
    cells = np.load(shared / "golden" / "embeddings.npz")[f"{generation}_cells"][::-1]
    ours = found.assign(cell_id=[cells[int(row)] for row in found["cell_id"]]).set_index(["cell_id", "genes"])
    assert len(ours) >= 5 * 5
    for state, column in (("", "similarity"), ("A", "shift:A"), ("B", "shift:B"), ("C", "shift:C")):
        theirs = official[official["state"] == state].set_index(["cell_id", "perturbed"])["value"]
        assert np.abs(ours[column].to_numpy() - theirs.loc[ours.index].to_numpy()).max() < 1e-5


def raw_file(path: Path, values: pd.DataFrame, tokens: dict[str, int], *, states: bool) -> None:
    """Write values as the official perturber does."""
    content: dict[object, object] = {}
    for state, rows in values.groupby("state"):
        lists: dict[object, list[float]] = defaultdict(list)
        for gene, affected, value in rows[["perturbed", "affected", "value"]].itertuples(index=False):
            token = tuple(tokens[each] for each in gene.split("|"))
            lists[token[0] if len(token) == 1 else token, tokens.get(affected, affected)].append(float(value))
        content |= {state: lists} if states else lists
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def assert_as_golden(shared: Path, folder: Path, name: str, key: list[str], without: tuple[str, ...] = ()) -> None:
    """Compare a written table with the official one: names of columns, and rows by gene."""
    ours, theirs = (
        pd.read_csv(path, index_col=0) for path in (folder / f"{name}.csv", shared / "golden" / "stats" / f"{name}.csv")
    )
    assert list(ours.columns) == list(theirs.columns)
    kept = [column for column in theirs.columns if column not in without]
    ours, theirs = (table[kept].sort_values(key, ignore_index=True) for table in (ours, theirs))
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["delete", pytest.param("overexpress", marks=pytest.mark.chaos)])
def test_golden_goal_state_shift(shared: Path, tmp_path: Path, kind: str) -> None:
    official = shared / "data" / "geneformer_v1"
    tokens = dict(import_official(official).genes)
    values = golden_values(shared, "v1", kind, "all", "cell")
    raw_file(tmp_path / "in" / "x_raw.pickle", values[values["state"] != ""], tokens, states=True)
    stats = InSilicoPerturberStats(
        mode="goal_state_shift",
        cell_states_to_model=STATES,
        token_dictionary_file=official / "token_dictionary.pkl",
        gene_name_id_dictionary_file=official / "gene_name_id_dict.pkl",
    )
    name = f"goal_state_shift_{kind}"
    returned = stats.get_stats(tmp_path / "in", None, tmp_path / "out", name)
    assert_as_golden(shared, tmp_path / "out", name, ["Ensembl_ID"], ("Gene_name",))
    assert list(returned.columns) == list(pd.read_csv(tmp_path / "out" / f"{name}.csv", index_col=0).columns)
    assert {"Rank_biserial", *returned.columns} <= set(pd.read_parquet(tmp_path / "out" / f"{name}.parquet").columns)


def test_golden_statistics_of_similarities(shared: Path, tmp_path: Path) -> None:
    official = shared / "data" / "geneformer_v1"
    tokens = dict(import_official(official).genes)
    for folder, kind, genes, mode in (
        ("delete", "delete", "all", "cell"),
        ("overexpress", "overexpress", "all", "cell"),
        ("one", "delete", RPL18, "cell"),
        ("effects", "delete", RPL18, "cell_and_gene"),
    ):
        values = golden_values(shared, "v1", kind, genes, mode)
        raw_file(tmp_path / folder / "x_raw.pickle", values[values["state"] == ""], tokens, states=False)
    symbols = {"gene_name_id_dictionary_file": official / "gene_name_id_dict.pkl"}
    files = {"token_dictionary_file": official / "token_dictionary.pkl"} | symbols
    for mode, data, null, key, without in (
        ("vs_null", "delete", "overexpress", ["Ensembl_ID"], ("Gene_name",)),
        # the official components are the wrong way round here: see tests/statistics/test_golden.py
        (
            "mixture_model",
            "delete",
            None,
            ["Ensembl_ID"],
            ("Gene_name", "Impact_component", "Impact_component_percent"),
        ),
        ("aggregate_data", "one", None, ["Cosine_sim"], ()),
        ("aggregate_gene_shifts", "effects", None, ["Affected_Ensembl_ID"], ("Gene_name", "Affected_gene_name")),
    ):
        stats = InSilicoPerturberStats(mode=mode, genes_perturbed=[RPL18] if "aggregate" in mode else "all", **files)
        stats.get_stats(tmp_path / data, null and tmp_path / null, tmp_path / "out", mode)
        assert_as_golden(shared, tmp_path / "out", mode, key, without)


@pytest.fixture
def place(vocabulary: GeneVocabulary, tmp_path: Path) -> Place:
    """Return a model, a dataset of 18 cells in three states, and a folder for results."""
    corpus = corpus_in(tmp_path, vocabulary)
    return model_in(tmp_path, vocabulary), export_dataset(corpus, str(tmp_path / "cells.dataset")), tmp_path


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"emb_mode": "cell"}, {}),
        (
            {"genes_to_perturb": [GENES[1], GENES[4]], "emb_mode": "cell_and_gene", "emb_layer": 0},
            {"genes": (GENES[1], GENES[4]), "together": True, "effects": True, "layer": 0},
        ),
        (
            {"perturb_type": "activate", "perturb_rank_shift": 2, "emb_mode": "cell", "cell_states_to_model": TINY},
            {"kind": "activate", "quartiles": 2, "state_column": "state", "start": "sick", "goal": "well"}
            | {"alternatives": ("other",)},
        ),
        (
            {"perturb_type": "overexpress", "combos": 1, "anchor_gene": GENES[2], "emb_mode": "cell"},
            {"kind": "overexpress", "anchor": (GENES[2],)},
        ),
    ],
)
def test_options_mean_those_of_the_job(place: Place, theirs: dict[str, object], ours: dict[str, object]) -> None:
    model, dataset, folder = place
    _, expected = screened(f"{folder}/corpus", model, folder / "job", **ours)
    found = rows_of(InSilicoPerturber(**theirs).perturb_data(model, dataset, folder, "x"))  # type: ignore[arg-type]
    keys = ["cell_id", "perturbation"]
    found, expected = (table.sort_values(keys, ignore_index=True) for table in (found, expected[found.columns]))
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-5, atol=1e-6)


def test_cells_by_filter_and_by_index(place: Place) -> None:
    model, dataset, folder = place
    listed = {"genes_to_perturb": [GENES[0]], "emb_mode": "cell"}
    whole = rows_of(InSilicoPerturber(**listed).perturb_data(model, dataset, folder, "whole"))
    some = InSilicoPerturber(filter_data={"donor": ["d0", "d2"]}, **listed).perturb_data(model, dataset, folder, "some")
    assert set(rows_of(some)["cell_id"]) == set(whole[whole["donor"] != "d1"]["cell_id"])
    few = rows_of(InSilicoPerturber(max_ncells=3, **listed).perturb_data(model, dataset, folder, "few"))
    assert len(few) == 3
    pieces = [
        rows_of(
            InSilicoPerturber(cell_inds_to_perturb={"start_ind": i, "end_ind": i + 9}, **listed).perturb_data(
                model, dataset, folder / "pieces", str(i)
            )
        )
        for i in (0, 9)
    ]
    assert sorted(pd.concat(pieces)["cell_id"]) == sorted(whole["cell_id"])
    assert pieces[0]["cell_genes"].min() >= pieces[1]["cell_genes"].max()  # the longest first
    stats = InSilicoPerturberStats(mode="aggregate_data", genes_perturbed=[GENES[0]])
    joined = stats.get_stats(folder / "pieces", None, folder, "joined")
    single = stats.get_stats(folder / "in_silico_delete_whole.shifts", None, folder, "single")
    np.testing.assert_allclose(sorted(joined["Cosine_sim"]), sorted(single["Cosine_sim"]), atol=1e-6)
    again = InSilicoPerturber(**listed).perturb_data(model, dataset, folder, "whole")  # finished: left alone
    pd.testing.assert_frame_equal(rows_of(again), whole)
    with pytest.raises(InputError, match="the output must be empty or hold this very result"):
        InSilicoPerturber(genes_to_perturb=[GENES[1]], emb_mode="cell").perturb_data(model, dataset, folder, "whole")


def test_states_of_the_extractor_and_tables_of_the_screen(place: Place) -> None:
    """The whole of an official notebook."""
    model, dataset, folder = place
    extractor = EmbExtractor(emb_mode="cell", summary_stat="exact_mean", max_ncells=None)
    states = extractor.get_state_embs(TINY, model, dataset, folder, "states")
    given, computed = (
        rows_of(
            InSilicoPerturber(emb_mode="cell", cell_states_to_model=TINY, state_embs_dict=each).perturb_data(
                model, dataset, folder / name, "x"
            )
        )
        for each, name in ((states, "given"), (None, "computed"))
    )
    pd.testing.assert_frame_equal(given, computed, check_exact=False, rtol=1e-4, atol=1e-5)
    stats = InSilicoPerturberStats(mode="goal_state_shift", cell_states_to_model=TINY)
    table = stats.get_stats(folder / "given", None, folder, "table")
    assert "Shift_to_alt_end_other" in table
    means = given.groupby("genes")["shift:well"].mean()
    np.testing.assert_allclose(table["Shift_to_goal_end"], means[table["Ensembl_ID"]], atol=1e-6)
    assert table["Gene"].notna().all()
    one = InSilicoPerturberStats(mode="goal_state_shift", genes_perturbed=[GENES[0]], cell_states_to_model=TINY)
    cells = one.get_stats(folder / "given", None, folder, "cells")
    assert list(cells.columns) == ["Shift_to_goal_end", "Shift_to_alt_end_other"]
    assert len(cells) == (given["genes"] == GENES[0]).sum()
    other = {**TINY, "alt_states": ["dead"]}
    with pytest.raises(InputError, match="must have the states 'dead', 'sick', 'well'; found 'other', 'sick', 'well'"):
        InSilicoPerturberStats("goal_state_shift", cell_states_to_model=other).get_stats(
            folder / "given", None, folder, "x"
        )
    with pytest.raises(InputError, match=r"must be a perturbation of the screen; found ENSG1; "):
        InSilicoPerturberStats("aggregate_data", ["ENSG1"]).get_stats(folder / "given", None, folder, "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturb_type": "knockout"}, "must be 'delete' or 'overexpress'"),
        ({"perturb_type": "inhibit"}, "goes with inhibit and activate, which need it; found None"),
        ({"perturb_rank_shift": 1}, "goes with inhibit and activate"),
        ({"genes_to_perturb": "GATA4"}, "must be 'all' or a list of genes"),
        ({"genes_to_perturb": []}, "must be 'all' or a list of genes"),
        ({"combos": 1, "genes_to_perturb": ["a", "b"]}, "must be 0 for a list, which is perturbed together"),
        ({"combos": 1}, "goes with combos=1, which needs it; found None"),
        ({"anchor_gene": "a"}, "goes with combos=1"),
        ({"emb_mode": "cls_and_gene"}, "Screen twice in place of cls_and_gene"),
        ({"state_embs_dict": {}}, "needs cell_states_to_model"),
        ({"cell_inds_to_perturb": {"start": 0}}, "must be 'all' or {'start_ind': i, 'end_ind': j}"),
        ({"cell_inds_to_perturb": {"start_ind": 3, "end_ind": 3}}, "must be 'all' or"),
        (
            {"cell_inds_to_perturb": {"start_ind": 0, "end_ind": 3}, "cell_states_to_model": TINY},
            "needs state_embs_dict where there are states",
        ),
        ({"emb_layer": 1}, "must be -1 or 0"),
        ({"clear_mem_ncells": 0}, "a whole number from 1 on"),
        ({"job_options": "x"}, "a dict of options of our job"),
    ],
)
def test_perturber_options_that_cannot_be_had(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match="InSilicoPerturber") as caught:
        InSilicoPerturber(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "vs_random"}, "must be 'goal_state_shift' or 'vs_null'"),
        ({"mode": "goal_state_shift"}, "is needed by goal_state_shift"),
        ({"mode": "vs_null", "combos": 1}, "1 goes with mode mixture_model"),
        ({"anchor_gene": "a"}, "goes with combos=1"),
        ({"genes_perturbed": "GATA4"}, "must be 'all' or the list"),
        ({"pickle_suffix": 3}, "an ending of names, or None"),
    ],
)
def test_statistics_options_that_cannot_be_had(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match="InSilicoPerturberStats") as caught:
        InSilicoPerturberStats(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)


class Evil:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("evil"),)  # type: ignore[return-value]


def test_raw_files_that_are_refused(tmp_path: Path, vocabulary: GeneVocabulary) -> None:
    vocabulary.save(str(tmp_path / "v.json"))
    named = {"mode": "aggregate_data", "token_dictionary_file": tmp_path / "v.json"}
    raw = tmp_path / "in" / "x_raw.pickle"
    raw.parent.mkdir()
    for content, options, message in (
        ({(2, "cell_emb"): [1.0]}, {"mode": "aggregate_data"}, "whose dictionary is needed"),
        ({(2, "cell_emb"): [Evil()]}, named, "may hold plain dicts, strings, numbers and numpy scalars only"),
        ({(2, "cell_emb"): np.ones(2)}, named, "plain dicts, strings, numbers"),
        ({(99, "cell_emb"): [1.0]}, named, "every token must be a gene of the dictionary; found 99"),
        ({(2, "cell_emb"): "much"}, named, "are (perturbed, affected) to a list of numbers; found (2, 'cell_emb')"),
        ({"well": {(2, "cell_emb"): [0.1]}}, named, "found shifts by state. Name cell_states_to_model"),
        ({(2, "cell_emb"): [1.0]}, named | {"cell_states_to_model": TINY}, "found similarities. Leave out"),
        ({"well": {}}, named | {"cell_states_to_model": TINY}, "must hold 'other', 'sick', 'well'; found 'well'"),
        ([1], named, "the pickle must hold a dict; found list"),
    ):
        raw.write_bytes(pickle.dumps(content))
        with pytest.raises(InputError) as caught:
            InSilicoPerturberStats(**options).get_stats(tmp_path / "in", None, tmp_path, "x")  # type: ignore[arg-type]
        assert message in str(caught.value)
    assert not Path("evil").exists()
    raw.unlink()
    with pytest.raises(InputError, match=r"must hold screens \(\*\.shifts\) or files of raw shifts \(\*_raw\.pickle\)"):
        InSilicoPerturberStats(**named).get_stats(tmp_path / "in", None, tmp_path, "x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"null_dict_list=\.\.\.\): must be None; found list"):
        InSilicoPerturberStats(**named).get_stats(tmp_path, None, tmp_path, "x", [])  # type: ignore[arg-type]


def test_screens_that_differ_are_not_put_together(place: Place) -> None:
    model, dataset, folder = place
    for kind in ("delete", "overexpress"):
        perturber = InSilicoPerturber(perturb_type=kind, genes_to_perturb=[GENES[0]], emb_mode="cell")
        perturber.perturb_data(model, dataset, folder / "out", "x")
    with pytest.raises(InputError, match="screens of a folder must share kind; found overexpress, not delete"):
        InSilicoPerturberStats("aggregate_data").get_stats(folder / "out", None, folder, "x")
