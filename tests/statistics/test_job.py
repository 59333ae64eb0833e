"""The job: tables in parquet and CSV, names of genes, pictures, reruns, and one clear error for each bad input."""

from pathlib import Path
from typing import Any

import matplotlib.image as mpl_image
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cellray.errors import InputError
from cellray.infer.perturbation_pictures import draw_statistics
from cellray.infer.perturbation_stats import (
    MODES,
    PerturbationStatsConfig,
    few_detections,
    perturbation_stats,
    read_table,
)
from cellray.schema import CorpusManifest, Encoding
from cellray.shift_schema import States
from cellray.statistics.goal_state import goal_state_shift
from cellray.statistics.stream import Options
from cellray.vocabulary import GeneVocabulary
from jobs import perturbation_stats as job
from tests.jobs.test_jobs import run
from tests.statistics.screens import STATES, MemoryStream, gene, random_screen, write_screen
from tests.statistics.test_references import pairs_screen


def config(shifts: str, output: Path, mode: str = "goal_state_shift", **more: object) -> PerturbationStatsConfig:
    return PerturbationStatsConfig(shifts=shifts, mode=mode, output=str(output), **more)


def read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, float_precision="round_trip")


def effects(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return the effect of each perturbation on each other gene of some cells."""
    rng = np.random.default_rng(seed)
    rows = frame.merge(frame[["cell_id", "genes"]].rename(columns={"genes": "affected"}), on="cell_id")
    rows = rows[rows["genes"] != rows["affected"]]
    far = rng.gamma(1, 0.02, len(rows)) * (1 + 5 * (rows["perturbation"] % 3 == 0))
    return rows.assign(similarity=(1 - far).astype(np.float32))


@pytest.fixture
def frame() -> pd.DataFrame:
    return random_screen()


def test_tables_of_all_modes(tmp_path: Path, frame: pd.DataFrame) -> None:
    shifts = write_screen(tmp_path / "s", frame, cuts=(17, 230), effects=effects(frame))
    null = write_screen(tmp_path / "n", random_screen(genes=10, seed=5))
    for mode in MODES:
        more = {"null": null} if mode == "vs_null" else {}
        made = perturbation_stats(config(shifts, tmp_path / mode, mode, **more))
        table, csv = read_table(str(tmp_path / mode)), read_csv(tmp_path / mode / "table.csv")
        assert list(table) == list(csv)
        for column in table:
            ours, theirs = table[column], csv[column]
            assert ours.isna().tolist() == theirs.isna().tolist()
            assert ours.dropna().astype(csv.dtypes[column]).tolist() == theirs.dropna().tolist()
        assert made.genes == len(table) > 0
        assert made.rows_read == len(frame)
        assert "cell_emb" in set(table.get("Affected", ["cell_emb"]))
    table = read_table(str(tmp_path / "goal_state_shift"))
    expected = goal_state_shift(MemoryStream(frame), STATES, Options()).table
    pd.testing.assert_frame_equal(table[expected.columns], expected, rtol=1e-9)
    cells = pq.read_table(tmp_path / "aggregate_data" / "cells.parquet").to_pandas()
    expected = frame.set_index(["cell_id", "genes"])["similarity"].astype(float)
    found = cells.set_index(["cell_id", "Ensembl_ID"])["Cosine_sim"]
    assert found.sort_index().tolist() == expected.sort_index().tolist()


def test_a_rerun_does_nothing_and_other_options_are_refused(tmp_path: Path, frame: pd.DataFrame) -> None:
    shifts = write_screen(tmp_path / "s", frame)
    first = perturbation_stats(config(shifts, tmp_path / "t"))
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "t").iterdir()}
    assert perturbation_stats(config(shifts, tmp_path / "t", block_rows=1000)) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "t").iterdir()} == stamps
    with pytest.raises(InputError, match="must be empty or hold this very result"):
        perturbation_stats(config(shifts, tmp_path / "t", min_detections=3))


def test_names_of_genes(tmp_path: Path, frame: pd.DataFrame, vocabulary: GeneVocabulary) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    vocabulary.save(str(corpus / "vocabulary.json"))
    manifest = CorpusManifest(
        request="", parts=(), software={}, encoding=Encoding(input_size=16, special_tokens={}), sources=(),
        vocabulary_digest=vocabulary.digest, obs_kinds={},
    )  # fmt: skip
    (corpus / "manifest.json").write_bytes(manifest.to_json())
    (tmp_path / "names.csv").write_text(f"gene_id,gene_name\n{gene(1)}.5,ONE\n{gene(2)},TWO\n")
    frame.loc[frame["genes"] == gene(3), "genes"] = f"{gene(1)}|{gene(2)}"
    shifts = write_screen(tmp_path / "s", frame, corpus=str(corpus), corpus_digest=manifest.digest)
    perturbation_stats(config(shifts, tmp_path / "t", gene_names=str(tmp_path / "names.csv")))
    table = read_table(str(tmp_path / "t")).set_index("Ensembl_ID")
    assert list(read_table(str(tmp_path / "t")))[:3] == ["Gene", "Gene_name", "Ensembl_ID"]
    tokens = vocabulary.genes
    assert table.loc[gene(1), ["Gene", "Gene_name"]].tolist() == [str(tokens[gene(1)]), "ONE"]
    assert table.loc[f"{gene(1)}|{gene(2)}", "Gene_name"] == "ONE|TWO"
    assert table.loc[f"{gene(1)}|{gene(2)}", "Gene"] == f"{tokens[gene(1)]}|{tokens[gene(2)]}"
    assert pd.isna(table.loc[gene(4), "Gene_name"])
    assert pd.isna(table.loc[gene(0), "Gene"])


def test_what_is_left_out_is_counted(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.loc[3, "shift:B"] = np.nan
    few = frame["genes"].value_counts()
    least = int(few.min()) + 1
    shifts = write_screen(tmp_path / "s", frame)
    made = perturbation_stats(config(shifts, tmp_path / "t", min_detections=least))
    gone = int((few < least).sum())
    assert made.dropped["rows without a number"] == 1
    assert made.dropped[f"genes with fewer than {least} detections"] == gone
    assert made.genes == 12 - gone


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mode": "vs_null"}, "--mode vs_null and --null go together"),
        ({"null": "x"}, "--mode vs_null and --null go together"),
        ({"pairs": True}, "--pairs goes with --mode mixture_model"),
        ({"mode": "mixture_model", "anchor": "g"}, "--anchor needs --pairs"),
        ({"mode": "mixture_model", "measure": "before:x"}, "--measure before:x is what cells were before the edit"),
        ({"mode": "aggregate_gene_shifts", "donor": "donor"}, "no donor level"),
    ],
)
def test_options_that_belong_together(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerturbationStatsConfig(**{"shifts": "s", "mode": "goal_state_shift", "output": "o", **more})


def test_bad_input(tmp_path: Path, frame: pd.DataFrame) -> None:
    shifts = write_screen(tmp_path / "s", frame)
    start = write_screen(tmp_path / "start", frame, states=States(start="A"))
    plain = write_screen(tmp_path / "plain", frame.drop(columns="donor"), states=None)
    one = write_screen(tmp_path / "one", frame[frame["genes"] == gene(2)])
    other = write_screen(tmp_path / "other", frame.assign(genes="ENSG99999999999"))
    lone = write_screen(tmp_path / "lone", pairs_screen().query("genes.str.contains('|', regex=False)"), states=None)
    two = write_screen(tmp_path / "two", frame.assign(donor=np.where(frame["donor"] == "d1", "d1", "d2")))
    empty = write_screen(tmp_path / "empty", frame.iloc[:0])
    same = write_screen(tmp_path / "same", frame.assign(similarity=np.float32(1)))
    damaged = write_screen(tmp_path / "damaged", frame)
    (tmp_path / "damaged" / "shards" / "0.parquet").write_bytes(b"no parquet")
    cut = write_screen(tmp_path / "cut", frame)
    short = write_screen(tmp_path / "short", frame.iloc[:5])
    (tmp_path / "cut" / "shards" / "0.parquet").write_bytes(Path(short, "shards", "0.parquet").read_bytes())
    for screen, more, message in (
        (plain, {}, "needs a screen with a goal state; found none"),
        (start, {}, "only the start state 'A'"),
        (one, {}, "needs several perturbations"),
        (two, {"donor": "donor"}, "need 3 donors or more; found 2"),
        (shifts, {"donor": "sex"}, "--donor sex must be an obs column"),
        (plain, {"donor": "donor"}, "must be an obs column of the screen"),
        (shifts, {"mode": "vs_null", "null": other}, "must perturb genes of the test screen"),
        (shifts, {"mode": "vs_null", "null": two, "donor": "donor"}, "donors or more that are in both"),
        (shifts, {"mode": "vs_null", "null": plain, "measure": "shift:B"}, "--measure must be one of 'similarity'"),
        (shifts, {"mode": "mixture_model", "measure": "shift:X"}, "'shift:A', 'shift:B', 'shift:C', 'similarity'"),
        (shifts, {"mode": "mixture_model", "pairs": True}, "needs perturbations of two genes"),
        (lone, {"mode": "mixture_model", "pairs": True}, "must be perturbed alone too"),
        (lone, {"mode": "mixture_model", "pairs": True, "anchor": gene(9)}, f"no pair with {gene(9)}"),
        (same, {"mode": "mixture_model"}, "12 perturbations with 1 different means"),
        (shifts, {"mode": "aggregate_gene_shifts"}, "needs gene effects"),
        (shifts, {"min_detections": 1000}, "must have 1,000 cells or more"),
        (empty, {}, "a screen must have rows"),
        (damaged, {}, "hold all its parts, unharmed"),
        (cut, {}, f"found 5 of {len(frame):,} rows"),
        (str(tmp_path), {}, "holds manifest.json"),
        (shifts, {"gene_names": str(tmp_path / "no.csv")}, "no such file"),
    ):
        with pytest.raises(InputError) as caught:
            perturbation_stats(config(screen, tmp_path / "out", **more))
        assert message in str(caught.value), message
        if (tmp_path / "out").exists():
            (tmp_path / "out" / "request.json").unlink(missing_ok=True)


def test_null_screens_of_other_numbers_are_refused_and_other_cells_noted(tmp_path: Path, frame: pd.DataFrame) -> None:
    shifts = write_screen(tmp_path / "s", frame)
    null = random_screen(genes=10, seed=5)
    for changes, measure, message in (
        ({"model_digest": "x"}, "similarity", "both screens must have one --model; found x in the null screen"),
        ({"layer": 0}, "similarity", "both screens must have one --layer; found 0 in the null screen, -1 in the test"),
        ({"pooling": "cls"}, "shift:B", "both screens must have one --pooling; found cls"),
        ({"states": States(start="A", goal="C", alternatives=("B",))}, "shift:B", "one --goal; found C"),
    ):
        other = write_screen(tmp_path / "-".join(changes), null, **changes)
        with pytest.raises(InputError) as caught:
            perturbation_stats(config(shifts, tmp_path / "out", "vs_null", null=other, measure=measure))
        assert message in str(caught.value)
    like = write_screen(tmp_path / "like", null, kind="overexpress", states=STATES.model_copy(update={"start": "C"}))
    made = perturbation_stats(config(shifts, tmp_path / "noted", "vs_null", null=like))
    assert made.notes["differences"] == {"kind": ["delete", "overexpress"], "start": ["A", "C"]}
    same = write_screen(tmp_path / "same", null)
    assert "differences" not in perturbation_stats(config(shifts, tmp_path / "t", "vs_null", null=same)).notes


def test_repeated_cell_names_cannot_be_joined(tmp_path: Path) -> None:
    frame = pairs_screen()
    shifts = write_screen(tmp_path / "s", pd.concat([frame, frame]), states=None)
    with pytest.raises(InputError, match="cells are joined by their names"):
        perturbation_stats(config(shifts, tmp_path / "t", "mixture_model", pairs=True))


def test_pictures(tmp_path: Path, frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    shifts = write_screen(tmp_path / "s", frame, effects=effects(frame))
    pairs = write_screen(tmp_path / "p", pairs_screen(), states=None)
    null = write_screen(tmp_path / "n", random_screen(genes=10, seed=5))
    expected = {
        "goal_state_shift": {"ranked_shifts", "volcano", "volcano_matched", "volcano_donors"},
        "vs_null": {"ranked_shifts", "volcano"},
        "mixture_model": {"ranked_shifts"},
        "aggregate_data": {"ranked_shifts"},
        "aggregate_gene_shifts": {"gene_effects"},
        "pairs": {"pairs"},
    }
    for name, pictures in expected.items():
        mode, screen = ("mixture_model", pairs) if name == "pairs" else (name, shifts)
        more = {"null": null} if mode == "vs_null" else {}
        donor = {} if mode == "aggregate_gene_shifts" else {"donor": "donor"}
        perturbation_stats(config(screen, tmp_path / name, mode, pairs=name == "pairs", **more, **donor))
        draw_statistics(str(tmp_path / name), str(tmp_path / f"{name}_png"))
        found = {path.stem: mpl_image.imread(path).shape for path in (tmp_path / f"{name}_png").iterdir()}
        assert set(found) == pictures
        assert all(200 < size < 3000 for shape in found.values() for size in shape[:2])


def test_rows_of_few_cells_at_the_head_are_warned_of(tmp_path: Path) -> None:
    """Twelve genes of three cells each, but one of nine; the larger changes come first."""
    cells = [(i, g) for g in range(12) for i in range(9 if g == 1 else 3)]
    many = random_screen(genes=12).iloc[: len(cells)]
    frame = many.assign(
        cell_id=[f"c{i}" for i, _ in cells],
        genes=[gene(g) for _, g in cells],
        similarity=np.array([1 - 0.01 * g for _, g in cells], np.float32),
    )
    shifts, output = write_screen(tmp_path / "s", frame), str(tmp_path / "t")
    perturbation_stats(config(shifts, tmp_path / "t", "aggregate_data"))
    assert read_table(output)["Ensembl_ID"].tolist() == [gene(g) for g in range(11, -1, -1)]
    assert few_detections(output) == (
        "11 of the first 12 rows were detected in fewer than 5 cells: --min-detections 5 leaves them out"
    )
    perturbation_stats(config(shifts, tmp_path / "five", "aggregate_data", min_detections=5))
    assert few_detections(str(tmp_path / "five")) is None


def test_the_command_line(tmp_path: Path, frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    shifts, output = write_screen(tmp_path / "s", frame), str(tmp_path / "t")
    argv = ["--shifts", shifts, "--mode", "goal_state_shift", "--output", output]
    assert run("perturbation_stats", PerturbationStatsConfig, job.main, *argv) == 0
    assert capsys.readouterr().out == f"{output}: goal_state_shift, 12 rows from {len(frame)} shifts\n"
    argv[3] = "median"
    assert run("perturbation_stats", PerturbationStatsConfig, job.main, *argv) == 2
    assert "--mode 'median'" in capsys.readouterr().err
