"""A file that takes over its reader gets bytes past it, and no secrets."""

import os
import pickle
import sys
from collections.abc import Callable
from functools import partial

import pytest

from cellray.data.isolated import CRASHED
from cellray.data.untrusted import BYTES, FAILED, REFUSED, call_untrusted
from cellray.errors import InputError


def sized(number: int) -> bytes:
    if number < 0:
        raise InputError("file", "numbers must be positive", f"{number}", "Take another.")
    return bytes(10 // number)


def test_bytes_come_back_and_errors_keep_their_words() -> None:
    assert call_untrusted(sized, 5, "file") == bytes(2)
    refused, unforeseen = call_untrusted(sized, -1, "file"), call_untrusted(sized, 0, "odd.h5ad")
    assert str(refused) == "file: numbers must be positive; found -1. Take another."
    assert "odd.h5ad: a file must be readable; found ZeroDivisionError" in str(unforeseen)


def test_what_says_nothing_of_the_file_is_raised() -> None:
    def read(number: int) -> bytes:
        raise PermissionError("no way in")

    with pytest.raises(RuntimeError, match="PermissionError: no way in"):
        call_untrusted(read, 1, "file")


class Trap:
    """What a pickle of it does when it is read."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit('a stranger ran this')",)


def take_over(words: bytes, _: int) -> bytes:
    """Answer in the reader's place, as code in a file could."""
    os.write(next(fd for fd in range(3, 20) if _writable(fd)), words)
    os._exit(0)


def _writable(fd: int) -> bool:
    import fcntl

    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR))
    except OSError:
        return False


@pytest.mark.parametrize(
    "words",
    [
        pickle.dumps(Trap()),
        REFUSED + pickle.dumps(Trap()),
        b"x",
        REFUSED + b"[1, 2",
        REFUSED + b"{}",
        FAILED + b"[[]]x",
    ],
)
def test_an_answer_is_never_unpickled(words: bytes) -> None:
    error = call_untrusted(partial(take_over, words), 1, "file")
    assert isinstance(error, InputError)
    assert (error.rule, error.found) == (CRASHED, "its reader gave an answer that is none")


def test_a_taken_over_reader_may_say_any_bytes_and_no_more() -> None:
    assert call_untrusted(partial(take_over, BYTES + b"abc"), 1, "file") == b"abc"
    error = call_untrusted(partial(take_over, REFUSED + b'["' + b"a" * 5000 + b'","b","c","d"]'), 1, "file")
    assert isinstance(error, InputError)
    assert error.subject == "a" * 2000


def test_a_reader_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("RAY_ADDRESS", "hidden")

    def names(_: int) -> bytes:
        return "\n".join(f"{name}={value}" for name, value in os.environ.items()).encode()

    found = call_untrusted(names, 1, "file")
    assert isinstance(found, bytes)
    assert b"hidden" not in found
    assert b"PATH=" in found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limits")
def test_a_reader_gains_no_privileges_and_writes_no_long_file() -> None:
    def look(_: int) -> bytes:
        import resource
        from pathlib import Path

        status = Path("/proc/self/status").read_text().replace("\t", " ")
        return f"{'NoNewPrivs: 1' in status} {resource.getrlimit(resource.RLIMIT_FSIZE)[0]}".encode()

    assert call_untrusted(look, 1, "file", answer_limit=1 << 30) == b"True 1073741824"
    error = call_untrusted(lambda _: bytes(2 << 20), 1, "file", answer_limit=1 << 20)
    assert isinstance(error, InputError)
