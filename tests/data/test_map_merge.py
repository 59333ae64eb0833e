"""Mapping over units and merging in a tree: sums against plain ones, lost workers, files that kill every worker."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellray.data.medians import map_merge
from cellray.data.medians.map_merge import MergeTree, map_units
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


def _files(number: int) -> str:
    return f"file{number}"


def run(
    function: Callable[..., tuple[str, int]], numbers: list[int], *more: object, at_once: int | None = None
) -> tuple[int, list[str]]:
    import ray

    tree, summaries = MergeTree(sum), []
    for number, summary, result in map_units(function, numbers, lambda n: [n, *more], _files, at_once):
        assert number in numbers
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
