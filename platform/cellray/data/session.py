"""The Ray session a job runs in: the cluster it was submitted to, or an embedded one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cellray.config import WORKER_LOGS
from cellray.errors import InputError, StorageError


def ensure_ray() -> None:
    """Connect to the cluster of `RAY_ADDRESS`, or start Ray on this machine; do nothing if connected.

    Ray Data's own progress bars are turned off: stages log their progress in cells. What workers print stays in Ray's
    log files unless `CELLRAY_WORKER_LOGS` is set; their errors come back as exceptions.
    """
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        ray.init(
            address=os.environ.get("RAY_ADDRESS") or "local",
            logging_level=logging.ERROR,
            log_to_driver=bool(os.environ.get(WORKER_LOGS)),
        )
    for name in ("ray.data", "ray.train"):  # their progress is ours to tell; warnings still show
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that progress bars are off
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # or an InputError would come back as text in another error


def default_threads(workers: int, cpus_per_worker: float) -> int:
    """Return torch threads of a worker on CPU: all cores where it is the only one, else what it reserves."""
    return len(os.sched_getaffinity(0)) if workers == 1 else max(1, int(cpus_per_worker))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let a worker's `InputError` or `StorageError` come out as itself, not wrapped in Ray's errors and tracebacks."""
    try:
        yield
    except Exception as error:
        found = _own_error_within(error)
        if found is None or found is error:
            raise
        raise found from None


def _own_error_within(error: BaseException) -> InputError | StorageError | None:
    """Return the error of this library that Ray wrapped on its way from a worker, if that is what went wrong."""
    seen: list[BaseException] = []
    queue = [error]
    while queue:
        current = queue.pop()
        if type(current) is InputError or type(current) is StorageError:
            return current  # Ray's own wrapper is of a class derived from these, with a traceback for a message
        seen.append(current)
        queue.extend(cause for cause in _causes(current) if cause not in seen)
    return None


def root_cause(error: BaseException) -> BaseException:
    """Return the error that started it all, beneath Ray's wrappers."""
    seen = [error]
    while True:
        deeper = next((cause for cause in _causes(seen[-1]) if cause not in seen), None)
        if deeper is None:
            return seen[-1]
        seen.append(deeper)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what an error was raised from, in Python's terms and in Ray's."""
    candidates: list[Any] = [error.__cause__, error.__context__, getattr(error, "cause", None)]
    candidates.extend(getattr(error, "worker_failures", {}).values())
    for candidate in candidates:
        if isinstance(candidate, BaseException):
            yield candidate
