"""Screens without Ray: every kind of model, probabilities, bad input, lacking genes, progress, unfinished ones."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cellray.config import parse_config
from cellray.data import progress, units
from cellray.data.parts import make_part
from cellray.errors import InputError
from cellray.infer.partial import PartialScreen, read_partial
from cellray.infer.perturbation_pictures import draw_statistics
from cellray.infer.perturbation_stats import PerturbationStatsConfig, perturbation_stats, read_table
from cellray.infer.screen import ScreenConfig, screen
from cellray.infer.screen_plan import Cost, ScreenPlan
from cellray.infer.shift_tables import ShiftTable
from cellray.model.annotator import AnnotatedEncoder
from cellray.model.annotator_directory import load_annotator
from cellray.model.checkpoint import ModelDirectory
from cellray.model.encoder import load_encoder
from cellray.model.heads import HeadSpec
from cellray.prefilter_schema import PrefilterManifest
from cellray.vocabulary import GeneVocabulary
from jobs import inspect_corpus, perturb
from tests.conftest import GENES
from tests.data.corpora import rows_of, tokenized
from tests.infer.tiny import AGE, DISEASE, DOSAGE, cells_of, corpus_in, model_in, screened, softmax

TOWARDS = {"state_column": "state", "start": "sick", "goal": "well"}
PREDICTIONS = ("disease.probability.sick", "disease.probability.well", "age")


def told(loaded: AnnotatedEncoder, ids: list[int]) -> list[float]:
    """Ask the heads about one row alone."""
    with torch.no_grad():
        logits = {name: value[0].double().numpy() for name, value in loaded(torch.tensor([ids])).items()}
    return [*softmax(logits["disease"]), float(logits["age"]) * AGE.std + AGE.mean]


@pytest.mark.parametrize("pooling", ["cell", "cls", "attention"])
def test_probabilities_are_those_of_each_row_alone(vocabulary_v2: GeneVocabulary, tmp_path: Path, pooling: str) -> None:
    """By the head's own layer and pooling, whatever the screen's are; insertions are compared with the cut row."""
    corpus = corpus_in(tmp_path, vocabulary_v2)
    model = model_in(tmp_path, vocabulary_v2, DISEASE, DOSAGE, AGE, pooling=pooling)
    options = {"kind": "overexpress", "genes": (GENES[3], GENES[28]), "together": True, "token_budget": 64}
    manifest, table = screened(corpus, model, tmp_path / "shifts", **options, probabilities=True)
    assert manifest.predictions == PREDICTIONS
    cells = {row["cell_id"]: list(row["input_ids"]) for row in rows_of(corpus)}  # type: ignore[call-overload]
    listed = [vocabulary_v2.genes[GENES[3]], vocabulary_v2.genes[GENES[28]]]
    loaded, shortened = load_annotator(ModelDirectory.open(model)), 0
    for _, row in table.iterrows():
        genes = cells[row["cell_id"]][1:-1]
        missing = sum(token not in genes for token in listed)
        reference = genes[: 14 - missing]
        edited = [*listed, *(token for token in genes if token not in listed)][:14]
        shortened += len(reference) < len(genes)
        cls, eos = cells[row["cell_id"]][0], cells[row["cell_id"]][-1]
        before, after = told(loaded, [cls, *reference, eos]), told(loaded, [cls, *edited, eos])
        assert np.allclose([row[f"before:{name}"] for name in PREDICTIONS], before, atol=1e-4)
        assert np.allclose([row[f"change:{name}"] for name in PREDICTIONS], np.subtract(after, before), atol=1e-4)
    assert shortened > 0
    without, other = screened(corpus, model, tmp_path / "without", **options)
    assert not without.predictions
    assert table[other.columns].equals(other)
    _, low = screened(corpus, model, tmp_path / "half", **options, probabilities=True, precision="bf16")
    assert np.abs(low["change:disease.probability.sick"] - table["change:disease.probability.sick"]).max() < 0.05


def test_probabilities_go_into_the_statistics(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary, DISEASE)
    _, table = screened(corpus, model, tmp_path / "shifts", probabilities=True, **TOWARDS, cells_per_part=3)
    measure = "change:disease.probability.well"
    ShiftTable.open(str(tmp_path / "shifts")).require_measure(measure)
    perturbation_stats(
        PerturbationStatsConfig(
            shifts=str(tmp_path / "shifts"), mode="aggregate_data", measure=measure, output=str(tmp_path / "table")
        )
    )
    found = read_table(str(tmp_path / "table")).set_index("Ensembl_ID")
    means = table.groupby("genes")[measure].mean()
    column = next(name for name in found.columns if name.endswith("_mean"))
    assert np.allclose(found[column].astype(float), means.reindex(found.index), atol=1e-6)


@pytest.mark.parametrize("heads", [(), (DISEASE,), (DOSAGE,), (DISEASE, DOSAGE, AGE)])
@pytest.mark.parametrize("layer", [0, -1])
def test_every_kind_of_model(
    vocabulary: GeneVocabulary, tmp_path: Path, heads: tuple[HeadSpec, ...], layer: int
) -> None:
    """Pretrained, cell, gene and multitask models: the encoder's embeddings, whatever stands on it."""
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary, *heads)
    _, table = screened(corpus, model, tmp_path / "shifts", layer=layer, max_cells=2)
    encoder = load_encoder(ModelDirectory.open(model), layer)
    cells = {row["cell_id"]: list(row["input_ids"]) for row in rows_of(corpus)}  # type: ignore[call-overload]
    for _, row in table.iloc[::5].iterrows():
        ids, token = cells[row["cell_id"]], vocabulary.genes[row["genes"]]
        kept = [i for i, other in enumerate(ids) if other != token]
        with torch.no_grad():
            before = encoder(torch.tensor([ids]))[0][kept]
            after = encoder(torch.tensor([[ids[i] for i in kept]]))[0]
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=1).mean()
        assert row["similarity"] == pytest.approx(float(cosine), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": ("ENSG9",)}, "--genes: every gene must be in the vocabulary; found 'ENSG9'"),
        ({"genes": ("all",), "anchor": ("ENSG9",)}, "--anchor: every gene must be in the vocabulary"),
        (
            {"genes": (GENES[2],), "anchor": (GENES[2], GENES[3])},
            "--genes: there must be genes beside those of --anchor",
        ),
        ({"genes": (GENES[1], GENES[2], GENES[1])}, f"a gene may be listed once only; found '{GENES[1]}'"),
        ({**TOWARDS, "goal": "dead"}, "--goal must be a state with cells; found 'dead'; 'state' holds 'other'"),
        ({**TOWARDS, "start": "dead"}, "--start must be a state with cells; found 'dead'"),
        ({**TOWARDS, "alternatives": ("dead",)}, "--alternatives must be a state with cells; found 'dead'"),
        ({**TOWARDS, "state_column": "status"}, "--state-column must name an obs column the corpus kept"),
        ({"pooling": "cls"}, "--pooling cls: the vocabulary must have <cls>; found a V1 vocabulary"),
        ({"genes": tuple(GENES[:10]), "pairs": True}, "a design may have at most 40 perturbations; found 45"),
        ({"probabilities": True}, "needs a model with a head at cell level; found it tells dosage of each gene"),
        ({"gene_names": "nowhere.csv"}, "nowhere.csv: the table must exist"),
        ({"state_embeddings": "x.parquet", "start": "a", "goal": "b"}, "x.parquet: --state-embeddings names a parquet"),
    ],
)
def test_bad_input_is_one_clear_error(
    vocabulary: GeneVocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    message: str,
) -> None:
    monkeypatch.setattr("cellray.infer.design.MOST_LISTED", 40)
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary, DOSAGE)
    with pytest.raises(InputError) as caught:
        screened(corpus, model, tmp_path / "shifts", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "shifts").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--effects", "--pooling", "cls"), "--effects needs --pooling cell"),
        (("--state-column", "s", "--start", "a", "--goal", "a"), "must be different states"),
        (("--state-embeddings", "f"), "--state-embeddings needs --start and --goal"),
        (("--state-embeddings", "f", "--start", "a", "--goal", "a"), "must be different states"),
        (("--start", "a"), "--state-column, --start and --goal go together"),
        (("--actors", "0,2"), "--actors 0,2: at least 1"),
        (("--genes", "A,B", "--together", "--anchor", "C"), "--together, --pairs and --anchor: one of them at most"),
        (("--genes", "A,B", "--pairs", "--anchor", "C"), "--together, --pairs and --anchor: one of them at most"),
        (("--genes", "A,B", "--together", "--pairs"), "--together, --pairs and --anchor: one of them at most"),
    ],
)
def test_options_that_do_not_go_together(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(ScreenConfig, ["--corpus", "c", "--model", "m", "--output", "o", *argv], "python -m jobs.perturb")
    assert message in str(caught.value)


def test_an_obs_column_may_not_hide_a_measure(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    adata = cells_of()
    adata.obs["rank"] = 1
    adata.write_h5ad(tmp_path / "c.h5ad")
    corpus = tokenized([tmp_path / "c.h5ad"], vocabulary, tmp_path / "corpus", ("rank",))
    with pytest.raises(InputError, match="may not bear a name of the shifts' own; found 'rank'"):
        screened(corpus, model_in(tmp_path, vocabulary), tmp_path / "shifts")


def test_cells_that_lack_a_gene_or_are_too_short(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    """Groups are deleted where all genes are there and something is left; what does not apply is counted and named."""
    adata = cells_of()
    counts = adata.X.toarray()
    counts[3], counts[[3, 7], :3] = 0, 500  # all that cell 3 has another one has, too
    adata.X = type(adata.X)(counts)
    corpus, model = corpus_in(tmp_path, vocabulary, adata), model_in(tmp_path, vocabulary)
    cells = {row["cell_id"]: set(row["input_ids"]) for row in rows_of(corpus)}  # type: ignore[call-overload]
    shortest = min(cells, key=lambda name: len(cells[name]))
    genes = [vocabulary.gene_of_token[token] for token in sorted(cells[shortest])]
    manifest, table = screened(corpus, model, tmp_path / "whole", genes=tuple(genes), together=True)
    lacks = {name: [g for g in genes if vocabulary.genes[g] not in own] for name, own in cells.items()}
    assert manifest.lacking is not None
    assert list(manifest.lacking.named) == [name for name, lacking in lacks.items() if lacking]
    assert manifest.lacking.cells == len(manifest.lacking.named) < len(cells)
    assert manifest.lacking.genes == {g: n for g in genes if (n := sum(g in found for found in lacks.values()))}
    perturbed = {name for name, lacking in lacks.items() if not lacking and len(cells[name]) > len(genes)}
    assert "cell7" in perturbed
    assert set(table["cell_id"]) == perturbed  # the shortest cell has nothing left
    counted = sum(part.counts.get("perturbations that do not apply to a cell", 0) for part in manifest.parts)
    assert counted == len(cells) - len(perturbed)
    assert shortest not in perturbed
    every, _ = screened(corpus, model, tmp_path / "all", max_cells=2)
    assert every.lacking is None
    anchored, _ = screened(corpus, model, tmp_path / "anchored", anchor=(genes[0],), **TOWARDS)
    sick = {row["cell_id"] for row in rows_of(corpus) if row["state"] == "sick"}
    assert anchored.lacking is not None
    assert set(anchored.lacking.named) == {n for n in sick if vocabulary.genes[genes[0]] not in cells[n]}


def test_names_are_bounded(vocabulary: GeneVocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellray.infer.lacking.MOST_NAMED", 3)
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary)
    manifest, _ = screened(corpus, model, tmp_path / "s", genes=tuple(GENES[:16]), together=True, kind="overexpress")
    assert manifest.lacking is not None
    assert (manifest.lacking.cells, len(manifest.lacking.named)) == (18, 3)


def test_screens_without_a_row_are_no_screens(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    """A set that no cell can hold is refused before, one that no cell happens to hold after, with a reason."""
    adata = cells_of()
    counts = adata.X.toarray()
    counts[:, 7] = 0
    adata.X = type(adata.X)(counts)
    corpus, model = corpus_in(tmp_path, vocabulary, adata), model_in(tmp_path, vocabulary)
    with pytest.raises(InputError, match="hold 16 genes at most; found 17 that are perturbed together"):
        screened(corpus, model, tmp_path / "long", genes=tuple(GENES[:17]), together=True, kind="overexpress")
    with pytest.raises(InputError, match="hold 16 genes at most; found 17"):
        screened(corpus, model, tmp_path / "anchored", anchor=tuple(GENES[:16]), kind="overexpress")
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            screened(corpus, model, tmp_path / "none", genes=(GENES[7], GENES[8]), together=True)
        assert f"must apply to some cell; found none of 18; all cells lack '{GENES[7]}'" in str(caught.value)
    assert not (tmp_path / "none" / "manifest.json").exists()


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_an_anchor_with_each_other_gene_of_a_cell_can_be_analysed(
    vocabulary: GeneVocabulary, tmp_path: Path, kind: str
) -> None:
    """The screen holds the anchor alone and each gene alone, as the statistics of pairs need."""
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary)
    anchor = vocabulary.gene_of_token[int(rows_of(corpus)[0]["input_ids"][3])]  # type: ignore[index]
    options = {"kind": kind, "anchor": (anchor,), "max_perturbations": 6, "max_cells": 9}
    _, table = screened(corpus, model, tmp_path / "s", **options)
    assert not table.duplicated(["cell_id", "perturbation"]).any()
    assert not table.duplicated(["cell_id", "genes"]).any()
    _, single = screened(corpus, model, tmp_path / "plain", kind=kind, max_perturbations=6, max_cells=9)
    both = table.merge(single, on=["cell_id", "perturbation", "genes", "rank"], suffixes=("", "_alone"))
    assert len(both) >= len(single) - 9 * (kind == "overexpress")
    assert np.allclose(both["similarity"], both["similarity_alone"], atol=1e-6)
    output = str(tmp_path / "table")
    perturbation_stats(
        PerturbationStatsConfig(
            shifts=str(tmp_path / "s"), mode="mixture_model", pairs=True, anchor=anchor, output=output
        )
    )
    found = read_table(output).set_index("Ensembl_ID")
    wide = table.pivot_table(index="cell_id", columns="genes", values="similarity")
    pairs = [name for name in wide if "|" in name and wide[[anchor, *name.split("|"), name]].notna().all(axis=1).any()]
    assert set(found.index) == {name.split("|")[1] for name in pairs}
    for name in pairs:
        own = wide[[anchor, name.split("|")[1], name]].dropna()
        difference = own[name] - (own[anchor] + own[name.split("|")[1]] - 1)
        row = found.loc[name.split("|")[1]]
        assert (row["N_Detections"], row["Anchor_Ensembl_ID"]) == (len(own), anchor)
        assert float(row["Combo_minus_sum_shift"]) == pytest.approx(difference.mean(), abs=1e-6)


def test_a_dry_run_counts_all_passes_and_tells_when_estimates_do_not_pay(
    vocabulary: GeneVocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary, DISEASE)
    lengths = {row["cell_id"]: len(row["input_ids"]) for row in rows_of(corpus)}  # type: ignore[arg-type]

    def plan(**options: object) -> ScreenPlan:
        made = screen(ScreenConfig(corpus=corpus.uri, model=model, output="o", actors="0", dry_run=True, **options))
        assert isinstance(made, ScreenPlan)
        return made

    whole, squares = sum(lengths.values()), sum(length**2 for length in lengths.values())
    plain = plan()
    assert (plain.copies, plain.tokens) == (whole, squares)
    assert plain.other == {"unperturbed cells": Cost(18, whole)}
    more = plan(probabilities=True, **TOWARDS, state_statistic="median")
    sick = sum(lengths[f"cell{i}"] for i in range(0, 18, 3))
    assert more.other["states"] == Cost(18, whole)
    assert more.other["what heads tell"].rows == more.copies + 6 == sick + 6
    assert more.whole.tokens == 2 * more.tokens + 2 * sick + whole
    with caplog.at_level(logging.WARNING, "cellray"):
        assert "states" not in plan(evaluate=1, sample=1).other
        assert not caplog.messages
        few = plan(exact=False, evaluate=1, sample=3)
    assert (few.copies, few.other["estimates"]) == (4 * 18, Cost(42 * 18, 42 * whole))
    assert caplog.messages[0].startswith("--no-exact costs more here than all perturbations: ")
    options = ScreenConfig(corpus=corpus.uri, model=model, output="o", actors="0", dry_run=True, exact=False, sample=3)
    assert "forward passes besides: 756 for estimates, 18 for unperturbed cells; " in perturb.main(options)
    made = screen(options.model_copy(update={"dry_run": False, "evaluate": 1, "output": str(tmp_path / "few")}))
    assert isinstance(made, PrefilterManifest)
    assert made.report["forward passes"]["estimates"] == few.other["estimates"].rows


class KilledError(Exception):
    """Stands for a kill."""


def break_off(monkeypatch: pytest.MonkeyPatch, place: str, after: int) -> None:
    """Let the process die after some parts of a screen."""
    done = []

    def make(unit, worker, output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if output == place and len(done) == after:
            raise KilledError
        done.extend([unit] * (output == place))
        return make_part(unit, worker, output)

    monkeypatch.setattr(units, "make_part", make)


def test_what_an_unfinished_screen_has_is_readable(
    vocabulary: GeneVocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary)
    output = str(tmp_path / "shifts")
    config = ScreenConfig(corpus=corpus.uri, model=model, output=output, actors="0", cells_per_part=2, **TOWARDS)
    plan = screen(config.model_copy(update={"dry_run": True}))
    weights = list(plan.work.values())  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"a screen that was begun holds screen\.json"):
        PartialScreen.open(output)
    with monkeypatch.context() as patched:
        break_off(patched, output, after=2)
        with pytest.raises(KilledError):
            screen(config)
    begun = PartialScreen.open(output)
    assert (len(begun.parts), begun.note.units, begun.note.cells) == (2, len(weights), 6)
    assert begun.done == sum(weights[:2])  # no special tokens here: the plan is exact
    assert begun.note.perturbations == sum(weights)
    shown = inspect_corpus.main(inspect_corpus.InspectConfig(corpus=output))
    assert f"not finished: 2 of {len(weights)} parts, {begun.done} of at most {sum(weights)} perturbations" in shown
    partial = read_partial(output)
    monkeypatch.setattr("cellray.data.progress._LOG_EVERY_S", 0)
    with caplog.at_level(logging.INFO, "cellray"):
        manifest = screen(config)
    told = [message for message in caplog.messages if message.startswith("perturb: ") and " left" in message]
    assert len(told) == len(weights) - 2
    for number, message in enumerate(told):
        assert message.startswith(f"perturb: {sum(weights[: number + 3])} of {sum(weights)} perturbations, ")
    assert told[-1].endswith("perturbations/s, 0 s left")
    whole = pd.concat([pd.read_parquet(tmp_path / "shifts" / part.path) for part in manifest.parts])
    keys = ["cell_id", "perturbation"]
    both = partial.merge(whole, on=keys, suffixes=("", "_whole"))
    assert len(both) == len(partial) < len(whole)
    assert both["similarity"].equals(both["similarity_whole"])
    finished = inspect_corpus.main(inspect_corpus.InspectConfig(corpus=output))
    assert f"{output}: {len(whole)} shifts, digest" in finished
    assert "left out: 12 cells not of the start state" in finished
    (tmp_path / "shifts" / "screen.json").unlink()  # made by an earlier version
    assert inspect_corpus.main(inspect_corpus.InspectConfig(corpus=output)) == finished


def test_prefiltered_screens_are_told_too(
    vocabulary: GeneVocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, model, output = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary), str(tmp_path / "few")
    few = {"exact": False, "evaluate": 2, "sample": 3, "cells_per_part": 2, "max_cells": 6, "actors": "0"}
    config = ScreenConfig(corpus=corpus.uri, model=model, output=output, **few)
    for place, estimates, parts in ((f"{output}.estimates", 1, 0), (output, None, 2)):
        with monkeypatch.context() as patched:
            break_off(patched, place, after=parts or 1)
            with pytest.raises(KilledError):
                screen(config)
        shown = inspect_corpus.main(inspect_corpus.InspectConfig(corpus=output, verify=True)).split("\n")
        units = PartialScreen.open(output).note.units
        assert shown[1] == f"estimates: {estimates or units} of {units} parts"
        assert f"not finished: {parts} of {units} parts, " in shown[2]
        assert " of about 30 perturbations, " in shown[2]
        assert len(read_partial(output)) == sum(part.rows for part in PartialScreen.open(output).parts)
    made = screen(config)
    shown = inspect_corpus.main(inspect_corpus.InspectConfig(corpus=output, verify=True)).split("\n")
    assert shown[-1] == f"{output}: {made.rows} shifts, digest {made.digest[:12]}"  # type: ignore[union-attr]
    assert any("forward passes, " in line for line in shown)
    (tmp_path / "few" / "genes.csv").write_text("x")
    with pytest.raises(InputError, match=r"every part must be the one that was written; found 'genes\.csv'"):
        inspect_corpus.main(inspect_corpus.InspectConfig(corpus=output, verify=True))


def test_a_record_that_was_cut_short_does_not_count(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary)
    screened(corpus, model, tmp_path / "s", cells_per_part=5)
    first, second = sorted((tmp_path / "s" / "records").iterdir())[:2]
    rows = json.loads(first.read_text())["rows"]
    first.write_text(first.read_text()[:20])
    assert len(read_partial(str(tmp_path / "s"))) == sum(
        json.loads(path.read_text())["rows"] for path in (tmp_path / "s" / "records").iterdir() if path != first
    )
    assert rows > 0
    options = inspect_corpus.InspectConfig(corpus=str(tmp_path / "s"), verify=True)
    assert "shifts, digest" in inspect_corpus.main(options)
    with pytest.raises(InputError, match="it must be a token corpus; found perturbation shifts"):
        inspect_corpus.main(options.model_copy(update={"statistics": True}))
    part = tmp_path / "s" / "shards" / f"{second.stem}.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=f"every part must be the one that was written; found 'shards/{second.stem}"):
        inspect_corpus.main(options)


def test_rate_and_time_left_leave_out_what_was_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    seen = progress.Progress("perturb", 1000, "perturbations", done=600)
    with caplog.at_level(logging.INFO, "cellray"):
        clock[0] += 10
        seen.add(0)
        seen.add(100)
        clock[0] += 20
        seen.add(200)
    assert caplog.messages == [
        "perturb: 700 of 1,000 perturbations, 10 perturbations/s, 30 s left",
        "perturb: 900 of 1,000 perturbations, 10 perturbations/s, 10 s left",
    ]


def test_names_of_perturbations_go_into_shifts_and_statistics(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary)
    file = tmp_path / "sets.toml"
    file.write_text(f'"Yamanaka" = ["{GENES[1]}", "{GENES[2]}"]\nother = ["{GENES[3]}"]\nthird = ["{GENES[28]}"]\n')
    options = {"kind": "overexpress", "perturbations": str(file), "effects": True}
    manifest, table = screened(corpus, model, tmp_path / "s", **options)
    assert manifest.design["named"]
    asked = {f"{GENES[1]}|{GENES[2]}": "Yamanaka", GENES[3]: "other", GENES[28]: "third"}
    assert table["name"].tolist() == table["genes"].map(asked).tolist()
    for mode in ("mixture_model", "aggregate_data", "aggregate_gene_shifts"):
        output = str(tmp_path / mode)
        perturbation_stats(PerturbationStatsConfig(shifts=str(tmp_path / "s"), mode=mode, output=output))
        found = read_table(output)
        assert found["Perturbation_name"].tolist() == found["Ensembl_ID"].map(asked).tolist()
    assert draw_statistics(str(tmp_path / "aggregate_data"), str(tmp_path / "pictures"))
    cells = pd.read_csv(tmp_path / "aggregate_data" / "cells.csv")
    assert set(cells["Perturbation_name"]) == set(asked.values())
    unnamed, plain = screened(corpus, model, tmp_path / "plain", kind="overexpress", genes=(GENES[3],))
    assert (unnamed.design["named"], "name" in plain) == (False, False)
    clash = cells_of()
    clash.obs["name"] = "x"
    clash.write_h5ad(tmp_path / "clash.h5ad")
    other = tokenized([tmp_path / "clash.h5ad"], vocabulary, tmp_path / "clash", ("name",))
    with pytest.raises(InputError, match="may not bear a name of the shifts' own; found 'name'"):
        screened(other, model, tmp_path / "t", **options)
    screened(other, model, tmp_path / "u", kind="overexpress", genes=(GENES[3],))
