"""Mapping over units and merging in a tree: sums against plain ones, lost workers, files that kill every worker."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellray.data.medians import map_merge
from cellray.data.medians.map_merge import Job, MergeTree, map_units
from cellray.errors import InputError

pytestmark = pytest.mark.usefixtures("ray_session")


def _square(number: int) -> tuple[str, int]:
    return f"did {number}", number**2


def _lose_worker_once(number: int, folder: str) -> tuple[str, int]:
    """Kill the process at the first call for each number."""
    marker = Path(folder) / str(number)
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return "", number


def _refuse(number: int) -> tuple[str, int]:
    raise InputError(f"file{number}", "r", "f", "x")


def _kill(number: int) -> tuple[str, int]:
    os._exit(number)


def _files(number: int | tuple[int, ...]) -> str:
    return ", ".join(f"file{n}" for n in (number if isinstance(number, tuple) else (number,)))


def _parts(unit: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [(number,) for number in unit]


def run(
    function: Callable[..., tuple[str, int]], numbers: list[int], *more: object, at_once: int | None = None
) -> tuple[int, list[str]]:
    import ray

    tree, summaries = MergeTree(sum), []
    job = Job(function, lambda n: [n, *more], _files, lambda n: [n])
    for number, summary, result in map_units(job, numbers, at_once):
        assert number in numbers
        if isinstance(summary, InputError):
            raise summary
        summaries.append(summary)
        tree.add(result)
    return ray.get(tree.finish()), sorted(summaries)


@pytest.mark.parametrize("n", [1, 3, 4, 17])
def test_everything_is_merged_once(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(map_merge, "FAN_IN", 3)
    numbers = list(range(n))
    total, summaries = run(_square, numbers, at_once=2)
    assert total == sum(number**2 for number in numbers)
    assert summaries == sorted(f"did {number}" for number in numbers)


def test_merging_sees_one_result_after_the_other() -> None:
    import ray

    def only_iterates(results: Iterator[int]) -> int:
        assert iter(results) is results
        return max(results)

    tree = MergeTree(only_iterates)
    for number in range(20):
        tree.add(ray.put(number))
    assert ray.get(tree.finish()) == 19


def test_a_lost_worker_is_replaced(tmp_path: Path) -> None:
    assert run(_lose_worker_once, [1, 2], str(tmp_path))[0] == 3


def test_bad_input_comes_as_itself_and_a_deadly_file_is_named() -> None:
    with pytest.raises(InputError, match="file7"):
        run(_refuse, [7])
    with pytest.raises(InputError, match="file9: a file may not crash its reader"):
        run(_kill, [9])


def _read_all(numbers: tuple[int, ...], tries: str) -> tuple[str, int]:
    for number in numbers:
        if number == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 5:
            raise ZeroDivisionError("an odd file")
        with (Path(tries) / str(number)).open("a") as file:
            file.write("x")
    return "", sum(numbers)


def test_of_a_unit_of_many_files_only_the_deadly_ones_are_named(tmp_path: Path) -> None:
    job = Job(_read_all, lambda unit: [unit, str(tmp_path)], _files, _parts)
    answers = {unit: [] for unit in ((0, 1), (2, 3, 4), (5, 6), (7, 8))}
    for unit, summary, _ in map_units(job, list(answers)):
        answers[unit].append(str(summary))
    assert answers[0, 1] == answers[7, 8] == [""]
    ((killed,), (odd,)) = answers[2, 3, 4], answers[5, 6]
    assert killed.startswith("file3: a file may not crash its reader; found its reader died of SIGSEGV")
    assert odd.startswith("file5: a file must be readable; found ZeroDivisionError: an odd file")


def _fail_together(numbers: tuple[int, ...]) -> tuple[str, int]:
    if len(numbers) > 1:
        os._exit(1)
    return "", 0


def test_files_that_fail_only_together_end_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_merge, "MOST_LOSSES", 1)
    ((_, summary, _),) = map_units(Job(_fail_together, lambda unit: [unit], _files, _parts), [(1, 2)])
    assert "file1, file2: files may not crash their reader; found 1 failures" in str(summary)
