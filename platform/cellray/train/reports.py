"""What becomes of training reports: recorded by the trackers and shown on the log, both by the driver.

Workers' reports reach Ray Train's controller, which outlives lost workers; it only passes them on. The driver made the
runs and is their one writer, so a slow tracking server holds up nothing but this module's thread.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellray.plots.training import Points, training_png
from cellray.tracking import Tracker

logger = logging.getLogger(__name__)

_JOIN_S = 60.0
_QUIET_S = 5.0
_MUCH_WAITING = 0.05
_TOLD = ("train_loss", "validation_loss", "accuracy", "macro_f1", "r2", "mae")
NOTES, PLAN, STEP = "notes", "plan", "step"


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

    Attributes
    ----------
    history
        Steps and values by name of what a person is told, since this process began.
    """

    def __init__(self, tracker: Tracker, steps: int, name: str = "") -> None:
        self._tracker, self._steps, self._name = tracker, steps, f"{name}, " if name else ""
        self._began, self._first, self._shown = time.monotonic(), 0, -_QUIET_S
        self.name = name
        self.history: dict[str, tuple[list[int], list[float]]] = {}

    def take(self, metrics: Mapping[str, float], notes: Sequence[str]) -> None:
        """Take a report: metrics, `step` among them, and notes."""
        values = dict(metrics)
        step = int(values.pop(STEP))
        self._tracker.log_metrics(values, step)
        for key in filter(_is_told, values):
            if math.isfinite(values[key]):
                steps, series = self.history.setdefault(key, ([], []))
                steps.append(step)
                series.append(values[key])
        for note in notes:
            logger.info("%s%s", self._name, note)
        if self._due(step, values):
            text = f"{', '.join(told(values))}{self._left(step)}"
            logger.info("%sstep %s of %s: %s", self._name, f"{step:,}", f"{self._steps:,}", text)

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
        if step == self._steps:
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
    training_png(losses, figures, path, title)
    return path


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
    recorders: Sequence[Recorder]


def report_relay(recorders: Sequence[Recorder]) -> tuple[Reports, Any]:
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
