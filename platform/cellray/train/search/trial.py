"""One trial: a fine-tuning that reports every validation, or each of several inner folds, and is never tested.

Runs in a process that it may share a machine with, or as a group of workers on Ray Train.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from cellray.errors import said
from cellray.model.device import compute_device
from cellray.train import reports
from cellray.train.finetune_plan import FinetunePlan
from cellray.train.reports import STEP
from cellray.train.search.fold_results import METRICS, VALUE, FoldResults
from cellray.train.search.options import lower_is_better
from cellray.train.search.plans import TrialJob, TrialPlan
from cellray.train.turn import Turn
from cellray.train.worker import Outcome, run_plan

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]
"""Takes what a trial has reached: see `TrialReport`."""
VALIDATION, DONE, ERROR = "validation", "ended", "error"
_LONGEST_REASON = 500


class Judge:
    """Follows a trial's validations and knows what its best step reached, as the loop does.

    Parameters
    ----------
    objectives
        Metrics to report.
    plan
        The trial's plan.
    report
        Takes, at every validation, the objectives at the best step so far as `value_0`, `value_1`, ..., and `step`,
        `validation` (how many there were) and `metrics` (those of this validation, pairs of names and values: Tune
        would take mappings apart).
    """

    def __init__(self, objectives: Sequence[str], plan: FinetunePlan, report: Report) -> None:
        self._objectives, self._plan, self._report = tuple(objectives), plan, report
        self._sign = 1 if lower_is_better(plan.loop.monitor) else -1
        self._best: Mapping[str, float] = _best_metrics(plan)  # of a trial that goes on
        self._last: dict[str, Any] = {}

    def take(self, report: reports.Report) -> None:
        """Take a training report."""
        self.record(report.metrics)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Take metrics; those without a validation are passed over."""
        monitor = self._plan.loop.monitor
        if monitor not in metrics:
            return
        best, value = self._best.get(monitor, math.nan), metrics[monitor]
        if math.isnan(best) or self._sign * value < self._sign * best:
            self._best = dict(metrics)
        step = int(metrics[STEP])
        self._last = {STEP: step, VALIDATION: math.ceil(step / self._plan.loop.validate_every)}
        self._report({**self.values(), **self._last, METRICS: list(metrics.items())})

    def values(self) -> dict[str, float]:
        """Return the objectives at the best step."""
        return {VALUE.format(i): float(self._best.get(each, math.nan)) for i, each in enumerate(self._objectives)}

    def problem(self, outcome: Outcome) -> str:
        """Return what is wrong with a training that is over, if anything."""
        undefined = [name for name in self._objectives if not math.isfinite(self._best.get(name, math.nan))]
        why = f"{', '.join(undefined)} is not defined on the validation part" if undefined else ""
        return (outcome.error or why)[:_LONGEST_REASON]

    def end(self, outcome: Outcome) -> None:
        """Report how the trial ended."""
        self._report({**self.values(), STEP: outcome.steps, DONE: True, ERROR: self.problem(outcome)})


@dataclass
class SilentSession:
    """A training of one process that nobody follows; see `cellray.train.contracts.Session`."""

    rank: int = 0
    world_size: int = 1

    def report(
        self, metrics: Mapping[str, float], notes: Sequence[str], earlier: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """Do nothing."""

    def leaving(self) -> bool:
        """Say no: a trial that is cut off goes on from its last validation."""
        return False


@dataclass
class TrialSession(SilentSession):
    """A trial of one process."""

    judge: Judge = field(kw_only=True)

    def report(
        self, metrics: Mapping[str, float], notes: Sequence[str], earlier: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """Let the judge see it."""
        self.judge.record(metrics)


def run_trial(job: TrialJob, values: Mapping[str, Any], folder: str, report: Report) -> None:
    """Train with a trial's options and report what is reached.

    What is wrong with a trial (options that do not fit, a loss that is no number, too little memory) is reported as
    its end: it would happen again. A lost process is another matter, and not seen here.
    """
    try:
        plans = job.plans(values, folder)
        if len(plans) == 1:
            judge = Judge(job.objectives, plans[0], report)
            judge.end(_train(job, plans[0], judge))
        else:
            _run_folds(job, plans, job.place(folder), report)
    except Exception as error:
        logger.warning("trial in %s failed", folder, exc_info=True)
        undefined = {VALUE.format(i): math.nan for i in range(len(job.objectives))}
        report({**undefined, DONE: True, ERROR: _reason(error)})


def _run_folds(job: TrialJob, plans: Sequence[TrialPlan], place: str, report: Report) -> None:
    """Train the inner folds one after the other, and report after each what the folds so far reached on average.

    The last one is reported as the trial's end: to stop it then would save nothing.
    """
    done = FoldResults(job.objectives, place)
    for fold, plan in enumerate(plans):
        if fold < len(done):
            continue
        judge = Judge(job.objectives, plan, lambda _: None)
        outcome = _train(job, plan, judge)
        if error := judge.problem(outcome):
            report({**judge.values(), STEP: outcome.steps, DONE: True, ERROR: f"inner fold {fold}: {error}"})
            return
        done.add(judge.values(), outcome)
        plan.store().remove()  # the best options are trained anew
        if fold + 1 < len(plans):
            report({**done.report(), VALIDATION: fold + 1})
    report({**done.report(), DONE: True, ERROR: ""})


def _train(job: TrialJob, plan: FinetunePlan, judge: Judge) -> Outcome:
    if not job.distributed:
        return run_plan(plan, TrialSession(judge=judge), compute_device(gpu=job.gpu, option="--gpus-per-trial"))
    from cellray.train.trainer import fit

    return fit([plan], [judge], Turn.take(f"{plan.checkpoints}.ray"))[0]


def _best_metrics(plan: FinetunePlan) -> Mapping[str, float]:
    """Return the metrics of the best validation of a trial that was cut off."""
    store, loop = plan.store(), plan.loop
    if not store.steps():
        return {}
    with store.newest() as newest:
        if newest is None:
            return {}
    with store.newest(at_most=store.best(loop.monitor, higher=loop.higher_is_better)) as best:
        metrics: Mapping[str, float] = best[1]["metrics"] if best else {}
        return metrics


def _reason(error: Exception) -> str:
    """Return an error in one line."""
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc']))}: {said(problem)}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_LONGEST_REASON]
