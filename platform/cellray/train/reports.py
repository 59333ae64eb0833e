"""What becomes of training reports: recorded by the trackers and shown on the log, both by the driver.

The first worker sends them straight to a queue: reports to Ray Train's controller would make training wait, since it
fetches one every two seconds. The driver made the runs and is their one writer, so a slow tracking server holds up
nothing but this module's thread.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cellray.data.session import root_cause
from cellray.plots.training import Points, training_png
from cellray.tracking import Tracker
from cellray.train.turn import Turn

logger = logging.getLogger(__name__)

_JOIN_S = 60.0
_QUIET_S = 5.0
_MUCH_WAITING = 0.05
_TOLD = ("train_loss", "validation_loss", "accuracy", "macro_f1", "r2", "mae")
_SHOWN = 200  # characters of what went wrong
STEP = "step"


@dataclass(frozen=True)
class Report:
    """What a worker tells the driver of a plan.

    Attributes
    ----------
    plan
        Its number.
    metrics
        With `step`; maybe nothing else.
    notes
        For a person.
    earlier
        Reports from before the checkpoint that training goes on from.
    """

    plan: int
    metrics: Mapping[str, float]
    notes: Sequence[str]
    earlier: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class Loss:
    """Workers were lost.

    Attributes
    ----------
    ranks
        Which ones.
    why
        In short.
    """

    ranks: tuple[int, ...]
    why: str


class Recipient(Protocol):
    """Takes the reports of one training."""

    def take(self, report: Report) -> None:
        """Take a report."""
        ...

    def record(self, metrics: Mapping[str, float]) -> object:
        """Take metrics, `step` among them, that a person need not be told of."""
        ...


class Recorder:
    """Records the reports of one training and tells a person of them.

    Parameters
    ----------
    tracker
        Takes the metrics.
    steps
        Optimiser steps to be done.
    name
        Put before every line; empty for the only training.
    """

    def __init__(self, tracker: Tracker, steps: int, name: str = "") -> None:
        self._tracker, self._steps, self._name = tracker, steps, f"{name}, " if name else ""
        self._began, self._first, self._shown = time.monotonic(), 0, -_QUIET_S
        self.name = name
        self.kept: int | None = None  # the step that was best, once the training is over
        self.history: dict[str, tuple[list[int], list[float]]] = {}

    def take(self, report: Report) -> None:
        """Take a report; of earlier ones, what never arrived is recorded."""
        for old in report.earlier:
            self.record(old)
        step, values = self.record(report.metrics)
        for note in report.notes:
            logger.info("%s%s", self._name, note)
        if values and self._due(step, values):
            text = f"{', '.join(told(values))}{self._left(step)}"
            logger.info("%sstep %s of %s: %s", self._name, f"{step:,}", f"{self._steps:,}", text)

    def record(self, metrics: Mapping[str, float]) -> tuple[int, dict[str, float]]:
        """Record metrics, `step` among them; returns the step and the others."""
        values = dict(metrics)
        step = int(values.pop(STEP))
        if values:
            self._tracker.log_metrics(values, step)
        for key in filter(_is_told, values):
            if math.isfinite(values[key]):
                steps, series = self.history.setdefault(key, ([], []))
                steps.append(step)
                series.append(values[key])
        return step, values

    def _due(self, step: int, values: Mapping[str, float]) -> bool:
        """Tell whether a person wants to read of this: not of every hundred steps of a training of seconds."""
        now = time.monotonic()
        due = (
            now - self._shown >= _QUIET_S
            or step == self._steps
            or math.isfinite(values.get("validation_loss", math.nan))
        )
        self._shown = now if due else self._shown
        return due

    def _left(self, step: int) -> str:
        """Return the time left, from the steps of this process: a training may go on from an earlier one."""
        if not self._first:
            self._first, self._began = step, time.monotonic()
            return ""
        seconds = (time.monotonic() - self._began) / max(1, step - self._first) * (self._steps - step)
        return f"; about {seconds:,.0f} s left"


def told(metrics: Mapping[str, float]) -> list[str]:
    """Return what a person is told of a report; what the machine did goes to the tracker alone.

    Losses, the best known figures of the validation part, the speed, and waiting for data if it took more than 5 %.
    """
    found = [f"{name} {value:.4g}" for name, value in metrics.items() if _is_told(name) and math.isfinite(value)]
    if "cells_per_s" in metrics:
        speed = metrics["cells_per_s"]
        found.append(f"{speed:,.0f} cells/s" if speed >= 10 else f"{speed:.2g} cells/s")
    if (waiting := metrics.get("data_wait_share", 0.0)) > _MUCH_WAITING:
        found.append(f"{waiting:.0%} of the time waiting for data")
    return found


def _is_told(name: str) -> bool:
    return name.rsplit("/", 1)[-1] in _TOLD and not name.startswith("token/")


def draw_training(recorders: Sequence[Recorder], path: Path, title: str) -> Path | None:
    """Draw losses and figures of trainings over their steps; of those that went on, the steps of this process.

    Returns the path, or None where nothing was reported: all had been done before.
    """
    losses: dict[str, Points] = {}
    figures: dict[str, Points] = {}
    for recorder in recorders:
        for name, points in recorder.history.items():
            if name.endswith("mae"):  # in a unit of its own: no scale fits it and shares
                continue
            label = name.removesuffix("_loss") if name.endswith("_loss") else name
            (losses if name.endswith("_loss") else figures)[f"{recorder.name} {label}".strip()] = points
    if not losses:
        return None
    training_png(losses, figures, path, title, best_step=recorders[0].kept if len(recorders) == 1 else None)
    return path


def report_queue() -> Any:  # noqa: ANN401  # a ray.util.queue.Queue
    """Return where `Report`s and `Loss`es arrive; None ends it. It lives beside the driver: other machines may go."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def send(queue: Any, item: Report) -> None:  # noqa: ANN401
    """Send without waiting; a driver that is gone is not missed."""
    queue.actor.put.remote(item)


def loss_relay(queue: Any) -> Any:  # noqa: ANN401  # a Ray Train callback
    """Return the callback by which Ray Train's controller tells of lost workers."""
    from ray.train import UserCallback

    class Relay(UserCallback):  # type: ignore[misc]
        """Passes on why workers were lost."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401
            """Take the errors by rank."""
            queue.put(loss_of(worker_exceptions))

    return Relay()


def loss_of(errors: Mapping[int, BaseException]) -> Loss:
    """Return which workers were lost and why: those that vanished, as the others only fail for want of them."""
    from ray.exceptions import RayActorError

    causes = {rank: root_cause(error) for rank, error in errors.items()}
    gone = tuple(rank for rank, cause in causes.items() if isinstance(cause, RayActorError))
    if gone:
        return Loss(gone, "the process was killed, or its machine went away")
    rank, cause = next(iter(causes.items()))
    text = " ".join(str(cause).split()) or "no message"
    return Loss((rank,), f"{type(cause).__name__}: {text[:_SHOWN]}")


@contextmanager
def shown(queue: Any, recorders: Sequence[Recipient], turn: Turn, most_losses: int) -> Iterator[None]:  # noqa: ANN401
    """Record and log what arrives while the block runs; what has arrived is recorded before it is left.

    Nothing more is recorded once another job has taken over: that one goes on with the very same run.

    Parameters
    ----------
    queue
        From `report_queue`.
    recorders
        One a plan.
    turn
        The job's.
    most_losses
        How often lost workers are replaced.
    """

    def take() -> None:
        losses, last = 0, None
        while (item := queue.get()) is not None:
            if turn.lost():
                continue
            if isinstance(item, Report):
                last = None
                recorders[item.plan].take(item)
            elif item != last:  # told again and again while the others are stopped
                losses, last = losses + 1, item
                _tell_loss(item, losses, most_losses)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield
    finally:
        queue.put(None)
        thread.join(_JOIN_S)
        queue.shutdown()


def _tell_loss(loss: Loss, losses: int, most: int) -> None:
    who = f"worker {', '.join(map(str, loss.ranks))} of the training stopped"
    then = "all start again from the newest checkpoint" if losses <= most else "that was once too often"
    logger.warning("%s (%s); %s (%s of %s restarts)", who, loss.why, then, f"{min(losses, most):,}", f"{most:,}")
