"""The Ray session a job runs in: the cluster it was submitted to, or an embedded one on this machine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cellray.errors import InputError


def ensure_ray() -> None:
    """Connect to the cluster of `RAY_ADDRESS`, or start Ray on this machine; do nothing if connected.

    Ray Data's own progress bars are turned off: stages log their progress in cells.
    """
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING, log_to_driver=True)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let the `InputError` of a worker come out as itself, not wrapped in Ray's errors and tracebacks."""
    try:
        yield
    except Exception as error:
        found = _input_error_within(error)
        if found is None or found is error:
            raise
        raise found from None


def _input_error_within(error: BaseException) -> InputError | None:
    """Return the `InputError` that Ray wrapped on its way from a worker, if that is what went wrong."""
    seen: list[BaseException] = []
    queue = [error]
    while queue:
        current = queue.pop()
        if isinstance(current, InputError):
            return InputError(*current.args) if len(current.args) == 4 else current
        seen.append(current)
        queue.extend(cause for cause in _causes(current) if cause not in seen)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what an error was raised from, in Python's terms and in Ray's."""
    candidates: list[Any] = [error.__cause__, error.__context__, getattr(error, "cause", None)]
    candidates.extend(getattr(error, "worker_failures", {}).values())
    for candidate in candidates:
        if isinstance(candidate, BaseException):
            yield candidate
