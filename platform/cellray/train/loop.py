"""The training loop of one worker: batches in, optimiser steps, validation, metrics and checkpoints out.

Knows torch. What is learnt, where batches come from, where reports and checkpoints go is given to it, so that it runs
alone in a test or in a trial of a search as it runs on a cluster.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import get_scheduler

from cellray.train.checkpoints import Checkpoints
from cellray.train.contracts import Batch, Objective, Session
from cellray.train.objectives import step_generator
from cellray.train.parallel import agree, gather_from_all, gradients_shared, scale_gradients, whole
from cellray.train.precision import Autocast
from cellray.train.state import capture, load_state
from cellray.train.throughput import ThroughputWindow, peak_memory_bytes, peak_of

Schedule = Literal["linear", "cosine", "polynomial", "constant_with_warmup"]

_REPORTS_KEPT = 1000
"""Reports a checkpoint holds: those that were on their way when worker or job were killed are found there."""


@dataclass(frozen=True)
class LoopConfig:
    """Numbers of the loop; see `cellray.train.options` for their meaning."""

    steps: int
    schedule: Schedule
    warmup_steps: int
    max_grad_norm: float
    validate_every: int
    log_every: int
    seed: int
    monitor: str = "validation_loss"
    higher_is_better: bool = False
    patience: int | None = None
    checkpoint_minutes: float = 10.0


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    step
        Optimiser steps done.
    best, best_step
        The best value of the watched metric, and when it was reached.
    worse
        Validations since then.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0

    def took(self, value: float, config: LoopConfig) -> bool:
        """Take the watched metric of a validation; tell whether it is the best so far."""
        sign = 1 if config.higher_is_better else -1
        better = not math.isnan(value) and (self.best is None or sign * value > sign * self.best)
        if better:
            self.best, self.best_step, self.worse = value, self.step, 0
        else:
            self.worse += 1
        return better


class NonFiniteLossError(FloatingPointError):
    """The loss, or the norm of its gradients, is not a finite number.

    Parameters
    ----------
    step
        The step that went wrong.
    what, value
        Which of them, and what it was.
    cells
        Numbers, in the corpus, of the cells of the workers whose loss it was; of all workers where it was the gradient.
    """

    def __init__(self, step: int, what: str, value: float, cells: Sequence[int]) -> None:
        super().__init__(step, what, value, cells)
        self.step, self.what, self.value, self.cells = step, what, value, list(cells)

    def __str__(self) -> str:
        return f"the {self.what} became {self.value} at step {self.step:,}"


class TakenOverError(RuntimeError):
    """Another job has begun to write the same output."""


@dataclass(frozen=True)
class _StepLoss:
    """A step whose loss has not been looked at; looking makes a GPU wait."""

    step: int
    everywhere: Tensor
    here: Tensor
    norm: Tensor
    passes: Sequence[Batch]


class Loop:
    """One worker's training.

    Parameters
    ----------
    objective
        What is learnt; its module holds the weights.
    wrapped
        The same module, wrapped for several workers if there are several.
    optimizer
        Of the module's parameters.
    config
        The loop's numbers.
    device
        Where to compute.
    session
        Where reports go.
    autocast
        Entered around each forward pass.
    dtype
        In which matrices are multiplied then.
    """

    def __init__(
        self,
        objective: Objective,
        wrapped: nn.Module,
        optimizer: Optimizer,
        config: LoopConfig,
        device: torch.device,
        session: Session,
        autocast: Autocast = nullcontext,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._objective, self._module, self._optimizer = objective, wrapped, optimizer
        self._config, self._device, self._session, self._autocast = config, device, session, autocast
        self._scheduler = get_scheduler(config.schedule, optimizer, config.warmup_steps, config.steps)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._unchecked: _StepLoss | None = None
        self._summed = torch.zeros(2, dtype=torch.float64, device=device)  # loss and weight since the last report
        self._peak = peak_of(device, dtype)
        self.progress = Progress()
        self.reports: deque[dict[str, float]] = deque(maxlen=_REPORTS_KEPT)
        self.leaving = False
        self._saved_at = time.monotonic()

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.progress.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or no progress was made for too long."""
        patience = self._config.patience
        return self.step >= self._config.steps or (patience is not None and self.progress.worse >= patience)

    def run(self, steps: Iterable[Sequence[Batch]], validation: Sequence[Batch], checkpoints: Checkpoints) -> None:
        """Train until all steps are done or the watched metric no longer improves.

        Ends early, with `leaving` set and a checkpoint begun, where a machine is about to be taken away: what would be
        done there any longer is lost.

        Parameters
        ----------
        steps
            For each step still to do, in order, the batches whose gradients are added up.
        validation
            The held-out batches, gone through at every validation.
        checkpoints
            Take one at every validation, and in between where validations are far apart.

        Raises
        ------
        NonFiniteLossError
            The loss or its gradient is not a finite number.
        TakenOverError
            Another job writes the output now.
        """
        source, window = iter(steps), self._window()
        while not self.finished and not self.leaving:
            with window.waiting():
                passes = next(source)
            for batch in passes:
                window.add(batch.lengths_n)
            self.train_step(passes)
            due = self.step == self._config.steps or self.step % self._config.validate_every == 0
            if due or self.step % self._config.log_every == 0:
                self._account(window, validation if due else None, checkpoints)
                window = self._window()  # validation does not count towards the rates

    def train_step(self, passes: Sequence[Batch]) -> None:
        """Do one optimiser step on the batches of all workers.

        Raises
        ------
        NonFiniteLossError
            The loss of the step before, or its gradient, was not a finite number.
        """
        self._module.train()
        generator = step_generator(self._config.seed, self.step, self._session.rank, self._device)
        torch.manual_seed(generator.initial_seed())  # dropout: a function of the step too, so a resumed run is the same
        here = torch.zeros(2, dtype=torch.float64, device=self._device)
        for number, batch in enumerate(passes, start=1):
            with gradients_shared(self._module, shared=number == len(passes)):
                with self._autocast():
                    total, weight, *_ = self._module(self._objective.prepare(batch, generator))
                total.backward()
            here += torch.stack([total.detach().double(), weight.detach().double()])
        everywhere = here.clone()
        if self._session.world_size > 1:
            torch.distributed.all_reduce(everywhere)
        # Workers average their gradients, hence the factor: the mean is over the targets of all workers.
        # A step without targets has gradients of 0, so that weights move by AdamW's momentum and decay alone.
        weight = torch.where(everywhere[1] > 0, everywhere[1], 1.0)
        scale_gradients(self._parameters, self._session.world_size / weight)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._check_loss()  # of the step before: this one's work is queued by now, so a GPU need not stand still
        self._unchecked = _StepLoss(self.step, everywhere, here, norm, passes)
        self._summed += everywhere
        self.progress.step += 1

    @torch.no_grad()
    def validate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the objective's metrics of the held-out batches of all workers."""
        self._objective.module.eval()
        with self._autocast():
            return self._objective.validate(self._objective.module, batches, self._session.world_size)

    def save(self, checkpoints: Checkpoints, metrics: dict[str, float]) -> None:
        """Copy the state and let it be written aside."""
        numbers = {
            "progress": asdict(self.progress),
            "scheduler": self._scheduler.state_dict(),
            "reports": list(self.reports),
        }
        state = capture(self._objective.module, self._optimizer, numbers, keep=self._session.rank == 0)
        if state is not None:
            checkpoints.save(self.step, state, metrics, self.progress.best_step or None)

    def load(self, folder: Path) -> None:
        """Go on from the checkpoint in a local folder."""
        numbers = load_state(folder, self._objective.module, self._optimizer)
        self._scheduler.load_state_dict(numbers["scheduler"])
        for group, rate in zip(self._optimizer.param_groups, self._scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.progress = Progress(**numbers["progress"])
        self.reports.extend(numbers.get("reports", []))

    def _account(self, window: ThroughputWindow, validation: Sequence[Batch] | None, checkpoints: Checkpoints) -> None:
        """Report; validate and save if it is time for it."""
        assert self._unchecked is not None
        total, weight = self._take_sums()
        metrics = {"train_loss": total / weight} if weight else {}  # no label since the last report: no loss, not 0
        metrics["grad_norm"] = float(whole(self._unchecked.norm))
        self._check_loss()
        masked = round(weight / self._session.world_size) if self._objective.vocabulary_head else 0
        metrics |= window.metrics(self._session.world_size, masked)
        metrics |= {"learning_rate": max(self._scheduler.get_last_lr()), "peak_memory_gb": self._peak_memory()}
        if validation:  # a model that is trained on all cells is not judged
            metrics |= self.validate(validation)
            self.progress.took(metrics.get(self._config.monitor, math.nan), self._config)
        self.leaving = self._session.leaving() and not self.finished
        saved = validation is not None or self.leaving or self._is_overdue()
        if saved:
            checkpoints.settle()  # so that the figures of the one before are in this report
        metrics |= checkpoints.take_figures()
        report = {"step": self.step, **metrics}
        self.reports.append(report)
        if saved:
            self.save(checkpoints, metrics)
            self._saved_at = time.monotonic()
        self._session.report(report, checkpoints.take_notes())
        if agree(int(self._session.rank == 0 and checkpoints.turn.lost()), self._session.world_size):
            raise TakenOverError

    def _is_overdue(self) -> bool:
        """Tell whether the last checkpoint is so old that losing what came after it would be a pity."""
        age = time.monotonic() - self._saved_at
        return bool(agree(int(age > 60 * self._config.checkpoint_minutes), self._session.world_size))

    def _window(self) -> ThroughputWindow:
        return ThroughputWindow(self._objective.work, self._peak)

    def _peak_memory(self) -> float:
        return peak_memory_bytes(self._device) / 1e9

    def _take_sums(self) -> tuple[float, float]:
        """Return loss and weight of all workers since the last report, and begin anew."""
        total, weight = self._summed.tolist()
        self._summed.zero_()
        return float(total), float(weight)

    def _check_loss(self) -> None:
        """Look at the loss of the last step that was not looked at."""
        if (last := self._unchecked) is None:
            return
        self._unchecked = None
        loss, norm = float(last.everywhere[0]), float(whole(last.norm))  # all workers see the same, and stop together
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        own = [int(cell) for batch in last.passes for cell in batch.cells_n]
        at_fault = own if math.isfinite(loss) or not math.isfinite(float(last.here[0])) else []
        raise NonFiniteLossError(last.step, what, value, gather_from_all(at_fault, self._session.world_size))
