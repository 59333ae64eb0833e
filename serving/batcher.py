"""Whose turn it is: rows of many requests in batches by a token budget, long work in slices between them.

One thread computes; requests wait in asyncio. Rows of requests that ask the same are batched together, sorted by
length; the request that has waited longest is always in the batch, so none starves. Who gives up leaves the queue. Long
work (screens) comes as steps; between two steps all waiting rows are computed first, so an embedding waits for one step
at most. Urgent steps go first, but now and then those that they pass over get a turn. Knows no models: what is computed
comes with the request.
"""

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.data.collate import TokenRows
from cellray.errors import InputError

logger = logging.getLogger("ray.serve")

_WINDOW = 8
"""Batches' worth of tokens among which rows of one length are looked for."""
_PATIENCE = 16
"""Batches after which waiting long work gets a step, however many rows wait."""


_TURNS = 8
"""Steps by which more urgent work goes first; then the less urgent gets one."""


_SLOWEST_S = 1.0
"""Longest that the answer is held back that a computation failed."""


class ComputeError(RuntimeError):
    """The computation failed, and not because of what was asked, as far as is known."""


@dataclass(eq=False)
class _Rows:
    """A request's rows, and what became of them."""

    key: Hashable
    rows: TokenRows
    compute: Callable[[TokenRows], Sequence[Any]]
    arrived: float
    expires: float
    done: Callable[[Any], None]
    results: list[Any] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    gone: bool = False


@dataclass(eq=False)
class _Steps:
    """Long work, and what its steps gave."""

    steps: Iterator[Any]
    priority: int
    expires: float
    done: Callable[[Any], None]
    results: list[Any] = field(default_factory=list)
    gone: bool = False


@dataclass
class Load:
    """What a batcher has done and has to do.

    Attributes
    ----------
    rows, steps
        That wait.
    batches, tokens, padding
        Computed so far; padding is tokens too.
    busy_s
        Time spent computing.
    failures
        Turns that failed in a row, and not because of what was asked.
    turn_s
        How long the running turn has been computed.
    """

    rows: int = 0
    steps: int = 0
    batches: int = 0
    tokens: int = 0
    padding: int = 0
    busy_s: float = 0.0
    failures: int = 0
    turn_s: float = 0.0


class Batcher:
    """Computes in one thread what many requests ask.

    Parameters
    ----------
    token_budget
        Tokens of a batch, padding included.
    max_wait_s
        Longest that a batch with room waits for more rows while the thread has nothing else to do.
    niceness
        By how much the thread (and those that torch starts from it) gives way to the rest of the process.
    """

    def __init__(self, token_budget: int, max_wait_s: float, niceness: int = 5) -> None:
        self._budget, self._max_wait, self._niceness = token_budget, max_wait_s, niceness
        self._changed = threading.Condition()
        self._rows: list[_Rows] = []
        self._steps: list[_Steps] = []
        self._since_step = 0
        self._passed: Counter[int] = Counter()
        self._turn_began: float | None = None
        self._load = Load()
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    async def rows(
        self,
        key: Hashable,
        rows: TokenRows,
        compute: Callable[[TokenRows], Sequence[Any]],
        timeout_s: float = 3600,
    ) -> list[Any]:
        """Return what `compute` gives for each row.

        Parameters
        ----------
        key
            Rows of equal keys may be computed together, by the `compute` of any of them.
        rows
            At least the rows of one cell; none gives nothing.
        compute
            Is given rows of any requests, at most the token budget unless it is one row.

        Raises
        ------
        TimeoutError
            It took too long.
        ComputeError
            The computation failed.
        """
        if not len(rows.lengths):
            return []
        future, done = _future()
        now, n = time.monotonic(), len(rows.lengths)
        item = _Rows(key, rows, compute, now, now + timeout_s, done, [None] * n, list(range(n)))
        return await self._wait(self._rows, item, future)

    async def steps(self, steps: Iterator[Any], priority: int = 0, timeout_s: float = 3600) -> list[Any]:
        """Return all that an iterator yields; each step is computed in the thread when no rows wait.

        Parameters
        ----------
        priority
            Lower goes first, as long as what it passes over has not waited for `_TURNS` steps.
        """
        future, done = _future()
        return await self._wait(self._steps, _Steps(steps, priority, time.monotonic() + timeout_s, done), future)

    async def _wait(self, queue: list[Any], item: Any, future: "asyncio.Future[list[Any]]") -> list[Any]:  # noqa: ANN401
        with self._changed:
            queue.append(item)
            self._changed.notify()
        try:
            return await future
        except ComputeError:  # or a replica that fails at once would look idle, and be asked all the more
            await asyncio.sleep(min(_SLOWEST_S, 0.1 * 2 ** min(self._load.failures, 10)))
            raise
        finally:  # cancelled, too: what is not begun is never computed
            with self._changed:
                item.gone = True
                with suppress(ValueError):
                    queue.remove(item)

    @property
    def load(self) -> Load:
        """What there is to do, and what was done."""
        with self._changed:
            self._load.rows = sum(len(item.waiting) for item in self._rows)
            self._load.steps = len(self._steps)
            self._load.turn_s = 0.0 if self._turn_began is None else time.monotonic() - self._turn_began
            return Load(**vars(self._load))

    @property
    def alive(self) -> bool:
        """Whether the thread computes."""
        return self._thread.is_alive()

    def _work(self) -> None:
        """Compute for ever; the thread ends with its process."""
        with suppress(OSError, AttributeError):
            os.nice(self._niceness)  # on Linux of this thread alone, and of those it starts
        while True:
            with self._changed:
                while (turn := self._next()) is None:
                    self._changed.wait(self._pause())
            self._turn_began = started = time.monotonic()
            turn()
            with self._changed:
                self._turn_began = None
                self._load.busy_s += time.monotonic() - started

    def _next(self) -> Callable[[], None] | None:
        """Choose what to compute now; None if there is nothing, or not yet."""
        self._drop_expired()
        if self._steps and (not self._rows or self._since_step >= _PATIENCE):
            self._since_step = 0
            long = self._next_steps()
            return lambda: self._step(long)
        if not self._rows:
            return None
        oldest = self._rows[0]
        picked = self._pick([item for item in self._rows if item.key == oldest.key])
        longest = max(int(item.rows.lengths[row]) for item, row in picked)
        room = (len(picked) + 1) * longest <= self._budget and len(picked) == sum(len(i.waiting) for i in self._rows)
        if room and time.monotonic() < oldest.arrived + self._max_wait:
            return None
        for item, row in picked:
            item.waiting.remove(row)
            if not item.waiting:
                self._rows.remove(item)
        self._since_step += 1
        return lambda: self._batch(picked, longest)

    def _next_steps(self) -> _Steps:
        """Return the most urgent long work, or what was passed over too often; of one priority the oldest."""
        waiting = {each.priority for each in self._steps}
        passed = self._passed
        due = [each for each in self._steps if passed[each.priority] >= _TURNS]
        long = min(due or self._steps, key=lambda each: each.priority)
        self._passed = Counter({each: passed[each] + 1 for each in waiting if each > long.priority})
        return long

    def _pause(self) -> float | None:
        """Return how long to sleep at most."""
        if self._rows:
            return max(0.0, self._rows[0].arrived + self._max_wait - time.monotonic()) + 1e-4
        return 1.0 if self._steps else None

    def _pick(self, items: Sequence[_Rows]) -> list[tuple[_Rows, int]]:
        """Return rows for a batch: the longest of the oldest request and those next shorter, as the budget lets.

        Rows of about one length need little padding. They are sought among the oldest requests only.
        """
        window: list[tuple[_Rows, int]] = []
        tokens = 0
        for item in items:
            window += [(item, row) for row in item.waiting]
            tokens += int(item.rows.lengths[item.waiting].sum())
            if tokens >= _WINDOW * self._budget:
                break
        lengths = np.array([item.rows.lengths[row] for item, row in window])
        order: NDArray[np.int64] = np.argsort(-lengths, kind="stable")
        own = len(items[0].waiting)
        first = int(np.flatnonzero(order < own)[0])
        size = max(1, self._budget // max(1, int(lengths[order[first]])))
        return [window[i] for i in order[first : first + size]]

    def _batch(self, picked: Sequence[tuple[_Rows, int]], longest: int) -> None:
        """Compute rows of several requests and hand out what is ready."""
        pieces = [item.rows.input_ids[item.rows.offsets[row] : item.rows.offsets[row + 1]] for item, row in picked]
        offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
        try:
            results = picked[0][0].compute(TokenRows(np.concatenate(pieces), offsets))
            assert len(results) == len(picked), "a result a row"
        except BaseException as error:  # the thread must live on
            told = self._failed(error)
            for item in {id(item): item for item, _ in picked}.values():
                item.done(told)
            return
        with self._changed:
            self._load.failures = 0
            self._load.batches += 1
            self._load.tokens += int(offsets[-1])
            self._load.padding += longest * len(picked) - int(offsets[-1])
        for (item, row), result in zip(picked, results, strict=True):
            item.results[row] = result
        for item in {id(item): item for item, _ in picked}.values():
            if not item.waiting and not item.gone:
                item.done(item.results)

    def _step(self, item: _Steps) -> None:
        """Compute one step of long work."""
        if item.gone:
            return
        try:
            item.results.append(next(item.steps))
        except StopIteration:
            item.done(item.results)
        except BaseException as error:  # the thread must live on
            item.done(self._failed(error))
        else:
            with self._changed:
                self._load.failures = 0
            return
        with self._changed, suppress(ValueError):
            self._steps.remove(item)

    def _failed(self, error: BaseException) -> BaseException:
        """Return what the asker is told of an error; count it if it is not the asker's."""
        if isinstance(error, InputError):
            return error
        logger.error("a computation failed", exc_info=error)
        with self._changed:
            self._load.failures += 1
        return ComputeError(f"{type(error).__name__} in the computation")

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for queue in (self._rows, self._steps):
            for item in [each for each in queue if each.expires <= now]:
                queue.remove(item)  # type: ignore[arg-type]
                item.gone = True
                item.done(TimeoutError("the request waited too long"))


def _future() -> tuple["asyncio.Future[list[Any]]", Callable[[Any], None]]:
    """Return a future of this event loop and what settles it from any thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[Any]] = loop.create_future()

    def settle(value: Any) -> None:  # noqa: ANN401
        if future.done():
            return
        if isinstance(value, BaseException):
            future.set_exception(value)
        else:
            future.set_result(value)

    def done(value: Any) -> None:  # noqa: ANN401
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, value)

    return future, done
