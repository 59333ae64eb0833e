"""What is summed over cells of attention weights: of pairs of genes, and of heads. In float64, and sums can be added.

Sums of row ranges are added in the corpus's order, so the result does not depend on who computed which range. Memory is
that of dense tables over the chosen genes, whatever the number of cells. Knows no models.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.attention_schema import RANK_BINS

BYTES_PER_ENTRY = 12  # a float64 sum and a float32 maximum
_COUNT, _QUERY, _KEY, _GROUP, _SUM, _MAX = "cells", "query", "key", "group", "sum", "max"


@dataclass(frozen=True)
class Shape:
    """Sizes of the sums: groups of cells, layers, heads, genes as queries, genes as keys."""

    groups: int
    layers: int
    heads: int
    queries: int
    keys: int

    @property
    def entries(self) -> int:
        """Numbers of the table of pairs."""
        return self.groups * self.layers * self.heads * self.queries * self.keys

    @property
    def maps(self) -> int:
        """Layers times heads."""
        return self.layers * self.heads


class PairSums:
    """Of each group, layer, head, query gene and key gene the sum and the maximum; and the cells that have both."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        own = (shape.groups, shape.layers, shape.heads, shape.queries, shape.keys)
        self.sum_slhqk = np.zeros(own)
        self.max_slhqk = np.zeros(own, np.float32)
        self.cells_sqk = np.zeros((shape.groups, shape.queries, shape.keys), np.int64)

    def add_cell(self, group: int, query: NDArray[np.int64], key: NDArray[np.int64]) -> None:
        """Count a cell that has these genes, of the queries and of the keys."""
        self.cells_sqk[group][np.ix_(query, key)] += 1

    def add_weights(
        self,
        group: int,
        layer: int,
        query: NDArray[np.int64],
        key: NDArray[np.int64],
        weight_hqk: NDArray[np.float32],
    ) -> None:
        """Add a cell's weights between genes; each gene stands once in a cell."""
        place = np.ix_(np.arange(self.shape.heads), query, key)
        self.sum_slhqk[group, layer][place] += weight_hqk
        own = self.max_slhqk[group, layer]
        own[place] = np.maximum(own[place], weight_hqk)

    def table(self) -> pa.Table:
        """Return the sums of pairs that occur, as another process can add them."""
        group, query, key = np.nonzero(self.cells_sqk)
        columns = {name: pa.array(x.astype(np.int32)) for name, x in ((_GROUP, group), (_QUERY, query), (_KEY, key))}
        sum_pm, max_pm = (x[group, :, :, query, key].reshape(-1) for x in (self.sum_slhqk, self.max_slhqk))
        return pa.table(
            {
                **columns,
                _COUNT: pa.array(self.cells_sqk[group, query, key]),
                _SUM: pa.FixedSizeListArray.from_arrays(pa.array(sum_pm), self.shape.maps),
                _MAX: pa.FixedSizeListArray.from_arrays(pa.array(max_pm), self.shape.maps),
            }
        )

    def add_table(self, table: pa.Table) -> None:
        """Add the sums of another row range; each pair stands once in them."""
        group, query, key = (table[name].to_numpy() for name in (_GROUP, _QUERY, _KEY))
        self.cells_sqk[group, query, key] += table[_COUNT].to_numpy()
        shape = (-1, self.shape.layers, self.shape.heads)
        sum_plh, max_plh = (table[name].combine_chunks().flatten().to_numpy().reshape(shape) for name in (_SUM, _MAX))
        for layer, head in np.ndindex(self.shape.layers, self.shape.heads):  # no copies of whole tables
            place = (group, layer, head, query, key)
            self.sum_slhqk[place] += sum_plh[:, layer, head]
            self.max_slhqk[place] = np.maximum(self.max_slhqk[place], max_plh[:, layer, head])


MEASURES = 5
"""Entropy, entropy of even weights, weight on the query itself, on special tokens, in the rows written."""
PER_HEAD = MEASURES + 2 * RANK_BINS
"""And the weight by rank of the key, and what even weights would have there."""


class HeadSums:
    """Of each group, layer and head the sum over cells of `PER_HEAD` numbers."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.cells_s = np.zeros(shape.groups, np.int64)
        self.sum_slhm = np.zeros((shape.groups, shape.layers, shape.heads, PER_HEAD))

    def add_cell(self, group: int, mean_lhm: NDArray[np.float64]) -> None:
        """Add a cell's own means over its gene queries: every cell counts alike."""
        self.cells_s[group] += 1
        self.sum_slhm[group] += mean_lhm

    def table(self) -> pa.Table:
        """Return the sums, as another process can add them: a row for each group."""
        width = self.shape.maps * PER_HEAD
        sums = pa.FixedSizeListArray.from_arrays(pa.array(self.sum_slhm.reshape(-1)), width)
        return pa.table({_COUNT: pa.array(self.cells_s), _SUM: sums})

    def add_table(self, table: pa.Table) -> None:
        """Add the sums of another row range."""
        self.cells_s += table[_COUNT].to_numpy()
        self.sum_slhm += table[_SUM].combine_chunks().flatten().to_numpy().reshape(self.sum_slhm.shape)
