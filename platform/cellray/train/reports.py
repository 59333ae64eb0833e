"""What becomes of training reports: recorded by the trackers and shown on the log, both by the driver.

The first worker sends them straight to a queue: reports to Ray Train's controller would make training wait, since it
fetches one every two seconds. The driver made the runs and is their one writer, so a slow tracking server holds up
nothing but this module's thread.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cellray.data.session import root_cause
from cellray.tracking import Tracker
from cellray.train.turn import Turn

logger = logging.getLogger(__name__)

_JOIN_S = 60.0
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
        self._began, self._first = time.monotonic(), 0

    def take(self, report: Report) -> None:
        """Take a report; of earlier ones, what never arrived is recorded."""
        for old in report.earlier:
            self.record(old)
        step, values = self.record(report.metrics)
        for note in report.notes:
            logger.info("%s%s", self._name, note)
        if values:
            text = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
            logger.info("%sstep %s of %s: %s%s", self._name, f"{step:,}", f"{self._steps:,}", text, self._left(step))

    def record(self, metrics: Mapping[str, float]) -> tuple[int, dict[str, float]]:
        """Record metrics, `step` among them; returns the step and the others."""
        values = dict(metrics)
        step = int(values.pop(STEP))
        if values:
            self._tracker.log_metrics(values, step)
        return step, values

    def _left(self, step: int) -> str:
        """Return the time left, from the steps of this process: a training may go on from an earlier one."""
        if not self._first:
            self._first, self._began = step, time.monotonic()
            return ""
        seconds = (time.monotonic() - self._began) / max(1, step - self._first) * (self._steps - step)
        return f"; about {seconds:,.0f} s left"


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
def shown(queue: Any, recorders: Sequence[Recorder], turn: Turn, most_losses: int) -> Iterator[None]:  # noqa: ANN401
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
