"""What becomes of training reports: recorded by the trackers and shown on the log, both by the driver.

Workers' reports reach Ray Train's controller, which outlives lost workers; it only passes them on. The driver made the
runs and is their one writer, so a slow tracking server holds up nothing but this module's thread.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from cellray.tracking import Tracker

logger = logging.getLogger(__name__)

_JOIN_S = 60.0
NOTES, PLAN, STEP = "notes", "plan", "step"


class Recipient(Protocol):
    """Takes the reports of one training."""

    def take(self, metrics: Mapping[str, float], notes: Sequence[str]) -> None:
        """Take a report: metrics, `step` among them, and notes."""
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
        self._began, self._first = time.monotonic(), 0

    def take(self, metrics: Mapping[str, float], notes: Sequence[str]) -> None:
        """Take a report: metrics, `step` among them, and notes."""
        values = dict(metrics)
        step = int(values.pop(STEP))
        self._tracker.log_metrics(values, step)
        for note in notes:
            logger.info("%s%s", self._name, note)
        text = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
        logger.info("%sstep %s of %s: %s%s", self._name, f"{step:,}", f"{self._steps:,}", text, self._left(step))

    def _left(self, step: int) -> str:
        """Return the time left, from the steps of this process: a training may go on from an earlier one."""
        if not self._first:
            self._first, self._began = step, time.monotonic()
            return ""
        seconds = (time.monotonic() - self._began) / max(1, step - self._first) * (self._steps - step)
        return f"; about {seconds:,.0f} s left"


@dataclass(frozen=True)
class Reports:
    """Reports on their way to the driver.

    Attributes
    ----------
    queue
        A `ray.util.queue.Queue` of metrics by name, with `notes` and the number of the plan; None ends it.
    recorders
        One a plan.
    """

    queue: Any
    recorders: Sequence[Recipient]


def report_relay(recorders: Sequence[Recipient]) -> tuple[Reports, Any]:
    """Return where reports arrive, for `shown`, and the Ray Train callback that sends them there."""
    from ray.train import UserCallback
    from ray.util.queue import Queue

    queue = Queue(actor_options={"num_cpus": 0})

    class Relay(UserCallback):  # type: ignore[misc]
        """Passes on the reports of rank 0."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ANN401
            """Take one report."""
            queue.put(dict(metrics[0]))

    return Reports(queue, recorders), Relay()


@contextmanager
def shown(reports: Reports) -> Iterator[None]:
    """Record and log reports while the block runs; what has arrived is recorded before it is left."""

    def take() -> None:
        while (values := reports.queue.get()) is not None:
            notes = values.pop(NOTES)
            reports.recorders[values.pop(PLAN)].take(values, notes)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield
    finally:
        reports.queue.put(None)
        thread.join(_JOIN_S)
        reports.queue.shutdown()
