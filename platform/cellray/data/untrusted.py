"""Has a stranger's file read by a child process that may be taken over by it: the answer is bytes, never a pickle.

`cellray.data.isolated` guards against files that crash their reader; this one also against files that make it say what
they want. The child has the environment variables it needs and no others (no secrets), may gain no privileges, and
writes no file longer than an answer may be. It is the same user as its parent, so it is no sandbox: what that user can
read or reach, a child that was taken over can. Whoever asks must check the bytes as those of a stranger.
"""

import json
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from cellray.data.isolated import (
    CRASHED,
    FIX,
    STARTED,
    TIME_LIMIT_S,
    ask_child,
    begin_child,
    is_environmental,
    limit_memory,
    unforeseen,
)
from cellray.errors import InputError

T = TypeVar("T")

BYTES, REFUSED, FAILED = b"b", b"r", b"f"
"""Kinds of an answer: what the call returned, the four texts of its `InputError`, what went wrong around it (JSON)."""
MEMORY_LIMIT = 4 << 30
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SYSTEMROOT")
_KEPT_KINDS = ("LC_", "OMP_", "OPENBLAS_", "MKL_", "NUMBA_", "HDF5_", "PYTHONHASHSEED")
_LONGEST = 2000
_MOST_REFUSED = 1 << 16
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS


def call_untrusted(
    function: Callable[[T], bytes],
    item: T,
    subject: str,
    time_limit_s: float = TIME_LIMIT_S,
    memory_limit: int = MEMORY_LIMIT,
    answer_limit: int = MEMORY_LIMIT,
) -> bytes | InputError:
    """Call a function in a child process that the file it reads may take over.

    Parameters
    ----------
    function
        Returns bytes; its `InputError` is a result.
    item
        Its argument.
    subject
        The file to name if the call fails.
    time_limit_s
        Longest the call may take. [s]
    memory_limit
        Most it may add to the child's memory. Only Linux keeps to it. [bytes]
    answer_limit
        Longest answer. [bytes]

    Raises
    ------
    RuntimeError
        The child did not come so far as to make the call, or what went wrong in it says nothing of the file.
    """
    from ray import cloudpickle

    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_KINDS)}
    call = cloudpickle.dumps((function, item, subject, memory_limit, answer_limit))
    answer = ask_child(__name__, call, subject, time_limit_s, kept, answer_limit)
    if isinstance(answer, InputError):
        return answer
    kind, told = answer[:1], answer[1:]
    if kind == BYTES:
        return told
    texts = _texts(told)
    if kind == REFUSED and len(texts) == len(InputError("", "", "", "").args):
        return InputError(*texts)
    if kind == FAILED and len(texts) == 1:
        raise RuntimeError(texts[0])
    return InputError(subject, CRASHED, "its reader gave an answer that is none", FIX)


def _texts(told: bytes) -> list[str]:
    """Return a JSON list of texts, each cut to what a message may have; an empty one if it is something else."""
    try:
        found: Any = json.loads(told) if len(told) <= _MOST_REFUSED else []
    except (ValueError, RecursionError):
        return []
    return [str(each)[:_LONGEST] for each in found] if isinstance(found, list) else []


def _shut_doors(most_bytes: int) -> None:
    """Give up what this process does not need to read a file."""
    if sys.platform != "linux":
        return
    import ctypes
    import resource

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child() -> None:
    """Answer one call."""
    out = begin_child()
    function, item, subject, memory_limit, answer_limit = pickle.load(sys.stdin.buffer)  # noqa: S301  # written by the parent
    out.write(STARTED)
    out.flush()
    limit_memory(memory_limit)
    _shut_doors(answer_limit)
    try:
        kind, told = BYTES, function(item)
    except InputError as error:
        kind, told = REFUSED, _told(error.args)
    except Exception as error:
        if is_environmental(error) and not isinstance(error, ImportError):  # a file may ask for a library, too
            kind, told = FAILED, _told([f"{type(error).__name__}: {error}"])
        else:
            kind, told = REFUSED, _told(unforeseen(error, subject).args)
    out.write(kind + told)
    out.close()


def _told(texts: Any) -> bytes:  # noqa: ANN401  # texts, or what errors hold in their place
    return json.dumps([str(each)[:_LONGEST] for each in texts]).encode()


if __name__ == "__main__":
    _child()
