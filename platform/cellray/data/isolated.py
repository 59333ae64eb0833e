"""Calls a function for one file in a child process of its own, so that whatever befalls that process is an answer.

The child dies, ends, runs out of memory or of time, or raises what nobody foresaw: each is an `InputError` that names
the file. What is wrong with the machine or the storage is raised as it is. Knows nothing of Ray's tasks or of what is
called.
"""

import errno
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TypeVar

from cellray.errors import InputError, StorageError

T = TypeVar("T")
R = TypeVar("R")

TIME_LIMIT_S = 3600.0
"""Longest a call may take; a file that keeps its reader busy for longer counts as one that crashed it."""
MEMORY_LIMIT = 4 << 30
"""Least bytes that a call in a child may add to the child's memory; where the machine has more to spare, half of that.

Only children are limited. In a Ray worker the limit would hold for Ray's own threads too, and work in a worker may
rightly take more than a file's reader does; what takes too much there is killed, and tried again here.
"""
CRASHED = "a file may not crash its reader"
FIX = "The file is damaged or made to do harm: leave it out, or write it again from its source."
_SLOW = "Leave the file out, convert a matrix stored by gene to one stored by cell, or read from a faster storage."
STARTED = b"+"
"""A child's first word: what goes wrong after it is the call's doing."""
_LAST_WORDS = 1 << 14
_ENVIRONMENT = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE),
    *(errno.ESTALE, errno.EIO),
}
_ENVIRONMENT_ERRORS = (StorageError, ImportError, PermissionError, ConnectionError, TimeoutError)
_ENVIRONMENT_MODULES = ("ray", "botocore", "aiobotocore", "aiohttp")


def is_environmental(error: BaseException) -> bool:
    """Tell whether an exception says something of the machine, the storage or the cluster rather than of a file."""
    module = type(error).__module__.split(".", 1)[0]
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, _ENVIRONMENT_ERRORS) or module in _ENVIRONMENT_MODULES or number in _ENVIRONMENT


def call_isolated(
    function: Callable[[T], R],
    item: T,
    subject: str,
    time_limit_s: float = TIME_LIMIT_S,
    memory_limit: int | None = None,
) -> R | InputError:
    """Call a function in a child process; if that dies, say so in place of a result.

    Parameters
    ----------
    function
        Its `InputError` is a result.
    item
        Its argument.
    subject
        The file to name if the call fails.
    time_limit_s
        Longest the call may take. [s]
    memory_limit
        Most it may add to the child's memory, default: see `MEMORY_LIMIT`. Only Linux keeps to it. [bytes]

    Raises
    ------
    RuntimeError
        The child did not come so far as to make the call.
    StorageError, OSError
        What the call raised, where it says nothing of the file (see `is_environmental`).
    """
    from ray import cloudpickle

    call = cloudpickle.dumps((function, item, subject, memory_limit or _spare_memory()))
    answer = ask_child(__name__, call, subject, time_limit_s, dict(os.environ), times=", twice")
    if isinstance(answer, InputError):
        return answer
    # No door that was shut: a file that took over its reader would have done so in the worker, which reads it first.
    # Files that are read nowhere else are a matter for `cellray.data.untrusted`.
    found = pickle.loads(answer)  # noqa: S301
    if isinstance(found, Exception) and not isinstance(found, InputError):
        raise found
    result: R | InputError = found
    return result


def ask_child(
    module: str,
    call: bytes,
    subject: str,
    time_limit_s: float,
    environment: Mapping[str, str],
    answer_limit: int | None = None,
    times: str = "",
) -> bytes | InputError:
    """Run a module as a child process; return what it answers after `STARTED`, or the error that its end amounts to.

    Parameters
    ----------
    module
        Reads the call from standard input, writes `STARTED` once it begins to make it, then the answer.
    call
        What it is told.
    subject
        The file to name if it dies.
    time_limit_s
        Longest it may take. [s]
    environment
        Of the child; it finds modules where this process does.
    answer_limit
        Longest answer. [bytes]
    times
        What errors say of how often this was tried.

    Raises
    ------
    RuntimeError
        The child did not come so far as to make the call.
    """
    path = os.pathsep.join(path for path in sys.path if path)
    with TemporaryFile() as out, TemporaryFile() as words:  # files, not pipes: what it says may be long
        try:
            child = subprocess.run(  # noqa: S603  # this interpreter and a module of ours
                [sys.executable, "-m", module],
                input=call,
                stdout=out,
                stderr=words,
                check=False,
                env={**environment, "PYTHONPATH": path},
                timeout=time_limit_s,
            )
        except subprocess.TimeoutExpired:
            rule = "a file must be readable in bounded time"
            found = f"no end after {time_limit_s:,.0f} s{times}: it keeps its reader busy, or the storage is too slow"
            return InputError(subject, rule, found, _SLOW)
        if child.returncode < 0:
            return InputError(subject, CRASHED, f"its reader died of {_signal(-child.returncode)}{times}", FIX)
        if answer_limit is not None and out.seek(0, os.SEEK_END) > answer_limit:
            return InputError(subject, CRASHED, f"its reader's answer is longer than {answer_limit:,} bytes", FIX)
        out.seek(0)
        if out.read(len(STARTED)) != STARTED:
            raise RuntimeError(_last_line(words))
        answer = out.read()
        if child.returncode > 0 or not answer:
            found = f"its reader ended with status {child.returncode} and no answer{times} ({_last_line(words)[:200]})"
            return InputError(subject, CRASHED, found, FIX)
        return answer


def _last_line(words: IO[bytes]) -> str:
    """Return the last line of a file, of which only the end is read."""
    size = words.seek(0, os.SEEK_END)
    words.seek(max(0, size - _LAST_WORDS))
    return words.read().decode(errors="replace").strip().rsplit("\n", 1)[-1]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def unforeseen(error: Exception, subject: str) -> InputError:
    """Return what an exception that no reader foresaw says of a file; its traceback is a note of the error's."""
    first_line = str(error).strip().split("\n", 1)[0]
    result = InputError(subject, "a file must be readable", f"{type(error).__name__}: {first_line}", FIX)
    result.add_note("".join(traceback.format_exception(error)))
    return result


def _spare_memory() -> int:
    """Return half of the free memory in bytes, at least `MEMORY_LIMIT`."""
    free = 0
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        free = 1024 * int(text.split("MemAvailable:", 1)[1].split(None, 1)[0])
        container = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        free = min(free, int(container)) if container.isdecimal() else free
    return max(MEMORY_LIMIT, free // 2)


def limit_memory(added: int) -> None:
    """Let this process's memory grow by so many bytes and no further; only Linux keeps to it."""
    if sys.platform != "linux":
        return
    import resource

    status = Path("/proc/self/status").read_text()
    now = 1024 * int(status.split("VmData:", 1)[1].split(None, 1)[0])
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = now + added if hard == resource.RLIM_INFINITY else min(now + added, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def begin_child() -> IO[bytes]:
    """Make this process one that ends with its parent; return where the answer goes, which nothing printed reaches."""
    with suppress(OSError, AttributeError):  # the child must not outlive the worker that waits for it
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, Linux only
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answer
    return out


def _child() -> None:
    """Answer one call: a function and its argument come in, its result or its exception goes out, pickled."""
    from ray import cloudpickle

    out = begin_child()
    function, item, subject, limit = pickle.load(sys.stdin.buffer)  # noqa: S301  # written by the parent
    out.write(STARTED)
    out.flush()
    limit_memory(limit)
    try:
        answer = function(item)
    except InputError as error:
        answer = error
    except Exception as error:
        answer = error if is_environmental(error) else unforeseen(error, subject)
    cloudpickle.dump(answer, out)
    out.close()


if __name__ == "__main__":
    _child()
