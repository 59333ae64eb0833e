"""What one worker of a training does: builds the model, goes on from the newest checkpoint, runs the loop.

Runs in a group of processes that somebody else has connected, or alone. Knows no Ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from cellray.model.device import is_accelerator
from cellray.train.checkpoints import Checkpoints
from cellray.train.contracts import Objective, Session
from cellray.train.feed import Feed, spans
from cellray.train.loop import Loop, LoopConfig, NonFiniteLossError, Progress, TakenOverError
from cellray.train.options import GroupOptions
from cellray.train.order import Selection, TrainingOrder
from cellray.train.parallel import agree, gather_from_all, wrap
from cellray.train.precision import (
    Autocast,
    Precision,
    autocast,
    autocast_dtype,
    checkpoint_activations,
    compile_layers,
)
from cellray.train.turn import Turn
from cellray.vocabulary import PAD

_PASS_TOKENS = {False: 2_048, True: 65_536}
"""Most tokens of a forward pass on a CPU and on an accelerator; see `GroupOptions.pass_tokens`."""


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
    turn
        The job's turn to write there.
    """

    corpus: str
    loop: LoopConfig
    batch_size: int
    precision: Precision
    group: GroupOptions
    threads: int
    checkpoints: str
    turn: Turn = field(default_factory=Turn)

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

    def remarks(self, progress: Progress, reports: Sequence[Mapping[str, float]]) -> list[str]:
        """Return what there is to tell a person at the end; `reports` are the last ones, at least."""
        return []

    def conclude(  # noqa: B027  # most have nothing to do
        self, corpus: Corpus, objective: Objective, feed: Feed, session: Session, autocast: Autocast
    ) -> None:
        """Do what is left to do with the trained model; every worker calls it."""

    def order(self, corpus: Corpus) -> TrainingOrder:
        """Return which cells come in which step."""
        return TrainingOrder(spans(corpus), self.batch_size, self.selections()[0], self.loop.seed)

    def store(self) -> Checkpoints:
        """Return the checkpoints of this training."""
        return Checkpoints(self.checkpoints, self.group.keep_checkpoints, self.turn)


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
    figures
        Metrics that came after the last report.
    leaving
        A machine is about to be taken away: others are to go on.
    """

    steps: int
    best_step: int
    notes: tuple[str, ...] = ()
    error: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    leaving: bool = False


def run_plan(plan: TrainPlan, session: Session, device: torch.device) -> Outcome:
    """Train as one worker of a group."""
    torch.set_num_threads(plan.threads)
    corpus, rank, world_size = Corpus.open(plan.corpus), session.rank, session.world_size
    objective = plan.objective(corpus, device, rank)
    wrapped = wrap(objective.module, plan.group.sharding, device, world_size)
    groups = plan.parameter_groups(objective.module)
    optimizer = AdamW(groups, lr=max(group["lr"] for group in groups), fused=True)  # some schedules ask for the peak
    dtype = autocast_dtype(plan.precision, device)
    precision = partial(autocast, dtype, device)
    loop = Loop(objective, wrapped, optimizer, plan.loop, device, session, precision, dtype or torch.float32)
    checkpoints = plan.store()
    _resume(loop, checkpoints, session)
    pass_tokens = plan.group.pass_tokens or _PASS_TOKENS[is_accelerator(device)]
    pad_id = corpus.vocabulary.special_tokens[PAD]
    feed = Feed(plan.order(corpus), plan.selections()[1], rank, world_size, pad_id, pass_tokens)
    error = ""
    try:
        loop.run(feed.steps(loop.step), feed.held_out(), checkpoints)
        if agree(int(rank == 0 and checkpoints.turn.lost(at_once=True)), world_size):  # the last steps were not kept
            raise TakenOverError
        error = _last_checkpoint(checkpoints, session)
        if not (error or loop.leaving):
            if told := plan.remarks(loop.progress, loop.reports):
                session.report({"step": loop.step}, told)
            plan.conclude(corpus, objective, feed, session, precision)
    except NonFiniteLossError as wrong:
        names = listing(cell_names(corpus, wrong.cells))
        error = f"{wrong}, on cells {names}. Try a lower learning rate, or look at these cells."
    except TakenOverError:
        error = f"another job took over this output, or has finished it ({plan.turn.folder}); this one stopped"
    notes, figures = tuple(checkpoints.take_notes()), checkpoints.take_figures()
    return Outcome(loop.step, loop.progress.best_step, notes, error, figures, loop.leaving)


def _resume(loop: Loop, checkpoints: Checkpoints, session: Session) -> None:
    """Go on from the newest sound checkpoint, the one that the first worker finds, and tell of it."""
    with ExitStack() as stack:
        folder: Path | None = None
        step = 0
        if session.rank == 0:
            checkpoints.sweep()
            if (found := stack.enter_context(checkpoints.newest())) is not None:
                folder, step = found[0], int(found[1]["step"])
        if (step := agree(step, session.world_size)) > 0:
            loop.load(folder or stack.enter_context(checkpoints.at(step)))
    if loop.step:
        last = ", the last one: nothing is left to train" if loop.finished else ""
        going = f"going on from the checkpoint of step {step:,} with {session.world_size} worker(s){last}"
        checkpoints.notes.append(going)
        session.report({"step": step}, checkpoints.take_notes(), list(loop.reports))


def _last_checkpoint(checkpoints: Checkpoints, session: Session) -> str:
    """Wait until the last checkpoint is written; return, on all workers, what there is to say if it could not be."""
    failure = ""
    if session.rank == 0:
        try:
            checkpoints.finish()
        except Exception as error:  # full disk, no network
            newest = max(checkpoints.steps(), default=0)
            failure = (
                f"the last checkpoint could not be written ({error}); the newest one is of step {newest:,}. "
                "Make room, or mend the storage, and run the same command again."
            )
    return str(gather_from_all([failure], session.world_size)[0])


def cell_names(corpus: Corpus, cells: Sequence[int]) -> list[str]:
    """Return the names of cells, given their numbers in the corpus."""
    names = []
    for span in spans(corpus):
        own = [cell - span.first for cell in cells if span.first <= cell < span.first + len(span)]
        if own:
            column = read_rows(span.uri, span.start, span.stop, [schema.CELL_ID])[schema.CELL_ID]
            names += [str(column[i].as_py()) for i in own]
    return names
