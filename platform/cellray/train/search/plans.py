"""What trials of a search train on, and what is trained once the best one is known; the test part is for the latter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from cellray import storage
from cellray.data.corpora.corpus import Corpus
from cellray.models import ModelReference
from cellray.train.contracts import Objective, Session
from cellray.train.feed import Feed
from cellray.train.finetune import FinetuneConfig, plan_fold
from cellray.train.finetune_plan import FinetunePlan
from cellray.train.folds import TRAIN, InnerFolds
from cellray.train.order import RandomPart, Selection
from cellray.train.precision import Autocast
from cellray.train.search.space import with_values
from cellray.train.search.task_fields import with_task_fields
from cellray.train.tasks.contract import ALL, Task
from cellray.train.tasks.table import TaskConfig


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

    def place(self, folder: str) -> str:
        """Return where a trial keeps what it needs to go on."""
        return storage.join(self.folder, folder)

    def plans(self, values: Mapping[str, Any], folder: str) -> "list[TrialPlan]":
        """Return a trial's plans: one, or one for each inner fold.

        Raises
        ------
        ValidationError, InputError
            The options do not fit the model or the data.
        """
        task = trial_task(with_task_fields(self.task, values))
        found = []
        for plan in self._plans(values, task, [(fold, TRAIN) for fold in range(task.split.folds)]):
            place = (
                self.place(folder) if task.split.folds == 1 else storage.join(self.place(folder), f"fold-{plan.fold}")
            )
            found.append(TrialPlan(**_fields(plan) | {"checkpoints": place}, objectives=self.objectives))
        return found

    def final_plans(self, values: Mapping[str, Any], folder: str, steps: int) -> list[FinetunePlan]:
        """Return what follows a search over inner folds: a training to be tested, then that of the published model.

        The first sees all but the test part, the second all cells; without a test part they are the same.

        Parameters
        ----------
        steps
            To train: what was best in the inner folds.
        """
        task = final_task(with_task_fields(self.task, values))
        parts = [TRAIN, ALL] if task.split.test_fraction > 0 else [TRAIN]
        found: list[FinetunePlan] = []
        for plan in self._plans(values, task, [(0, part) for part in parts]):
            place = storage.join(self.place(folder), "all" if plan.part == ALL else "tested")
            own = _fields(plan) | {"checkpoints": place, "loop": replace(plan.loop, steps=steps)}
            found.append(FinalPlan(**own))
        return found

    def _plans(
        self, values: Mapping[str, Any], task: TaskConfig, parts: Sequence[tuple[int, int]]
    ) -> list[FinetunePlan]:
        config = with_values(self.base, values)
        corpus = Corpus.open(config.corpus)
        opened: Task = task.open(corpus)
        plans = [plan_fold(config, corpus, self.model, opened, task, self.request, *each) for each in parts]
        return plans if self.distributed else [replace(plan, threads=self.threads) for plan in plans]


def trial_task(task: TaskConfig) -> TaskConfig:
    """Return the task as trials see it: several folds are those of all but the test part."""
    if task.split.folds == 1:
        return task
    return task.model_copy(update={"split": InnerFolds(**task.split.model_dump())})


def final_task(task: TaskConfig) -> TaskConfig:
    """Return the task on which the best options are tested: that of the trials, with the inner folds together."""
    if task.split.folds == 1:
        return task
    return task.model_copy(update={"split": task.split.model_copy(update={"folds": 1, "validation_fraction": 0.0})})


def _fields(plan: FinetunePlan) -> dict[str, Any]:
    return {each.name: getattr(plan, each.name) for each in fields(FinetunePlan)}


@dataclass(frozen=True, kw_only=True)
class FinalPlan(FinetunePlan):
    """A plan without validation: its number of steps is known."""

    def selections(self) -> tuple[Selection, Selection]:
        """Return the cells of the part, and none to validate on."""
        return super().selections()[0], RandomPart(0.0, 0, held=True)


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
        steps = max(self.store().steps(), default=self.loop.steps)
        return replace(FinetunePlan(**_fields(self)), loop=replace(self.loop, steps=steps))
