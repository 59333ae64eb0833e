"""Exact counts from classes of cells: the bounds below which exactly so many cells of a class lie in the random order.

Two passes over light columns, in memory that does not grow with the corpus's cells: counts of a class's keys in equal
bins, then the keys of the few bins that a bound falls into.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cellray.data.corpora.cell_order import COLUMNS, CellKeys, cell_keys
from cellray.data.corpora.corpus import Corpus, scan
from cellray.schema import PartRecord

Bound = tuple[int, int] | None
"""A place in the order, see `CellKeys.below`; None: behind all cells."""

_BINS = 1 << 12
_SHIFT = np.uint64(64 - 12)


def classes_of(column: pa.ChunkedArray) -> tuple[list[str | None], NDArray[np.int64]]:
    """Return the values of an obs column as text (None: missing), and each cell's index among them."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def class_counts(corpus: Corpus, column: str) -> dict[str | None, int]:
    """Count the cells of each value of an obs column, in the order of the values; None are those without."""

    def count(part: PartRecord, cells: pa.Table) -> list[tuple[str | None, int]]:
        found = pc.value_counts(cells[column].cast(pa.string())).to_pylist()
        return [(item["values"], item["counts"]) for item in found]

    total: dict[str | None, int] = {}
    for found in scan(corpus, [column], count):
        for value, n in found:
            total[value] = total.get(value, 0) + n
    return dict(sorted(total.items(), key=lambda item: (item[0] is None, item[0] or "")))


def rank_bounds(
    corpus: Corpus, column: str, ranks: Mapping[str | None, Sequence[int]], seed: int
) -> dict[str | None, list[Bound]]:
    """Find, for each class, the bounds below which the first so many cells of the class lie.

    Parameters
    ----------
    corpus
        Where the cells are.
    column
        Obs column with the class.
    ranks
        Numbers of cells wanted below each bound, for each class.
    seed
        Of the order.

    Returns
    -------
    dict[str | None, list[Bound]]
        For each class a bound for each of its ranks: `CellKeys.below(bound)` holds for exactly `rank` of its cells, or
        for all where there are fewer.
    """
    bins: dict[str | None, NDArray[np.int64]] = {}
    for found in scan(corpus, [*COLUMNS, column], lambda part, cells: _bin_counts(part, cells, column, seed)):
        for value, counts in found:
            bins[value] = bins.get(value, np.zeros(_BINS, np.int64)) + counts
    wanted = {
        value: [_bin_of(bins[value], rank) for rank in of_class] for value, of_class in ranks.items() if value in bins
    }
    keys = _keys_in(corpus, column, seed, {value: {b for b, _ in places} for value, places in wanted.items()})
    bounds: dict[str | None, list[Bound]] = {value: [None] * len(of_class) for value, of_class in ranks.items()}
    for value, places in wanted.items():
        bounds[value] = [None if b == _BINS else keys[value, b][rest] for b, rest in places]
    return bounds


def _bin_counts(
    part: PartRecord, cells: pa.Table, column: str, seed: int
) -> list[tuple[str | None, NDArray[np.int64]]]:
    """Count the keys of each class of one shard in equal bins."""
    values, class_n = classes_of(cells[column])
    bin_n = (cell_keys(cells, part.source, seed).key >> _SHIFT).astype(np.int64)
    return [(value, np.bincount(bin_n[class_n == i], minlength=_BINS)) for i, value in enumerate(values)]


def _bin_of(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Return the bin that holds the cell of a rank (0 is the first) and its rank in it; `_BINS` where there is none."""
    ends = np.cumsum(counts)
    found = int(np.searchsorted(ends, rank, side="right"))
    return found, rank - int(ends[found - 1] if found > 0 else 0)


def _keys_in(
    corpus: Corpus, column: str, seed: int, bins: Mapping[str | None, set[int]]
) -> dict[tuple[str | None, int], list[tuple[int, int]]]:
    """Gather the sorted keys of some bins of each class."""

    def gather(part: PartRecord, cells: pa.Table) -> list[tuple[str | None, int, CellKeys]]:
        values, class_n = classes_of(cells[column])
        keys = cell_keys(cells, part.source, seed)
        bin_n = (keys.key >> _SHIFT).astype(np.int64)
        chosen = [
            (value, b, np.flatnonzero((class_n == i) & (bin_n == b)))
            for i, value in enumerate(values)
            for b in bins.get(value, ())
        ]
        return [(value, b, CellKeys(keys.key[rows], keys.tie[rows])) for value, b, rows in chosen if len(rows)]

    gathered: dict[tuple[str | None, int], list[tuple[int, int]]] = {}
    for found in scan(corpus, [*COLUMNS, column], gather):
        for value, b, keys in found:
            gathered.setdefault((value, b), []).extend(zip(keys.key.tolist(), keys.tie.tolist(), strict=True))
    return {place: sorted(keys) for place, keys in gathered.items()}
