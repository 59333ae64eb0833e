"""Closes runs as the work that they record ends: done, failed, or interrupted by a person. Knows no MLflow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cellray.tracking.contract import Status, Tracker


@contextmanager
def closing(trackers: Sequence[Tracker]) -> Iterator[None]:
    """Close runs when the block is left: FINISHED; KILLED by Ctrl-C; FAILED by any other error."""
    try:
        yield
    except BaseException as error:
        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        for tracker in trackers:
            tracker.finish(status)
        raise
    for tracker in trackers:
        tracker.finish("FINISHED")
