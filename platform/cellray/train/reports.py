"""What becomes of training reports: recorded by the tracker, shown on the driver's log."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cellray.tracking import Tracker

logger = logging.getLogger(__name__)

_END = ""
_JOIN_S = 10.0


def report_relay(tracker: Tracker, steps: int) -> tuple[Any, Any]:
    """Return a Ray queue of log lines and the Ray Train callback that fills it.

    The callback runs in Ray Train's controller, which outlives lost workers, so a run has one writer.
    """
    from ray.train import UserCallback
    from ray.util.queue import Queue

    began = time.monotonic()
    lines = Queue(actor_options={"num_cpus": 0})

    class Relay(UserCallback):  # type: ignore[misc]
        """Records and passes on the reports of rank 0."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ANN401
            """Take one report."""
            values = dict(metrics[0])
            step = int(values.pop("step"))
            try:
                tracker.log_metrics(values, step)
            except Exception as error:  # whatever a tracking server answers, training goes on
                lines.put(f"step {step:,} could not be recorded: {error}")
            left = (time.monotonic() - began) / step * (steps - step)
            shown = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
            lines.put(f"step {step:,} of {steps:,}: {shown}; about {left:,.0f} s left")

    return lines, Relay()


@contextmanager
def shown(lines: Any) -> Iterator[None]:  # noqa: ANN401  # a ray.util.queue.Queue
    """Log the lines of a queue while the block runs."""

    def log() -> None:
        while (line := lines.get()) != _END:
            logger.info("%s", line)

    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    try:
        yield
    finally:
        lines.put(_END)
        thread.join(_JOIN_S)
        lines.shutdown()
