"""What becomes of training reports: recorded by the tracker, shown on the driver's log."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cellray.tracking import Tracker

logger = logging.getLogger(__name__)

_END = ""
_JOIN_S = 10.0
NOTES, PLAN = "notes", "plan"


class Progress:
    """Turns reports into lines for people.

    Parameters
    ----------
    steps
        Those of the whole training.
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._began, self._first = steps, time.monotonic(), 0

    def line(self, step: int, values: dict[str, float]) -> str:
        """Return the line for a report."""
        self._first = self._first or step  # a training that goes on has not done the steps before in this time
        shown = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
        text = f"step {step:,} of {self._steps:,}: {shown}"
        if step == self._first:
            self._began = time.monotonic()
            return text
        left = (time.monotonic() - self._began) / (step - self._first) * (self._steps - step)
        return f"{text}; about {left:,.0f} s left"


def take(tracker: Tracker, progress: Progress, values: dict[str, float], notes: Sequence[str]) -> list[str]:
    """Record a report; return the lines that tell of it."""
    numbers = dict(values)
    step = int(numbers.pop("step"))
    lines = [*notes, progress.line(step, numbers)]
    try:
        tracker.log_metrics(numbers, step)
    except Exception as error:  # whatever a tracking server answers, training goes on
        lines.append(f"step {step:,} could not be recorded: {error}")
    return lines


def report_relay(trackers: Sequence[Tracker], steps: Sequence[int]) -> tuple[Any, Any]:
    """Return a Ray queue of log lines and the Ray Train callback that fills it.

    The callback runs in Ray Train's controller, which outlives lost workers, so a run has one writer.

    Parameters
    ----------
    trackers, steps
        The recorder and the number of steps of each plan.
    """
    from ray.train import UserCallback
    from ray.util.queue import Queue

    lines, progress = Queue(actor_options={"num_cpus": 0}), [Progress(number) for number in steps]

    class Relay(UserCallback):  # type: ignore[misc]
        """Records and passes on the reports of rank 0."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ANN401
            """Take one report."""
            values = dict(metrics[0])
            plan, notes = values.pop(PLAN), values.pop(NOTES)
            for line in take(trackers[plan], progress[plan], values, notes):
                lines.put(line)

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
