"""One trial: a fine-tuning of the first fold that reports every validation and leaves the test part alone.

Runs in a process that it may share a machine with, or as a group of workers on Ray Train.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pydantic import ValidationError

from cellray import storage
from cellray.data.corpora.corpus import Corpus
from cellray.model.device import compute_device
from cellray.models import ModelReference
from cellray.train import reports
from cellray.train.checkpoints import Checkpoints
from cellray.train.contracts import Objective, Session
from cellray.train.feed import Feed
from cellray.train.finetune import FinetuneConfig, plan_fold
from cellray.train.finetune_plan import FinetunePlan
from cellray.train.folds import TRAIN
from cellray.train.precision import Autocast
from cellray.train.reports import STEP
from cellray.train.search.options import lower_is_better
from cellray.train.search.space import with_values
from cellray.train.tasks.table import TaskConfig
from cellray.train.turn import Turn
from cellray.train.worker import Outcome, run_plan

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]
"""Takes what a trial has reached: see `TrialReport`."""
VALUE, VALIDATION, METRICS, DONE, ERROR = "value_{}", "validation", "metrics", "ended", "error"
_LONGEST_REASON = 500


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a search have in common.

    Attributes
    ----------
    base
        Options without a trial's own.
    model, task
        What is trained to tell what.
    objectives
        Metrics of the validation part.
    folder
        URI below which each trial has its checkpoints.
    request
        Digest of the search.
    gpu
        Whether a trial of one process computes on an accelerator.
    threads
        Its torch threads.
    distributed
        Train each trial by a group of workers.
    """

    base: FinetuneConfig
    model: ModelReference
    task: TaskConfig
    objectives: tuple[str, ...]
    folder: str
    request: str
    gpu: bool
    threads: int
    distributed: bool

    def plan(self, values: Mapping[str, Any], folder: str) -> "TrialPlan":
        """Return a trial's plan.

        Raises
        ------
        ValidationError, InputError
            The options do not fit the model or the data.
        """
        config = with_values(self.base, values)
        corpus = Corpus.open(config.corpus)
        plan = plan_fold(config, corpus, self.model, self.task.open(corpus), self.task, self.request, 0, TRAIN)
        own = {each.name: getattr(plan, each.name) for each in fields(FinetunePlan)}
        own["checkpoints"] = storage.join(self.folder, folder)
        if not self.distributed:
            own["threads"] = self.threads
        return TrialPlan(**own, objectives=self.objectives)


@dataclass(frozen=True, kw_only=True)
class TrialPlan(FinetunePlan):
    """A fold's plan that ends with the training.

    Attributes
    ----------
    objectives
        Metrics of the validation part by which the trial is judged.
    """

    objectives: tuple[str, ...]

    @property
    def watched(self) -> tuple[str, ...]:
        """The metric that chooses the best step, and the objectives."""
        return (*super().watched, *self.objectives)

    def conclude(self, corpus: Corpus, objective: Objective, feed: Feed, session: Session, autocast: Autocast) -> None:
        """Do nothing: the test part stays unseen while options are chosen."""

    def concluding(self) -> FinetunePlan:
        """Return the plan that lets the trial's best model answer in the test part.

        Its training is over where it was: at the newest checkpoint. Where the checkpoints are gone it is repeated.
        """
        own = {each.name: getattr(self, each.name) for each in fields(FinetunePlan)}
        steps = max(self.store().steps(), default=self.loop.steps)
        return replace(FinetunePlan(**own), loop=replace(self.loop, steps=steps))


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
        self._best: Mapping[str, float] = _best_metrics(plan.store())  # of a trial that goes on
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

    def end(self, outcome: Outcome) -> None:
        """Report how the trial ended."""
        error = outcome.error
        if not error and (undefined := [n for n in self._objectives if not math.isfinite(self._best.get(n, math.nan))]):
            error = f"{', '.join(undefined)} is not defined on the validation part"
        self._report({**self.values(), STEP: outcome.steps, DONE: True, ERROR: error[:_LONGEST_REASON]})


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
        plan = job.plan(values, folder)
        judge = Judge(job.objectives, plan, report)
        outcome = _train_group(plan, judge) if job.distributed else _train_alone(job, plan, judge)
    except Exception as error:
        logger.warning("trial in %s failed", folder, exc_info=True)
        undefined = {VALUE.format(i): math.nan for i in range(len(job.objectives))}
        report({**undefined, DONE: True, ERROR: _reason(error)})
        return
    judge.end(outcome)


def _train_alone(job: TrialJob, plan: FinetunePlan, judge: Judge) -> Outcome:
    return run_plan(plan, TrialSession(judge=judge), compute_device(gpu=job.gpu, option="--gpus-per-trial"))


def _train_group(plan: FinetunePlan, judge: Judge) -> Outcome:
    from cellray.train.trainer import fit

    return fit([plan], [judge], Turn.take(f"{plan.checkpoints}.ray"))[0]


def _best_metrics(store: Checkpoints) -> Mapping[str, float]:
    """Return the metrics of the best validation of a trial that was cut off."""
    if not store.steps():
        return {}
    with store.newest() as newest:
        if newest is None:
            return {}
    with store.newest(at_most=store.best()) as best:
        metrics: Mapping[str, float] = best[1]["metrics"] if best else {}
        return metrics


def _reason(error: Exception) -> str:
    """Return an error in one line."""
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_LONGEST_REASON]
