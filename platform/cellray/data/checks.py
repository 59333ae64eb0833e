"""Checks of a block of counts: is its structure sound, are these raw counts, what is each cell's total.

Works on one block; which file it came from is only named in messages.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellray.data.sources.contract import CountBlock, MatrixHolder
from cellray.data.sources.matrices import MatrixName, check_columns
from cellray.errors import InputError, listing

_MAX_COUNT = float(1 << 53)  # float64 holds whole numbers exactly up to here


@dataclass(frozen=True)
class BlockTotals:
    """What one pass over a block finds.

    Attributes
    ----------
    n_counts
        Sum of each cell's counts over all columns, float64, shape (cells,).
    stored_zeros
        Values that are stored although they are 0.
    canonical
        Whether in every row the columns ascend strictly: sorted, none twice.
    """

    n_counts: NDArray[np.float64]
    stored_zeros: int
    canonical: bool


def check_block(block: CountBlock, source: MatrixHolder) -> BlockTotals:
    """Check that a block is sound CSR and holds raw counts; return the cells' totals.

    Raises
    ------
    InputError
        Pointers that do not fit the values, column indices out of range; NaN, infinite, negative or fractional values.
    """
    _check_structure(block, source)
    check_columns(block, MatrixName(source.uri, source.matrix))
    totals, zeros, unsorted, unsound = _scan(block.counts, block.columns, block.indptr)
    if unsound:
        _refuse(block, source)
    return BlockTotals(totals, int(zeros), unsorted == 0)


def _check_structure(block: CountBlock, source: MatrixHolder) -> None:
    """Check what compiled code relies on, whichever reader made the block."""
    pointers, lengths = block.indptr, {len(block.counts), len(block.columns)}
    rising = len(pointers) > 0 and pointers[0] == 0 and not np.any(pointers[1:] < pointers[:-1])
    if not rising or lengths != {int(pointers[-1])} or block.columns.dtype.kind not in "iu":
        found = f"{len(block.counts)} values, {len(block.columns)} indices of type {block.columns.dtype}"
        where = f"in rows {block.start}-{block.start + block.n_cells}"
        rule = f"the pointers of {source.matrix} must rise from 0 to the number of values"
        raise InputError(source.uri, rule, f"{found} {where}", "The file is damaged: write it again from its source.")


def _refuse(block: CountBlock, source: MatrixHolder) -> None:
    """Raise the error for values that are not raw counts."""
    counts = np.asarray(block.counts, np.float64)
    not_finite = ~np.isfinite(counts) | (counts > _MAX_COUNT)
    negative = ~not_finite & (counts < 0)
    fractional = ~not_finite & ~negative & (counts != np.floor(counts))
    example = counts[not_finite | negative | fractional][0]
    kinds = {"NaN or infinite": not_finite.sum(), "negative": negative.sum(), "fractional": fractional.sum()}
    share = " and ".join(f"{n:,} {kind}" for kind, n in kinds.items() if n)
    if negative.any():
        looks = "looks scaled"
    elif fractional.any():
        looks = "looks log-normalised" if float(block.counts.max()) < 30 else "looks normalised"
    else:
        looks = "looks damaged"
    others = [name for name in source.matrices() if name != source.matrix]
    raise InputError(
        source.uri,
        f"{source.matrix} must hold raw counts (whole numbers >= 0)",
        f"{share} of {block.counts.size:,} values in rows {block.start}-{block.start + block.n_cells}, "
        f"as {example:.6g}: {looks}",
        f"Choose another matrix with --matrix ({listing(others)})." if others else "Use the file with the raw counts.",
    )


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def _scan(counts, columns, indptr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Sum rows; count stored zeros, columns that do not ascend and values that are no counts.

    Without branches, and with sums in any order, the compiler puts many values into one instruction. Sums of counts are
    exact in any order; those of other values are of no use.
    """
    n_cells = indptr.size - 1
    totals = np.zeros(n_cells, np.float64)
    zeros, unsorted, unsound = 0, 0, 0
    for i in range(n_cells):
        row = counts[indptr[i] : indptr[i + 1]]
        total = 0.0
        for j in range(row.size):
            value = np.float64(row[j])
            total += value
            zeros += value == 0.0
            unsound += not ((value >= 0.0) & (value <= _MAX_COUNT) & (value == np.floor(value)))
        totals[i] = total
        own = columns[indptr[i] : indptr[i + 1]]
        for j in range(1, own.size):
            unsorted += own[j - 1] >= own[j]
    return totals, zeros, unsorted, unsound


def duplicate_entries(block: CountBlock) -> int:
    """Return how many values share their row and column with an earlier one."""
    row = np.repeat(np.arange(block.n_cells, dtype=np.int64), np.diff(block.indptr))
    return len(row) - len(np.unique(row * block.n_columns + block.columns))


def sum_duplicates(block: CountBlock, target_of_column: NDArray[np.int32], n_targets: int) -> CountBlock:
    """Map columns to targets (below zero: leave out), sum what falls together and sort each row.

    Needed where several columns are one gene, or where a file stores a row's columns unsorted or twice.
    """
    target = target_of_column[block.columns]
    kept = target >= 0
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    matrix = sparse.csr_matrix(
        (block.counts[kept].astype(np.float64), target[kept], kept_before[block.indptr]),
        shape=(block.n_cells, n_targets),
    )
    matrix.sum_duplicates()
    return CountBlock(matrix.data, matrix.indices, matrix.indptr, n_targets, block.start)
