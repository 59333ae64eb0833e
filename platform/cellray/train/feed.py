"""Brings the cells of a corpus to one training worker as padded batches, reading ahead of the training.

Which cells come when is decided by `cellray.train.order`; here they are read. Every worker reads the pools it takes
cells from, which is little beside training on them.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cellray import schema
from cellray.data.collate import TokenRows
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.train.contracts import Batch
from cellray.train.order import POOL_CELLS, Pool, Selection, Span, TrainingOrder

SPAN_CELLS = 4096
"""Most cells of a span: what is read at a time."""
STEPS_AHEAD = 2
"""Steps whose batches are made ready while the model works."""

ItemT = TypeVar("ItemT")


def spans(corpus: Corpus) -> list[Span]:
    """Cut a corpus into spans."""
    found, first = [], 0
    for unit in corpus.plan_units(SPAN_CELLS):
        found.append(Span(unit.uri, unit.start, unit.stop, first))
        first += unit.stop - unit.start
    return found


@dataclass(frozen=True)
class _Cells:
    """Token rows with the number of each cell in the corpus."""

    rows: TokenRows
    numbers: NDArray[np.int64]


@dataclass(frozen=True)
class Feed:
    """One worker's share of the cells.

    Attributes
    ----------
    order
        Decides which cells come when.
    held
        Chooses the cells for validation.
    rank, world_size
        Which of how many workers this is: of each step it gets every `world_size`-th cell, from `rank` on.
    pad_id
        Fills rows up.
    pass_tokens
        Most tokens of a forward pass, padding included; what a step has more is done in further passes, whose
        gradients are added up. One cell is never cut.
    """

    order: TrainingOrder
    held: Selection
    rank: int
    world_size: int
    pad_id: int
    pass_tokens: int

    def steps(self, step: int) -> Iterator[list[Batch]]:
        """Yield this worker's passes of each step from a step on, epoch after epoch, without end.

        All workers have equally many passes in a step.
        """
        with closing(_ahead(self._steps(step), STEPS_AHEAD)) as prepared:
            yield from prepared

    def _steps(self, step: int) -> Generator[list[Batch], None, None]:
        epoch, within = self.order.locate(step)
        with ThreadPoolExecutor(1) as reader:
            ahead = [(epoch, pool) for pool in self.order.pools(epoch) if pool.first_step + pool.steps > within]
            reading = reader.submit(self._read, ahead[0][1].spans, self.order.selection)
            while True:
                (epoch, pool), rest = ahead[0], ahead[1:]
                ahead = rest or [(epoch + 1, following) for following in self.order.pools(epoch + 1)]
                cells = reading.result()
                reading = reader.submit(self._read, ahead[0][1].spans, self.order.selection)
                skipped = max(0, within - pool.first_step)
                yield from self._of_pool(epoch, pool, cells, skipped)
                within = 0

    def _of_pool(self, epoch: int, pool: Pool, cells: _Cells, skipped: int) -> Iterator[list[Batch]]:
        for chosen in self.order.batches(epoch, pool, cells.rows.lengths)[skipped:]:
            passes = self._passes(cells.rows.lengths[chosen])
            own = np.array_split(chosen[self.rank :: self.world_size], passes)
            yield [self._batch(cells, part) for part in own]

    def _passes(self, length_n: NDArray[np.int64]) -> int:
        """Return into how many passes each worker cuts a step, given the lengths of all its cells, ascending."""
        needed = -(-len(length_n) // self.world_size) * int(length_n.max()) / self.pass_tokens
        return max(1, min(int(np.ceil(needed)), len(length_n) // self.world_size))

    def held_out(self) -> list[Batch]:
        """Return this worker's share of the validation cells, longest first.

        All workers have equally many batches: one that has no cell left gets a row of padding, numbered -1.
        """
        return list(self._dealt(self._read(self.order.spans_of(self.held), self.held)))

    def held_out_stream(self) -> Iterator[Batch]:
        """Yield what `held_out` returns, in another order, with no more than a pool's cells in memory."""
        group: list[Span] = []
        size = 0
        for span in self.order.spans_of(self.held):
            cells = int(self.held(span).sum())
            if group and size + cells > POOL_CELLS:
                yield from self._dealt(self._read(group, self.held))
                group, size = [], 0
            group.append(span)
            size += cells
        yield from self._dealt(self._read(group, self.held))

    def _dealt(self, cells: _Cells) -> Iterator[Batch]:
        """Yield this worker's share of some cells, longest first."""
        longest_first = np.argsort(-cells.rows.lengths, kind="stable")
        start = 0
        while start < len(longest_first):
            size = self.world_size * max(1, self.pass_tokens // int(cells.rows.lengths[longest_first[start]]))
            own = longest_first[start : start + size][self.rank :: self.world_size]
            yield self._batch(cells, own) if len(own) else self._nothing()
            start += size

    def _nothing(self) -> Batch:
        return Batch(torch.full((1, 1), self.pad_id), np.zeros(1, np.int64), np.full(1, -1))

    def _read(self, wanted: Sequence[Span], selection: Selection) -> _Cells:
        """Read the selected cells of some spans."""
        pieces = [pa.table({schema.INPUT_IDS: pa.array([], pa.list_(pa.uint16()))})]
        numbers = [np.empty(0, np.int64)]
        for span in wanted:
            chosen = selection(span)
            rows = read_rows(span.uri, span.start, span.stop, columns=[schema.INPUT_IDS])
            pieces.append(rows.filter(pa.array(chosen)))
            numbers.append(span.first + np.flatnonzero(chosen))
        table = pa.concat_tables([p.cast(pieces[-1].schema) for p in pieces])
        return _Cells(TokenRows.from_arrow(table[schema.INPUT_IDS]), np.concatenate(numbers))

    def _batch(self, cells: _Cells, chosen: NDArray[np.int64]) -> Batch:
        rows = torch.from_numpy(cells.rows.pad(chosen, self.pad_id))
        return Batch(rows, cells.rows.lengths[chosen], cells.numbers[chosen])


def _ahead(items: Generator[ItemT, None, None], number: int) -> Generator[ItemT, None, None]:
    """Yield the items of an endless iterator, which runs in a thread of its own, `number` of them ahead."""
    ready: queue.Queue[ItemT | Exception] = queue.Queue(number)
    ended = threading.Event()

    def put(item: ItemT | Exception) -> None:
        while not ended.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                break

    def fill() -> None:
        try:
            for item in items:
                put(item)
                if ended.is_set():
                    break
        except Exception as error:  # raised where the items are taken
            put(error)
        finally:
            items.close()

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        ended.set()
        thread.join()
