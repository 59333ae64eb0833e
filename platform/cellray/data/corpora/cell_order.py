"""A random order of cells that depends on a seed and on the cells themselves, not on where they lie in a corpus.

A cell is told by its name, its row in its source and its total count. So the same cell has the same place in a corpus
that was cut into other shards, concatenated with others or tokenized with another vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.corpora.split import scramble

COLUMNS = (schema.CELL_ID, schema.SOURCE_ROW, schema.N_COUNTS)
"""What the order of cells needs to know of them."""

_ROWS_OF_A_SOURCE = 1 << 40


@dataclass(frozen=True)
class CellKeys:
    """Sort keys of some cells.

    Attributes
    ----------
    key
        Uniform 64-bit numbers. Shape (cells,).
    tie
        Different for all cells of a corpus; tells apart cells with equal keys, as those of a source that is there
        twice.
        Shape (cells,).
    """

    key: NDArray[np.uint64]
    tie: NDArray[np.uint64]

    def below(self, bound: tuple[int, int] | None) -> NDArray[np.bool_]:
        """Tell which cells come before a bound in the order; None lies behind all."""
        if bound is None:
            return np.ones(len(self.key), bool)
        key, tie = np.uint64(bound[0]), np.uint64(bound[1])
        return np.asarray((self.key < key) | ((self.key == key) & (self.tie < tie)))


def cell_keys(cells: pa.Table, source: int, seed: int) -> CellKeys:
    """Return the keys of cells of one source.

    Parameters
    ----------
    cells
        Holds `COLUMNS`.
    source
        Index of their source in the corpus; matters between cells of equal key alone.
    seed
        Gives another order.
    """
    names = pd.util.hash_array(cells[schema.CELL_ID].to_numpy().astype(object), categorize=False)  # SipHash
    rows = cells[schema.SOURCE_ROW].to_numpy().astype(np.uint64)
    totals = cells[schema.N_COUNTS].to_numpy().astype(np.float64)
    totals = np.where(np.isnan(totals), np.float64(0), totals).view(np.uint64)  # there are many NaNs, one is enough
    key = np.full(len(rows), number_of("cell", seed), np.uint64)
    for part in (names, rows, totals):
        key = scramble(key ^ part) + np.uint64(0x9E3779B97F4A7C15)
    return CellKeys(scramble(key), np.uint64(source * _ROWS_OF_A_SOURCE) + rows)


def number_of(*values: object) -> int:
    """Return a uniform 64-bit number made of some values, as a seed and the name of a group of cells."""
    return int(storage.sha256_json([str(value) for value in values])[:16], 16)
