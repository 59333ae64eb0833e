"""A file that crashes, stalls or kills its reader is tried twice, reported, and costs nothing else."""

import os
import signal
import sys
import time
import types
from pathlib import Path

import pytest

from cellray.data.guarded import call_guarded, call_isolated
from cellray.errors import InputError


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


def test_errors_of_ours_come_out_of_the_child(capfd: pytest.CaptureFixture[str]) -> None:
    def noisy(number: int) -> int:
        print("a library says something")  # noqa: T201
        return 10 // number

    assert call_isolated(noisy, 5, "file", 60) == 2
    with pytest.raises(ZeroDivisionError):
        call_isolated(noisy, 0, "file", 60)
