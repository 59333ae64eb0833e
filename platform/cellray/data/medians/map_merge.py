"""Maps a pure function over units on Ray and merges the results in a tree, so that the driver handles little.

A task or result that is lost with its node is made again by Ray. Where a unit's process dies, or raises what nobody
foresaw, the parts of the unit are tried one by one, each in a child process, to find the file that is to blame. Knows
nothing of what is mapped or merged.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cellray.data.guarded import Window
from cellray.data.isolated import CRASHED, FIX, call_isolated, is_environmental
from cellray.errors import InputError

logger = logging.getLogger(__name__)

U = TypeVar("U")

FAN_IN = 8
"""Results that one task merges: few enough that those which wait for it do not fill the object store."""
MOST_LOSSES = 5
"""Times a unit may fail though each of its parts is sound, before all of them are named."""
Reference = Any
"""A Ray object reference."""


@dataclass(frozen=True)
class Job:
    """What is done with units.

    Attributes
    ----------
    function
        Returns a small summary, which comes to the driver, and a result, which stays where it is.
    arguments
        What a unit's call gets; references among it come as what they refer to.
    subject
        The files a unit reads, for the message when they crash their reader.
    parts
        The units of one file each that a unit consists of.
    """

    function: Callable[..., tuple[Any, Any]]
    arguments: Callable[[Any], Sequence[Any]]
    subject: Callable[[Any], str]
    parts: Callable[[Any], Sequence[Any]]


def map_units(job: Job, units: Sequence[U], at_once: int | None = None) -> Iterator[tuple[U, Any, Reference]]:
    """Do each unit in a Ray task; yield (unit, summary, reference of the result) as they come.

    A unit with bad files comes once for each, with an `InputError` in place of its summary and no result.

    Parameters
    ----------
    job
        What is done.
    units
        The work.
    at_once
        Most tasks under way, default: what keeps the cluster busy.

    Raises
    ------
    StorageError, OSError, RuntimeError
        The storage, a disk or the cluster fails.
    """
    import ray

    call = ray.remote(_call).options(
        num_returns=2, max_retries=1
    )  # without retries a result lost with its node would be gone
    window = Window(at_once)
    waiting, losses = list(reversed(units)), Counter[U]()
    running: dict[Reference, tuple[U, Reference]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < window.size():
                unit = waiting.pop()
                summary, result = call.remote(job.function, *job.arguments(unit))
                running[summary] = unit, result
            (done,), _ = ray.wait(list(running))
            unit, result = running.pop(done)
            answer = _get(done)
            if not isinstance(answer, _Lost):
                yield unit, answer, result
                continue
            logger.warning("a task died at %s (%s); looking for the file to blame", job.subject(unit), answer.found)
            losses[unit] += 1
            errors = _blame(job, unit, answer, last=losses[unit] == MOST_LOSSES)
            if not errors:
                waiting.append(unit)
            for error in errors:
                yield unit, error, None
    finally:  # reached early on an error or an interrupt: what still runs is of no use
        for reference in running:
            with suppress(Exception):
                ray.cancel(reference)


@dataclass(frozen=True)
class _Lost:
    """A task that died, or raised what nobody foresaw."""

    found: str


def _get(reference: Reference) -> Any:  # noqa: ANN401
    """Return a task's answer."""
    import ray

    try:
        return ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        return _Lost(type(error).__name__)


def _call(function: Callable[..., tuple[Any, Any]], *arguments: Any) -> tuple[Any, Any]:  # noqa: ANN401
    try:
        return function(*arguments)
    except InputError as error:  # an answer: nobody waits for the result, and Ray would log it as an error unhandled
        return error, None
    except Exception as error:
        if is_environmental(error):
            raise
        return _Lost(f"{type(error).__name__}: {error}"), None


def _blame(job: Job, unit: Any, lost: _Lost, *, last: bool) -> list[InputError]:  # noqa: ANN401
    """Return what is wrong with those parts of a unit that fail alone.

    If none does, and this was the last try, one error names all of them.
    """
    import ray

    probe = ray.remote(_probe).options(max_retries=3)
    subjects = [job.subject(part) for part in job.parts(unit)]
    probes = [
        probe.remote(job.function, subject, *job.arguments(part))
        for subject, part in zip(subjects, job.parts(unit), strict=True)
    ]
    errors = []
    for subject, reference in zip(subjects, probes, strict=True):
        found = _get(reference)
        if isinstance(found, _Lost):
            found = InputError(subject, CRASHED, f"its reader lost its worker again and again ({found.found})", FIX)
        for note in getattr(found, "__notes__", ()):
            logger.warning("what reading %s raised:\n%s", subject, note)
        if found is not None:
            errors.append(found)
    if last and not errors:
        found = f"{MOST_LOSSES} failures of their task ({lost.found}), though each alone can be read"
        fix = "Leave them out, or give workers more memory."
        return [InputError(job.subject(unit), "files may not crash their reader", found, fix)]
    return errors


def _probe(function: Callable[..., Any], subject: str, *arguments: Any) -> InputError | None:  # noqa: ANN401
    """Try a part of one file in a child process; return what is wrong with it."""
    return call_isolated(partial(_outcome, function), arguments, subject)


def _outcome(function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    function(*arguments)


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
