"""Calls a function for many files on Ray, so that a file which harms its reader costs only itself.

A call whose process dies (a crash in a C library, the kernel's memory killer, a lost node), or that raises what nobody
foresaw, is made again, now in a child process of its own. If that fails too, the file is reported as bad: it was tried
twice. If what died was not the child but the worker around it, the file is not to blame, unless that goes on and on,
and the call is made again. Knows nothing of what is called.
"""

import logging
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from cellray.data.isolated import CRASHED, FIX, TIME_LIMIT_S, call_isolated, is_environmental
from cellray.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=Hashable)
R = TypeVar("R")

MOST_LOSSES = 10
"""Times a call may lose the worker around it before its file is called bad after all: else the job would never end."""
MOST_OUT_OF_MEMORY = 2
"""Times Ray may kill the worker around a call for want of memory before its file is called bad."""
_LEAST_UNDER_WAY = 16
_LOOK_EVERY_S = 5.0


def call_guarded(
    function: Callable[[T], R],
    items: Sequence[T],
    subject: Callable[[T], str],
    at_once: int | None = None,
    num_cpus: float = 1,
    time_limit_s: float = TIME_LIMIT_S,
) -> Iterator[tuple[T, R | InputError]]:
    """Call a function for each item in a Ray task; yield (item, result) as they come.

    Parameters
    ----------
    function
        Travels once to each worker process. Its `InputError` is a result, and what it raises unforeseen becomes one.
    items
        Its arguments.
    subject
        The file an item is about, for the message when it is to blame.
    at_once
        Most calls under way; default: what keeps the cluster busy.
    num_cpus
        Of each call.
    time_limit_s
        Longest a call may take. [s]

    Raises
    ------
    StorageError, OSError, RuntimeError
        The storage, a disk or the cluster fails: nothing that leaving out a file would help.
    """
    import ray

    shared = ray.put(function)
    call = ray.remote(_call).options(max_retries=0, num_cpus=num_cpus)
    window = Window(at_once)
    waiting, losses = list(reversed(items)), {item: _Losses() for item in items}
    running: dict[Any, T] = {}
    try:
        while waiting or running:
            while waiting and len(running) < window.size():
                item = waiting.pop()
                running[call.remote([shared], item, subject(item), losses[item].workers > 0, time_limit_s)] = item
            (done,), _ = ray.wait(list(running))
            item = running.pop(done)
            try:
                result = ray.get(done)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                result = losses[item].add(error, subject(item))
            except ray.exceptions.OutOfMemoryError as error:
                result = losses[item].add(error, subject(item), out_of_memory=True)
            if result is _AGAIN:
                waiting.insert(0, item)  # last: what kills workers now may have passed by then
                continue
            for note in getattr(result, "__notes__", ()) if isinstance(result, InputError) else ():
                logger.warning("what reading %s raised:\n%s", subject(item), note)
            yield item, result
    finally:  # reached early on an error or an interrupt: what still runs is of no use
        for reference in running:
            with suppress(Exception):
                ray.cancel(reference)  # not by force: writers clear away what they began


_AGAIN: Any = object()


@dataclass
class _Losses:
    """What befell the workers around one call."""

    workers: int = 0
    out_of_memory: int = 0

    def add(self, error: Exception, subject: str, *, out_of_memory: bool = False) -> Any:  # noqa: ANN401
        """Count a lost worker; return `_AGAIN`, or the error that so many amount to."""
        self.workers += 1
        self.out_of_memory += out_of_memory
        if self.out_of_memory >= MOST_OUT_OF_MEMORY:
            found = f"its reader needs more memory than a worker has: {self.out_of_memory} were killed for it"
            return InputError(subject, "a file must be readable in bounded memory", found, FIX)
        if self.workers >= MOST_LOSSES:
            found = f"its reader lost its worker {self.workers} times ({type(error).__name__})"
            fix = "Leave the file out; if others fail like this, it is the cluster that is at fault."
            return InputError(subject, CRASHED, found, fix)
        logger.warning("a worker died at %s; trying again (%d)", subject, self.workers)
        return _AGAIN


class Window:
    """How many calls may be under way: twice the cluster's CPUs, which may become more while it grows."""

    def __init__(self, at_once: int | None) -> None:
        self._fixed, self._size, self._known_until = at_once, 0, 0.0

    def size(self) -> int:
        """Return the present size."""
        import ray

        if self._fixed is None and time.monotonic() >= self._known_until:
            self._size = max(_LEAST_UNDER_WAY, 2 * int(ray.cluster_resources().get("CPU", 1)))
            self._known_until = time.monotonic() + _LOOK_EVERY_S
        return self._fixed or self._size


def _call(shared: list[Any], item: Any, subject: str, isolated: bool, time_limit_s: float) -> Any:  # noqa: ANN401
    """Run in a Ray worker."""
    function = _fetch(shared[0])
    if not isolated:
        signal.setitimer(signal.ITIMER_REAL, time_limit_s)  # its signal ends this process, even inside a C library
        try:
            return function(item)
        except InputError as error:  # an answer, not a crash: the other items go on
            return error
        except Exception as error:
            if is_environmental(error):
                raise
            logger.warning("%s failed unforeseen; trying again in a child process", subject, exc_info=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return call_isolated(function, item, subject, time_limit_s)


@lru_cache(maxsize=2)
def _fetch(reference: Any) -> Callable[[Any], Any]:  # noqa: ANN401  # a Ray object reference
    """Return a function from Ray's object store, unpacked once a process."""
    import ray

    function: Callable[[Any], Any] = ray.get(reference)
    return function
