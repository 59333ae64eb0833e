"""The cells of a corpus as training batches: which are held out, in which order, grouped by length."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cellray import schema
from cellray.data.collate import TokenRows, length_grouped_batches
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.corpora.split import held_out
from cellray.train.loop import Batch

_RANGE_CELLS = 4096  # cells a read task brings
_GROUP_BATCHES = 64  # batches among which rows are grouped by length


def cells(corpus: Corpus, fraction: float, seed: int, *, held: bool) -> Any:  # noqa: ANN401  # a ray.data.Dataset
    """Return the token rows of the training or the held-out cells as a Ray Dataset.

    Ranges of cells come in an order drawn by the seed, so that files sorted by donor or cell type are mixed.
    """
    import ray

    ranges, first = [], 0
    for unit in corpus.plan_units(_RANGE_CELLS):
        ranges.append({"uri": unit.uri, "start": unit.start, "stop": unit.stop, "first": first})
        first += unit.stop - unit.start
    order = np.random.default_rng(seed).permutation(len(ranges))
    shuffled = [ranges[i] for i in order]
    read = partial(_read_range, fraction=fraction, seed=seed, held=held)
    return ray.data.from_items(shuffled, override_num_blocks=len(shuffled)).map_batches(read, batch_format="pyarrow")


def _read_range(ranges: pa.Table, fraction: float, seed: int, *, held: bool) -> Iterator[pa.Table]:
    """Read row ranges of the corpus and keep the cells of one side of the split."""
    for item in ranges.to_pylist():
        rows = read_rows(item["uri"], item["start"], item["stop"], columns=[schema.INPUT_IDS])
        wanted = held_out(item["first"], rows.num_rows, fraction, seed) == held
        yield rows.filter(pa.array(wanted))


def epochs(data: Any, batch_size: int, pad_id: int, seed: int, rank: int, first: int) -> Iterable[Iterator[Batch]]:  # noqa: ANN401
    """Yield epochs without end, each in an order of its own.

    Parameters
    ----------
    data
        This worker's share of the training cells, a `ray.data.DataIterator`.
    first
        Number of the epoch to begin with.
    """
    epoch = first
    while True:
        yield _epoch(data, batch_size, pad_id, np.random.default_rng([seed, epoch, rank]))
        epoch += 1


def _epoch(data: Any, batch_size: int, pad_id: int, rng: np.random.Generator) -> Iterator[Batch]:  # noqa: ANN401
    """Yield one epoch's batches, grouped by length among some dozens of batches that lie together."""
    group = batch_size * _GROUP_BATCHES
    buffer = {"local_shuffle_buffer_size": 2 * group, "local_shuffle_seed": int(rng.integers(1 << 31))}
    for table in data.iter_batches(batch_size=group, batch_format="pyarrow", **buffer):
        rows = TokenRows.from_arrow(table[schema.INPUT_IDS])
        for chosen in length_grouped_batches(rows.lengths, batch_size, rng):
            yield _batch(rows, chosen, pad_id)


def in_order(data: Any, batch_size: int, pad_id: int) -> Iterator[Batch]:  # noqa: ANN401  # a ray.data.DataIterator
    """Yield all cells in their own order."""
    for table in data.iter_batches(batch_size=batch_size, batch_format="pyarrow"):
        rows = TokenRows.from_arrow(table[schema.INPUT_IDS])
        yield _batch(rows, np.arange(table.num_rows), pad_id)


def _batch(rows: TokenRows, chosen: NDArray[np.int64], pad_id: int) -> Batch:
    return Batch(torch.from_numpy(rows.pad(chosen, pad_id)), int(rows.lengths[chosen].sum()))
