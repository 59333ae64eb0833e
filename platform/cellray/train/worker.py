"""What one worker of a training does: builds the model, goes on from the newest checkpoint, runs the loop.

Runs in a group of processes that somebody else has connected, or alone. Knows no Ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from cellray import schema
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.errors import listing
from cellray.train.checkpoints import Checkpoints
from cellray.train.contracts import Objective, Session
from cellray.train.feed import Feed, spans
from cellray.train.loop import Loop, LoopConfig, NonFiniteLossError
from cellray.train.options import GroupOptions
from cellray.train.order import Selection, TrainingOrder
from cellray.train.parallel import agree, wrap
from cellray.train.precision import (
    Autocast,
    Precision,
    autocast,
    autocast_dtype,
    checkpoint_activations,
    compile_layers,
)
from cellray.vocabulary import PAD

_PASS_TOKENS = {"cpu": 2_048, "cuda": 65_536}


@dataclass(frozen=True, kw_only=True)
class TrainPlan(ABC):
    """What every worker is told.

    Attributes
    ----------
    corpus
        Where the cells are.
    loop
        Numbers of the loop.
    batch_size
        Cells of a step over all workers.
    precision
        See `cellray.train.precision`.
    group
        How the workers share the work.
    threads
        Torch threads on CPU.
    checkpoints
        Folder of the checkpoints.
    """

    corpus: str
    loop: LoopConfig
    batch_size: int
    precision: Precision
    group: GroupOptions
    threads: int
    checkpoints: str

    @abstractmethod
    def objective(self, corpus: Corpus, device: torch.device, rank: int) -> Objective:
        """Return what is learnt, with the weights that training starts from on the device."""

    @abstractmethod
    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Return the weights that are trained, in AdamW's groups."""

    @abstractmethod
    def selections(self) -> tuple[Selection, Selection]:
        """Return which cells are trained on and which ones validate."""

    def prepared(self, bert: PreTrainedModel) -> None:
        """Make an encoder ready for training as the options say, in place."""
        if self.group.gradient_checkpointing:
            checkpoint_activations(bert)
        if self.group.compile:
            compile_layers(bert)

    def following(self, before: Sequence["Outcome"]) -> "TrainPlan":
        """Return this plan with what only the trainings before it could tell."""
        return self

    def conclude(  # noqa: B027  # most have nothing to do
        self, corpus: Corpus, objective: Objective, feed: Feed, session: Session, autocast: Autocast
    ) -> None:
        """Do what is left to do with the trained model; every worker calls it."""

    def order(self, corpus: Corpus) -> TrainingOrder:
        """Return which cells come in which step."""
        return TrainingOrder(spans(corpus), self.batch_size, self.selections()[0], self.loop.seed)

    def store(self) -> Checkpoints:
        """Return the checkpoints of this training."""
        return Checkpoints(self.checkpoints, self.group.keep_checkpoints)


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes
    ----------
    steps
        Optimiser steps done.
    best_step
        The step of the best validation, 0 if there was none.
    notes
        What is to be told at the end.
    error
        Why it stopped, empty if it came to its end. What stops all workers alike comes back so: it would happen again.
    """

    steps: int
    best_step: int
    notes: tuple[str, ...] = ()
    error: str = ""


def run_plan(plan: TrainPlan, session: Session, device: torch.device) -> Outcome:
    """Train as one worker of a group."""
    torch.set_num_threads(plan.threads)
    corpus, rank, world_size = Corpus.open(plan.corpus), session.rank, session.world_size
    objective = plan.objective(corpus, device, rank)
    wrapped = wrap(objective.module, plan.group.sharding, device, world_size)
    optimizer = AdamW(plan.parameter_groups(objective.module), fused=True)
    dtype = autocast_dtype(plan.precision, device)
    precision = partial(autocast, dtype, device)
    loop = Loop(objective, wrapped, optimizer, plan.loop, device, session, precision, dtype or torch.float32)
    checkpoints = plan.store()
    _resume(loop, checkpoints, rank, world_size)
    pass_tokens = plan.group.pass_tokens or _PASS_TOKENS[device.type]
    pad_id = corpus.vocabulary.special_tokens[PAD]
    feed = Feed(plan.order(corpus), plan.selections()[1], rank, world_size, pad_id, pass_tokens)
    try:
        loop.run(feed.steps(loop.step), feed.held_out(), checkpoints)
        plan.conclude(corpus, objective, feed, session, precision)
    except NonFiniteLossError as error:
        names = listing(cell_names(corpus, error.cells))
        fix = "Try a lower learning rate, or look at these cells."
        return Outcome(loop.step, loop.progress.best_step, error=f"{error}, on cells {names}. {fix}")
    return Outcome(loop.step, loop.progress.best_step, tuple(checkpoints.take_notes()))


def _resume(loop: Loop, checkpoints: Checkpoints, rank: int, world_size: int) -> None:
    """Go on from the newest sound checkpoint: the one that the first worker finds."""
    with ExitStack() as stack:
        folder: Path | None = None
        step = 0
        if rank == 0 and (found := stack.enter_context(checkpoints.newest())) is not None:
            folder, step = found[0], int(found[1]["step"])
        if (step := agree(step, world_size)) > 0:
            loop.load(folder or stack.enter_context(checkpoints.at(step)))


def cell_names(corpus: Corpus, cells: Sequence[int]) -> list[str]:
    """Return the names of cells, given their numbers in the corpus."""
    names = []
    for span in spans(corpus):
        own = [cell - span.first for cell in cells if span.first <= cell < span.first + len(span)]
        if own:
            column = read_rows(span.uri, span.start, span.stop, [schema.CELL_ID])[schema.CELL_ID]
            names += [str(column[i].as_py()) for i in own]
    return names
