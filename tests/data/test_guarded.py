"""A file that crashes, stalls or kills its reader is tried twice, reported, and costs nothing else."""

import errno
import os
import signal
import sys
import time
import types
from pathlib import Path

import pytest

from cellray.data.guarded import _AGAIN, MOST_LOSSES, _Losses, call_guarded
from cellray.data.isolated import CRASHED, call_isolated, is_environmental
from cellray.errors import InputError, StorageError


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise InputError("file", "a rule", f"{number}", "a fix")


def crash(number: int) -> int:
    """Die as a C library does that reads beyond its memory."""
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)
    return number


def test_results_come_back_with_their_items(ray_session: None) -> None:
    assert dict(call_guarded(square, range(40), str, at_once=3)) == {i: i * i for i in range(40)}


def test_a_refusal_is_a_result(ray_session: None) -> None:
    ((item, found),) = call_guarded(refuse, [5], str)
    assert item == 5
    assert str(found) == str(InputError("file", "a rule", "5", "a fix"))


def test_a_crashing_file_is_tried_twice_and_the_others_are_done(ray_session: None, tmp_path: Path) -> None:
    def read(number: int) -> int:
        with (tmp_path / f"{number}").open("a") as tries:
            tries.write("x")
        return crash(number) if number == 7 else number

    found = dict(call_guarded(read, range(12), lambda n: f"cells-{n}.h5ad"))
    error = found.pop(7)
    assert found == {n: n for n in range(12) if n != 7}
    assert isinstance(error, InputError)
    assert "cells-7.h5ad: a file may not crash its reader; found its reader died of SIGSEGV, twice" in str(error)
    assert (tmp_path / "7").read_text() == "xx"


def test_a_worker_killed_from_outside_is_not_the_files_fault(ray_session: None, tmp_path: Path) -> None:
    def read(number: int) -> int:
        first = not (tmp_path / f"{number}").exists()
        (tmp_path / f"{number}").touch()
        if first and number % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert dict(call_guarded(read, range(6), str)) == {n: n for n in range(6)}


def test_a_file_that_never_ends_is_stopped(ray_session: None) -> None:
    def stall(number: int) -> int:
        time.sleep(60)
        return number

    ((_, error),) = call_guarded(stall, [1], lambda _: "slow.h5ad", time_limit_s=1.0)
    assert "slow.h5ad" in str(error)
    assert "no end after 1 s, twice" in str(error)


def test_a_child_that_cannot_start_is_no_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = types.ModuleType("ghost")
    exec("def read(n): return n", ghost.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "ghost", ghost)  # importable here, not in the child
    with pytest.raises(RuntimeError, match="No module named 'ghost'"):
        call_isolated(ghost.read, 1, "file", 60)


def test_what_a_library_prints_does_not_mix_with_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    def noisy(number: int) -> int:
        print("a library says something")  # noqa: T201
        return 10 // number

    assert call_isolated(noisy, 5, "file", 60) == 2


def boom(number: int) -> int:
    return 10 // number


def test_an_error_nobody_foresaw_names_the_file_and_keeps_its_traceback() -> None:
    error = call_isolated(boom, 0, "odd.h5ad")
    assert isinstance(error, InputError)
    found = "odd.h5ad: a file must be readable; found ZeroDivisionError: integer division or modulo by zero."
    assert str(error).startswith(found)
    assert "in boom" in error.__notes__[0]


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (PermissionError("no errno"), True),
        (StorageError("s3://a/b", "GetObject", 6, "503"), True),
        (ModuleNotFoundError("No module named 'scanpy'"), True),
        (OSError("Can't synchronously read data"), False),
        (ZeroDivisionError("division by zero"), False),
        (MemoryError(), False),
    ],
)
def test_whether_it_is_the_file_or_all_around_it(error: Exception, wanted: bool) -> None:
    assert is_environmental(error) == wanted

    def read(number: int) -> int:
        raise error

    if not wanted:
        assert isinstance(call_isolated(read, 1, "file"), InputError)
        return
    with pytest.raises(type(error)) as raised:
        call_isolated(read, 1, "file")
    assert str(raised.value) == str(error)


@pytest.mark.parametrize("status", [0, 3])
def test_a_reader_that_ends_its_process_is_one_that_crashed(status: int) -> None:
    error = call_isolated(os._exit, status, "quitter.h5ad")
    assert isinstance(error, InputError)
    assert error.rule == CRASHED
    assert f"ended with status {status} and no answer" in str(error)


def allocate(size: int) -> int:
    return len(bytearray(size))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limit")
def test_a_child_has_so_much_memory_and_no_more() -> None:
    assert call_isolated(allocate, 100 << 20, "sound.h5ad", memory_limit=200 << 20) == 100 << 20
    error = call_isolated(allocate, 300 << 20, "bomb.h5ad", memory_limit=200 << 20)
    assert "bomb.h5ad: a file must be readable; found MemoryError" in str(error)


def test_a_call_that_always_loses_its_worker_ends_with_its_file_named() -> None:
    losses, lost = _Losses(), RuntimeError("lost")
    assert [losses.add(lost, "f") for _ in range(MOST_LOSSES - 1)] == [_AGAIN] * (MOST_LOSSES - 1)
    assert "f: a file may not crash its reader; found its reader lost its worker 10 times" in str(losses.add(lost, "f"))


def test_a_worker_killed_twice_for_want_of_memory_is_the_files_fault() -> None:
    losses, killed = _Losses(), MemoryError()
    losses.add(RuntimeError("lost"), "f")
    assert losses.add(killed, "f", out_of_memory=True) is _AGAIN
    assert "needs more memory than a worker has" in str(losses.add(killed, "f", out_of_memory=True))


def test_odd_files_end_no_job(ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that divides by zero, one that ends its process, one that kills every worker around its reader."""

    def read(number: int) -> int:
        if number == 1:
            return boom(0)
        if number == 2:
            os._exit(3)
        if number == 3:
            if "cellray.data.isolated" in Path("/proc/self/cmdline").read_text():
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(5)
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    found = dict(call_guarded(read, range(6), lambda n: f"cells-{n}.h5ad"))
    errors = {n: str(found.pop(n)) for n in (1, 2, 3)}
    assert found == {n: n for n in (0, 4, 5)}
    assert all(error.startswith(f"cells-{n}.h5ad: ") for n, error in errors.items())
    assert "ZeroDivisionError" in errors[1]
    assert "status 3" in errors[2]
    assert "lost its worker 10 times" in errors[3]
    assert "in boom" in caplog.text


def test_a_failing_storage_ends_the_iteration(ray_session: None) -> None:
    def read(number: int) -> int:
        raise StorageError("s3://bucket/cells.h5ad", "GetObject", 6, "503")

    with pytest.raises(StorageError, match="the storage did not do GetObject"):
        list(call_guarded(read, [1], str))
