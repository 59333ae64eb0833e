"""Maps a pure function over units on Ray and merges the results in a tree, so that the driver handles little.

A task or result that is lost with its node is made again by Ray. Knows nothing of what is mapped or merged.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from cellray.errors import InputError

U = TypeVar("U")

FAN_IN = 8
"""Results that one task merges: few enough that those which wait for it do not fill the object store."""
Reference = Any
"""A Ray object reference."""


def map_units(
    function: Callable[..., tuple[Any, Any]],
    units: Sequence[U],
    arguments: Callable[[U], Sequence[Any]],
    subject: Callable[[U], str],
    at_once: int | None = None,
) -> Iterator[tuple[U, Any, Reference]]:
    """Call a function for each unit in a Ray task; yield (unit, summary, reference of the result) as they come.

    Parameters
    ----------
    function
        Returns a small summary, which comes here, and a result, which stays where it is.
    units
        The work.
    arguments
        What a unit's call gets; references among it come as what they refer to.
    subject
        The files a unit reads, for the message when they crash their reader.
    at_once
        Most tasks under way, default: what keeps the cluster busy.

    Raises
    ------
    InputError
        A unit's; or a unit's process died twice.
    """
    import ray

    call = ray.remote(_call).options(num_returns=2, max_retries=1)  # a file that crashes its reader: tried twice
    window = at_once or max(4, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting = list(reversed(units))
    running: dict[Reference, tuple[U, Reference]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < window:
                unit = waiting.pop()
                summary, result = call.remote(function, *arguments(unit))
                running[summary] = unit, result
            (done,), _ = ray.wait(list(running))
            unit, result = running.pop(done)
            try:
                answer = ray.get(done)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                rule, found = "a file may not crash its reader", "its process died, twice"
                fix = "Leave the damaged file out, or give workers more memory."
                raise InputError(subject(unit), rule, found, fix) from None
            if isinstance(answer, InputError):
                raise answer
            yield unit, answer, result
    finally:  # reached early on an error or an interrupt: what still runs is of no use
        for reference in running:
            with suppress(Exception):
                ray.cancel(reference)


def _call(function: Callable[..., tuple[Any, Any]], *arguments: Any) -> tuple[Any, Any]:  # noqa: ANN401
    try:
        return function(*arguments)
    except InputError as error:  # an answer: nobody waits for the result, and Ray would log it as an error unhandled
        return error, None


class MergeTree:
    """Merges results in Ray tasks of up to `FAN_IN`, level by level, while others are still to come."""

    def __init__(self, merge: Callable[[Iterator[Any]], Any]) -> None:
        import ray

        self._merge = ray.remote(_merge_all)
        self._function = merge
        self._levels: list[list[Reference]] = [[]]

    def add(self, result: Reference, level: int = 0) -> None:
        """Take a result."""
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(result)
        if len(self._levels[level]) == FAN_IN:
            full, self._levels[level] = self._levels[level], []
            self.add(self._merge.remote(self._function, *full), level + 1)

    def finish(self) -> Reference:
        """Merge what is left and return the reference of the one result."""
        left = [reference for level in self._levels for reference in level]
        while len(left) > 1:
            left = [self._merge.remote(self._function, *left[i : i + FAN_IN]) for i in range(0, len(left), FAN_IN)]
        return left[0]


def _merge_all(function: Callable[[Iterator[Any]], Any], *results: Any) -> Any:  # noqa: ANN401
    return function(iter(results))
