"""What becomes of training reports: recorded by the tracker and shown on the log, both by the driver.

Workers' reports reach Ray Train's controller, which outlives lost workers; it only passes them on. The driver made the
run and is its one writer, so a slow tracking server holds up nothing but this module's thread.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cellray.tracking import Tracker

logger = logging.getLogger(__name__)

_JOIN_S = 60.0


@dataclass(frozen=True)
class Reports:
    """Reports on their way to the driver.

    Attributes
    ----------
    queue
        A `ray.util.queue.Queue` of metrics by name, `step` among them; None ends it.
    tracker
        Records them.
    steps
        Optimiser steps to be done.
    """

    queue: Any
    tracker: Tracker
    steps: int


def report_relay(tracker: Tracker, steps: int) -> tuple[Reports, Any]:
    """Return where reports arrive, for `shown`, and the Ray Train callback that sends them there."""
    from ray.train import UserCallback
    from ray.util.queue import Queue

    queue = Queue(actor_options={"num_cpus": 0})

    class Relay(UserCallback):  # type: ignore[misc]
        """Passes on the reports of rank 0."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ANN401
            """Take one report."""
            queue.put(dict(metrics[0]))

    return Reports(queue, tracker, steps), Relay()


@contextmanager
def shown(reports: Reports) -> Iterator[None]:
    """Record and log reports while the block runs; what has arrived is recorded before it is left."""
    began = time.monotonic()

    def take() -> None:
        while (values := reports.queue.get()) is not None:
            step = int(values.pop("step"))
            reports.tracker.log_metrics(values, step)
            left = (time.monotonic() - began) / max(1, step) * (reports.steps - step)
            text = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
            logger.info("step %s of %s: %s; about %s s left", f"{step:,}", f"{reports.steps:,}", text, f"{left:,.0f}")

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield
    finally:
        reports.queue.put(None)
        thread.join(_JOIN_S)
        reports.queue.shutdown()
