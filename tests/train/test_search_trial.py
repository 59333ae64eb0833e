"""A trial in one process: reports its best so far, never sees the test part, goes on where it was cut off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellray import storage
from cellray.data.corpora.corpus import Corpus
from cellray.models import open_model
from cellray.train.feed import spans
from cellray.train.finetune import FinetuneConfig
from cellray.train.finetune_plan import FinetunePlan
from cellray.train.folds import TEST
from cellray.train.search.plans import TrialJob
from cellray.train.search.trial import Judge, SilentSession, TrialSession, run_trial
from cellray.train.tasks.table import read_task
from cellray.train.worker import run_plan
from tests.train.local import CPU
from tests.train.test_finetune import CELLS, CLASSES, labelled, parent

__all__ = ["labelled", "parent"]  # fixtures of another file

pytestmark = pytest.mark.usefixtures("ray_session")  # the corpus is made with it
VALUES = {"learning_rate": 3e-3, "dropout": 0.0}


@pytest.fixture
def job(labelled: str, parent: str, tmp_path: Path) -> TrialJob:
    (tmp_path / "task.toml").write_text(CLASSES)
    base = FinetuneConfig(
        corpus=labelled,
        model=parent,
        task=str(tmp_path / "task.toml"),
        output=str(tmp_path / "out"),
        epochs=4,
        batch_size=16,
        monitor="macro_f1",
    )
    return TrialJob(
        base=base,
        model=open_model(parent)[1],
        task=read_task(base.task),
        objectives=("macro_f1", "ece"),
        folder=str(tmp_path / "trials"),
        request="0" * 64,
        gpu=False,
        threads=1,
        distributed=False,
    )


def test_a_trial_reports_what_its_best_step_reached(job: TrialJob) -> None:
    reports: list[dict[str, Any]] = []
    run_trial(job, VALUES, "00000", reports.append)
    *validated, last = reports
    assert [each["validation"] for each in validated] == [1, 2, 3, 4]
    history = [(told["macro_f1"], told["ece"]) for told in (dict(each["metrics"]) for each in validated)]
    for n, each in enumerate(validated, start=1):
        best = max(range(n), key=lambda i: history[i][0])  # the first of equals, as the loop takes it
        assert (each["value_0"], each["value_1"]) == history[best]
    assert last["ended"]
    assert last["error"] == ""
    assert (last["value_0"], last["value_1"]) == (validated[-1]["value_0"], validated[-1]["value_1"])


def test_the_test_part_is_seen_once_the_trial_is_chosen(job: TrialJob) -> None:
    run_trial(job, VALUES, "00000", lambda _: None)
    (plan,) = job.plans(VALUES, "00000")
    assert not storage.exists(plan.answers_uri)
    train, held = plan.selections()
    used = {
        span.first + int(i)
        for span in spans(Corpus.open(job.base.corpus))
        for i in np.flatnonzero(train(span) | held(span))
    }
    tested = set(plan.opened.folds.rows(0, TEST))
    assert not used & tested
    assert len(used) + len(tested) == CELLS
    before = plan.store().steps()
    outcome = run_plan(plan.concluding(), SilentSession(), CPU)
    assert plan.store().steps() == before  # nothing more is trained
    assert outcome.best_step in before
    (result,) = plan.opened.results([plan.answers()])
    assert result.pooled.n == len(tested)


def test_a_trial_that_was_cut_off_ends_as_if_it_had_not_been(job: TrialJob) -> None:
    straight: list[dict[str, Any]] = []
    run_trial(job, VALUES, "straight", straight.append)

    reports: list[dict[str, Any]] = []

    class Cut(BaseException):
        """Ends the process, as far as the trial can tell."""

    def cut(report: dict[str, Any]) -> None:
        reports.append(report)
        if report["validation"] == 2:
            raise Cut

    with pytest.raises(Cut):
        run_trial(job, VALUES, "cut", cut)
    rest: list[dict[str, Any]] = []
    run_trial(job, VALUES, "cut", rest.append)
    assert rest[0]["validation"] in {2, 3}  # the second checkpoint may not have been written
    assert rest[-1] == straight[-1]


FOLDS = f"{CLASSES}folds = 2\n"


@pytest.fixture
def folds_job(job: TrialJob, tmp_path: Path) -> TrialJob:
    (tmp_path / "folds.toml").write_text(FOLDS)
    return replace(job, task=read_task(str(tmp_path / "folds.toml")))


def cells_of(plan: FinetunePlan) -> tuple[set[int], set[int]]:
    """Return the cells a plan trains on, and those it validates on."""
    pairs = [(span, plan.selections()) for span in spans(Corpus.open(plan.corpus))]
    train, held = ({span.first + int(i) for span, pair in pairs for i in np.flatnonzero(pair[k](span))} for k in (0, 1))
    return train, held


def test_a_trial_over_inner_folds_reports_their_mean(folds_job: TrialJob) -> None:
    """Cut off after the first fold, it goes on with the second one and ends as if it had not been."""
    plans = folds_job.plans(VALUES, "00000")
    tested = set(plans[0].opened.folds.rows(0, TEST).tolist())
    assert len(tested) == CELLS // 5
    held = [cells_of(plan)[1] for plan in plans]
    assert not held[0] & held[1]
    assert held[0] | held[1] == set(range(CELLS)) - tested
    assert [cells_of(plan)[0] for plan in plans] == held[::-1]

    class Cut(BaseException):
        """Ends the process, as far as the trial can tell."""

    reports: list[dict[str, Any]] = []

    def cut(report: dict[str, Any]) -> None:
        reports.append(report)
        raise Cut

    with pytest.raises(Cut):
        run_trial(folds_job, VALUES, "00000", cut)
    assert not plans[0].store().steps()  # the fold is over: its weights are not needed
    run_trial(folds_job, VALUES, "00000", reports.append)
    first, last = reports
    assert (first["validation"], first["folds"], "spread" in first) == (1, 1, False)
    assert (last["ended"], last["error"], last["folds"]) == (True, "", 2)

    alone = []
    for plan in plans:
        judge = Judge(folds_job.objectives, plan, lambda _: None)
        outcome = run_plan(plan, TrialSession(judge=judge), CPU)
        alone.append((judge.values(), outcome))
    for i in range(2):
        values = [value[f"value_{i}"] for value, _ in alone]
        assert first[f"value_{i}"] == values[0]
        assert last[f"value_{i}"] == pytest.approx(np.mean(values))
        assert last["spread"][i] == pytest.approx(np.std(values, ddof=1))
    assert last["best_steps"] == [outcome.best_step for _, outcome in alone]
    assert last["step"] == sum(outcome.steps for _, outcome in alone)


def test_the_best_options_are_trained_on_all_but_the_test_part_and_then_on_all_cells(folds_job: TrialJob) -> None:
    tested, published = folds_job.final_plans(VALUES, "00000", steps=3)
    held = set(tested.opened.folds.rows(0, TEST).tolist())
    assert held == set(folds_job.plans(VALUES, "00000")[0].opened.folds.rows(0, TEST).tolist())
    assert cells_of(tested) == (set(range(CELLS)) - held, set())
    assert cells_of(published) == (set(range(CELLS)), set())
    outcome = run_plan(tested, SilentSession(), CPU)
    assert (outcome.steps, outcome.error) == (3, "")
    (result,) = tested.opened.results([tested.answers()])
    assert result.pooled.n == len(held)
    untested = folds_job.task.model_copy(
        update={"split": folds_job.task.split.model_copy(update={"test_fraction": 0.0})}
    )
    (only,) = replace(folds_job, task=untested).final_plans(VALUES, "00000", steps=3)
    assert cells_of(only)[0] == set(range(CELLS))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"learning_rate": 1e30}, "the loss became"),
        ({"freeze_layers": 9}, "frozen layers must lie in 0..3"),
        ({"dropout": 2.0}, "dropout: Input should be less than 1"),
        ({"pooling": "cls"}, "cls"),
    ],
)
def test_a_trial_that_fails_says_why(job: TrialJob, values: dict[str, Any], reason: str) -> None:
    reports: list[dict[str, Any]] = []
    run_trial(job, values, "00000", reports.append)
    assert reason in reports[-1]["error"]
    assert "\n" not in reports[-1]["error"]
    assert reports[-1]["ended"]


def test_an_objective_that_is_not_defined_is_a_failure(job: TrialJob) -> None:
    reports: list[dict[str, Any]] = []
    run_trial(replace(job, objectives=("macro_f1", "nothing")), VALUES, "00000", reports.append)
    assert reports[-1]["error"] == "nothing is not defined on the validation part"
