"""From token rows of different length to padded batches, and which rows to batch together. Numpy only."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenRows:
    """Token rows of several cells: row i is `input_ids[offsets[i]:offsets[i + 1]]`."""

    input_ids: NDArray[np.uint16]
    offsets: NDArray[np.int64]

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray | pa.Array) -> "TokenRows":
        """Take the rows of an Arrow list column; copies only where the column lies in several pieces."""
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks)
        offsets = array.offsets.to_numpy().astype(np.int64)
        return cls(array.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row. Shape (rows,)."""
        return np.diff(self.offsets)

    def pad(self, rows: NDArray[np.integer], pad_id: int) -> NDArray[np.int64]:
        """Return the given rows as one matrix, padded at the end to the longest. Shape (rows, tokens), int64."""
        lengths = self.lengths[rows]
        width = int(lengths.max())
        inside = np.arange(width) < lengths[:, None]
        batch = np.full((len(rows), width), pad_id, np.int64)
        batch[inside] = self.input_ids[(self.offsets[rows][:, None] + np.arange(width))[inside]]
        return batch


def token_budget_batches(lengths: NDArray[np.integer], budget: int) -> Iterator[NDArray[np.int64]]:
    """Yield row indices, longest rows first, so that no batch holds more than `budget` tokens, padding included.

    A row longer than the budget gets a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def length_grouped_batches(
    lengths: NDArray[np.integer], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Cut rows into batches of equal size and similar length, in random order; the rest is left out.

    Rows of equal length are mixed at random, so batches differ from epoch to epoch. (Geneformer groups by length in
    pretraining: Theodoris et al. 2023, Methods.)
    """
    shuffled = rng.permutation(len(lengths))
    full = len(lengths) // batch_size
    chosen = shuffled[: full * batch_size]
    order = chosen[np.argsort(lengths[chosen], kind="stable")]
    batches = order.reshape(full, batch_size)
    return [batches[i] for i in rng.permutation(full)]
