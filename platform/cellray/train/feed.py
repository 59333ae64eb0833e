"""Brings the cells of a corpus to one training worker as padded batches, reading ahead of the training.

Which cells come when is decided by `cellray.train.order`; here they are read. Every worker reads the pools it takes
cells from, which is little beside training on them.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cellray import schema
from cellray.data.collate import TokenRows
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.train.loop import Batch
from cellray.train.order import Pool, Span, TrainingOrder

SPAN_CELLS = 4096
"""Most cells of a span: what is read at a time."""


def spans(corpus: Corpus) -> list[Span]:
    """Cut a corpus into spans."""
    found, first = [], 0
    for unit in corpus.plan_units(SPAN_CELLS):
        found.append(Span(unit.uri, unit.start, unit.stop, first))
        first += unit.stop - unit.start
    return found


@dataclass(frozen=True)
class Feed:
    """One worker's share of the cells.

    Attributes
    ----------
    order
        Decides which cells come when.
    rank, world_size
        Which of how many workers this is: of each batch it gets every `world_size`-th cell, from `rank` on.
    pad_id
        Fills rows up.
    """

    order: TrainingOrder
    rank: int
    world_size: int
    pad_id: int

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield this worker's batches from a step on, epoch after epoch, without end."""
        epoch, within = self.order.locate(step)
        with ThreadPoolExecutor(1) as reader:
            ahead = [(epoch, pool) for pool in self.order.pools(epoch) if pool.first_step + pool.steps > within]
            reading = reader.submit(self._read, ahead[0][1].spans, held=False)
            while True:
                (epoch, pool), rest = ahead[0], ahead[1:]
                ahead = rest or [(epoch + 1, following) for following in self.order.pools(epoch + 1)]
                rows, reading = reading.result(), reader.submit(self._read, ahead[0][1].spans, held=False)
                skipped = max(0, within - pool.first_step)
                yield from self._of_pool(epoch, pool, rows, skipped)
                within = 0

    def _of_pool(self, epoch: int, pool: Pool, rows: TokenRows, skipped: int) -> Iterator[Batch]:
        for chosen in self.order.batches(epoch, pool, rows.lengths)[skipped:]:
            yield self._batch(rows, chosen[self.rank :: self.world_size])

    def held_out(self, batch_cells: int) -> list[Batch]:
        """Return this worker's share of the held-out cells, longest first."""
        rows = self._read(self.order.held_spans(), held=True)
        own = np.argsort(-rows.lengths, kind="stable")[self.rank :: self.world_size]
        return [self._batch(rows, own[i : i + batch_cells]) for i in range(0, len(own), batch_cells)]

    def _read(self, wanted: Sequence[Span], *, held: bool) -> TokenRows:
        """Read the training or the held-out cells of some spans."""
        pieces = []
        for span in wanted:
            rows = read_rows(span.uri, span.start, span.stop, columns=[schema.INPUT_IDS])
            pieces.append(rows.filter(pa.array(self.order.training_cells(span) != held)))
        return TokenRows.from_arrow(pa.concat_tables(pieces)[schema.INPUT_IDS])

    def _batch(self, rows: TokenRows, chosen: NDArray[np.int64]) -> Batch:
        return Batch(torch.from_numpy(rows.pad(chosen, self.pad_id)), int(rows.lengths[chosen].sum()))
