"""Turns of the batcher: what is computed together, who goes first, who leaves. No model, no Ray."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from cellray.data.collate import TokenRows
from cellray.errors import InputError
from serving.batcher import Batcher, ComputeError


def rows_of(*lengths: int, first: int = 0) -> TokenRows:
    """Rows whose tokens are the numbers of their rows, from `first` on."""
    ids = np.concatenate([np.full(length, first + i) for i, length in enumerate(lengths)]).astype(np.uint16)
    return TokenRows(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


class Recorder:
    """Computes (first token, length) of each row and keeps what it was asked together."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def __call__(self, rows: TokenRows) -> list[tuple[int, int]]:
        self.begun.set()
        self.gate.wait(120)
        time.sleep(self.seconds)
        made = [(int(rows.input_ids[o]), int(n)) for o, n in zip(rows.offsets, rows.lengths, strict=False)]
        self.batches.append(made)
        return made


@pytest.fixture
def batcher() -> Batcher:
    return Batcher(token_budget=100, max_wait_s=0.0)


async def until(ready: Callable[[], bool]) -> None:
    for _ in range(12_000):
        if ready():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never became so")


def test_each_row_gets_its_own_result(batcher: Batcher) -> None:
    record = Recorder()

    async def ask() -> list[list[tuple[int, int]]]:
        sizes = [(5, 90, 40), (10,), (60, 60, 1)]
        asked = [batcher.rows("k", rows_of(*own, first=100 * i), record) for i, own in enumerate(sizes)]
        return list(await asyncio.gather(*asked))

    assert asyncio.run(ask()) == [
        [(0, 5), (1, 90), (2, 40)],
        [(100, 10)],
        [(200, 60), (201, 60), (202, 1)],
    ]
    assert all(len(batch) * max(n for _, n in batch) <= 100 for batch in record.batches)
    assert batcher.load.tokens == 266


def test_requests_share_batches_and_kinds_do_not(batcher: Batcher) -> None:
    record = Recorder()

    async def ask() -> None:
        record.gate.clear()
        first = asyncio.ensure_future(batcher.rows("a", rows_of(100), record))
        await until(record.begun.is_set)
        others = [batcher.rows("a", rows_of(20, first=10 * i), record) for i in range(1, 5)]
        others.append(batcher.rows("b", rows_of(20, first=90), record))
        waiting = asyncio.gather(*others)
        await until(lambda: batcher.load.rows == 5)
        record.gate.set()
        await asyncio.gather(first, waiting)

    asyncio.run(ask())
    assert record.batches == [[(0, 100)], [(10, 20), (20, 20), (30, 20), (40, 20)], [(90, 20)]]


def test_rows_of_one_length_go_together_but_the_oldest_goes_first(batcher: Batcher) -> None:
    record = Recorder()

    async def ask() -> None:
        record.gate.clear()
        first = asyncio.ensure_future(batcher.rows("a", rows_of(100), record))
        await until(record.begun.is_set)
        old = asyncio.ensure_future(batcher.rows("a", rows_of(30, first=1), record))
        await asyncio.sleep(0)
        new = asyncio.ensure_future(batcher.rows("a", rows_of(100, 29, 5, 28, first=10), record))
        await until(lambda: batcher.load.rows == 5)
        record.gate.set()
        await asyncio.gather(first, old, new)

    asyncio.run(ask())
    assert record.batches[1] == [(1, 30), (11, 29), (13, 28)]


def test_who_gives_up_is_not_computed(batcher: Batcher) -> None:
    record = Recorder()

    async def ask() -> None:
        record.gate.clear()
        first = asyncio.ensure_future(batcher.rows("a", rows_of(100), record))
        await until(record.begun.is_set)
        lost = asyncio.ensure_future(batcher.rows("a", rows_of(50, 50, 50, first=10), record))
        late = asyncio.ensure_future(batcher.rows("a", rows_of(50, first=20), record, timeout_s=0.01))
        kept = asyncio.ensure_future(batcher.rows("a", rows_of(50, first=30), record))
        await until(lambda: batcher.load.rows == 5)
        lost.cancel()
        await asyncio.sleep(0.05)
        record.gate.set()
        assert await kept == [(30, 50)]
        with pytest.raises(TimeoutError):
            await late
        await first

    asyncio.run(ask())
    assert record.batches == [[(0, 100)], [(30, 50)]]
    assert batcher.load.rows == 0


def test_a_batch_with_room_waits_for_more() -> None:
    batcher, record = Batcher(token_budget=100, max_wait_s=30.0), Recorder()

    async def ask() -> float:
        started = time.monotonic()
        first = asyncio.ensure_future(batcher.rows("a", rows_of(50), record))
        await asyncio.sleep(0.05)
        assert batcher.load.rows == 1
        await asyncio.gather(first, batcher.rows("a", rows_of(50, first=1), record))
        return time.monotonic() - started

    assert asyncio.run(ask()) < 30
    assert record.batches == [[(0, 50), (1, 50)]]


def test_rows_overtake_long_work_and_do_not_starve_it(batcher: Batcher) -> None:
    """A step after each sixteen batches, and when no rows wait."""
    record, seen = Recorder(), []
    begun, gate = threading.Event(), threading.Event()

    def steps() -> Iterator[int]:
        for i in range(4):
            begun.set()
            gate.wait(120)
            seen.append(len(record.batches))
            yield i

    async def ask() -> None:
        long = asyncio.ensure_future(batcher.steps(steps(), priority=2))
        await until(begun.is_set)
        rows = [asyncio.ensure_future(batcher.rows("a", rows_of(100, first=i), record)) for i in range(40)]
        await until(lambda: batcher.load.rows == 40)
        gate.set()
        await asyncio.gather(*rows)
        assert await long == [0, 1, 2, 3]

    asyncio.run(ask())
    assert len(record.batches) == 40
    assert seen == [0, 16, 32, 40]


def test_more_urgent_steps_go_first(batcher: Batcher) -> None:
    order: list[str] = []
    begun, gate = threading.Event(), threading.Event()

    def steps(name: str) -> Iterator[None]:
        for _ in range(3):
            begun.set()
            gate.wait(120)
            order.append(name)
            yield

    async def ask() -> None:
        slow = asyncio.ensure_future(batcher.steps(steps("job"), priority=2))
        await until(begun.is_set)
        urgent = asyncio.ensure_future(batcher.steps(steps("asked"), priority=1))
        await until(lambda: batcher.load.steps == 2)
        gate.set()
        await asyncio.gather(slow, urgent)

    asyncio.run(ask())
    assert order == ["job", *["asked"] * 3, "job", "job"]


def test_urgent_steps_without_end_leave_a_turn_to_others(batcher: Batcher) -> None:
    """One step in nine is a job's, however many urgent ones wait."""
    order: list[str] = []
    gate = threading.Event()

    def steps(name: str, number: int) -> Iterator[None]:
        for _ in range(number):
            gate.wait(120)
            order.append(name)
            yield

    async def ask() -> None:
        urgent = [asyncio.ensure_future(batcher.steps(steps("asked", 20), priority=1)) for _ in range(2)]
        job = asyncio.ensure_future(batcher.steps(steps("job", 4), priority=2))
        await until(lambda: batcher.load.steps == 3)
        gate.set()
        await asyncio.gather(*urgent, job)

    asyncio.run(ask())
    places = [place for place, name in enumerate(order) if name == "job"]
    assert len(places) == 4
    assert all(8 <= later - sooner <= 9 for sooner, later in pairwise(places[:4]))
    assert places[0] <= 9


def test_the_age_of_a_turn_is_told(batcher: Batcher) -> None:
    record = Recorder()

    async def ask() -> None:
        record.gate.clear()
        asked = asyncio.ensure_future(batcher.rows("a", rows_of(10), record))
        await until(record.begun.is_set)
        await asyncio.sleep(0.05)
        assert batcher.load.turn_s >= 0.05
        record.gate.set()
        await asked
        await until(lambda: batcher.load.turn_s == 0)

    asyncio.run(ask())


def test_cancelled_steps_stop(batcher: Batcher) -> None:
    made: list[int] = []
    gate = threading.Event()

    def steps() -> Iterator[int]:
        for i in range(1000):
            made.append(i)
            if i == 2:
                gate.wait(120)
            yield i

    async def ask() -> None:
        long = asyncio.ensure_future(batcher.steps(steps()))
        await until(lambda: len(made) == 3)
        long.cancel()
        await asyncio.wait([long])
        gate.set()
        assert await batcher.steps(iter("abc"), priority=9) == ["a", "b", "c"]  # less urgent, but nothing else is left

    asyncio.run(ask())
    assert made == [0, 1, 2]
    assert batcher.load.steps == 0


def test_an_error_goes_to_those_it_concerns(batcher: Batcher) -> None:
    def fail(rows: TokenRows) -> list[int]:
        raise ValueError("no such thing")

    def refuse(rows: TokenRows) -> list[int]:
        raise InputError("layer", "must be there", "none", "Ask for another.")

    async def ask() -> None:
        for number in (1, 2):
            with pytest.raises(ComputeError, match="ValueError in the computation"):
                await batcher.rows("a", rows_of(10), fail)
            assert batcher.load.failures == number
        with pytest.raises(InputError):  # the asker's, and so told as it is, and not counted
            await batcher.rows("a", rows_of(10), refuse)
        with pytest.raises(ComputeError):
            await batcher.steps(1 // 0 for _ in range(2))
        assert batcher.load.failures == 3
        assert await batcher.rows("b", rows_of(10), Recorder()) == [(0, 10)]
        assert batcher.load.failures == 0

    asyncio.run(ask())
