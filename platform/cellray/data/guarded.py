"""Calls a function for many files on Ray, so that a file which crashes its reader costs only itself.

A call whose process dies (a crash in a C library, the kernel's memory killer, a lost node) is made again, now in a
child process of its own. If the child dies too, the file is reported as bad: it was tried twice. If what died was not
the child but the worker around it, the file is not to blame, and the call is made again. Knows nothing of what is
called.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar

from cellray.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=Hashable)
R = TypeVar("R")

MOST_LOSSES = 10
"""Times a call may lose the worker around it before the cluster is called broken."""
TIME_LIMIT_S = 3600.0
"""Longest a call may take; a file that keeps its reader busy for longer counts as one that crashed it."""
_LEAST_UNDER_WAY = 16
_LOOK_EVERY_S = 5.0
_FIX = "The file is damaged or made to do harm: leave it out, or write it again from its source."


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
        Travels once to each worker process. Its `InputError` is a result; any other exception ends the iteration.
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
    """
    import ray

    shared = ray.put(function)
    call = ray.remote(_call).options(max_retries=0, num_cpus=num_cpus)
    window = _Window(at_once)
    waiting, losses = list(reversed(items)), dict.fromkeys(items, 0)
    running: dict[Any, T] = {}
    try:
        while waiting or running:
            while waiting and len(running) < window.size():
                item = waiting.pop()
                running[call.remote([shared], item, subject(item), losses[item] > 0, time_limit_s)] = item
            (done,), _ = ray.wait(list(running))
            item = running.pop(done)
            try:
                yield item, ray.get(done)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
                losses[item] += 1
                logger.warning("a worker died at %s; trying again (%d)", subject(item), losses[item])
                if losses[item] >= MOST_LOSSES:
                    raise
                waiting.append(item)
    finally:  # reached early on an error or an interrupt: what still runs is of no use
        for reference in running:
            with suppress(Exception):
                ray.cancel(reference, force=True)


class _Window:
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
    if isolated:
        return call_isolated(function, item, subject, time_limit_s)
    signal.setitimer(signal.ITIMER_REAL, time_limit_s)  # its signal ends this process, even inside a C library
    try:
        return function(item)
    except InputError as error:  # an answer, not a crash: the other items go on
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@lru_cache(maxsize=2)
def _fetch(reference: Any) -> Callable[[Any], Any]:  # noqa: ANN401  # a Ray object reference
    """Return a function from Ray's object store, unpacked once a process."""
    import ray

    function: Callable[[Any], Any] = ray.get(reference)
    return function


def call_isolated(function: Callable[[T], R], item: T, subject: str, time_limit_s: float) -> R | InputError:
    """Call a function in a child process; if that dies, say so in place of a result."""
    from ray import cloudpickle

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        child = subprocess.run(  # noqa: S603  # this interpreter and this module
            [sys.executable, "-m", __name__],
            input=cloudpickle.dumps((function, item)),
            capture_output=True,
            check=False,
            env=environment,
            timeout=time_limit_s,
        )
    except subprocess.TimeoutExpired:
        found = f"no end after {time_limit_s:,.0f} s, twice"
        return InputError(subject, "a file must be readable in bounded time", found, _FIX)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        found = f"its reader died of {name}, twice"
        return InputError(subject, "a file may not crash its reader", found, _FIX)
    if child.returncode > 0:
        raise RuntimeError(child.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1])
    answer = pickle.loads(child.stdout)  # noqa: S301  # written by the child, which runs our own code
    if isinstance(answer, Exception) and not isinstance(answer, InputError):
        raise answer
    result: R | InputError = answer
    return result


def _child() -> None:
    """Answer one call: a function and its argument come in, its result or its exception goes out, pickled."""
    from ray import cloudpickle

    with suppress(OSError, AttributeError):  # the child must not outlive the worker that waits for it
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, Linux only
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answer
    function, item = pickle.load(sys.stdin.buffer)  # noqa: S301  # written by the parent
    try:
        answer = function(item)
    except Exception as error:
        answer = error
    cloudpickle.dump(answer, out)
    out.close()


if __name__ == "__main__":
    _child()
