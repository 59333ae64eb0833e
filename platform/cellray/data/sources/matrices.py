"""Reads cell ranges of a stored cells x genes matrix: rows of CSR, CSC or dense arrays, of HDF5 or Zarr alike.

Each reader bounds its memory by the cells asked for, `SCAN_VALUES` and `HELD_VALUES`; none loads the matrix. No sparse
matrix can be made here whose pointers were not checked: compiled code follows them without looking.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellray.data.sources.contract import CountBlock
from cellray.data.sources.hdf5_chunks import fast_array
from cellray.errors import InputError

SCAN_VALUES = 4_000_000
"""Stored values held at a time while a matrix that is not stored by cell is scanned (48 MB at most)."""
HELD_VALUES = 32_000_000
"""Values of the wanted cells held at a time, of a matrix stored by gene (256 MB of float32, at most 384 MB)."""
BLOCK_VALUES = 8_000_000
"""Most stored values of a block of several cells (96 MB)."""

_FIX = "The file is damaged: copy it again, or write it again from its source."


class MatrixRows(Protocol):
    """A stored matrix that can be read by cells."""

    shape: tuple[int, int]

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells `start .. stop`, at most `cells` at a time."""
        ...


@dataclass(frozen=True)
class MatrixName:
    """What messages call a matrix: its file, and its name within."""

    uri: str
    matrix: str


class CsrRows:
    """A CSR matrix: the cells' values lie together.

    Parameters
    ----------
    name
        For messages.
    data, indices, indptr
        Its arrays, stored or in memory.
    shape
        Cells and columns.

    Raises
    ------
    InputError
        The pointers do not fit the arrays (see `checked_pointers`).
    """

    def __init__(self, name: MatrixName, data: Any, indices: Any, indptr: Any, shape: tuple[int, int]) -> None:  # noqa: ANN401
        self.shape = shape
        self._indptr = checked_pointers(name, data, indices, indptr, side=shape[0])
        self._data, self._indices = fast_array(data), fast_array(indices)

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells, reading only what they hold."""
        for first, last in _cuts(self._indptr, start, stop, cells):
            a, b = int(self._indptr[first]), int(self._indptr[last])
            indptr = self._indptr[first : last + 1] - a
            yield CountBlock(native(self._data[a:b]), native(self._indices[a:b]), indptr, self.shape[1], first)


class CscRows:
    """A CSC matrix: the genes' values lie together, so any range of cells costs passes over the whole matrix.

    The first pass of an open file counts the values of each cell; each further one gathers the cells whose values are
    `HELD_VALUES` together: one pass for 8,192 cells of 3,900 genes. Values that stand twice stay twice.

    Memory: 8 bytes a cell of the matrix, `SCAN_VALUES` stored values, `HELD_VALUES` gathered ones (or those of one cell
    that has more) of 4 bytes and the stored value's, and one block.

    Parameters
    ----------
    name, data, indices, indptr, shape
        As of `CsrRows`; `indices` are cells.

    Raises
    ------
    InputError
        The pointers do not fit the arrays (see `checked_pointers`); while reading: cells out of range.
    """

    def __init__(self, name: MatrixName, data: Any, indices: Any, indptr: Any, shape: tuple[int, int]) -> None:  # noqa: ANN401
        self.shape, self._name = shape, name
        self._indptr = checked_pointers(name, data, indices, indptr, side=shape[1])
        self._data, self._indices = fast_array(data), fast_array(indices)
        self._values_before: NDArray[np.int64] | None = None

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Gather as many of the cells as may be held, yield them in pieces, and so on."""
        if self._values_before is None:
            self._values_before = self._count()
        for first, last in _cuts(self._values_before, start, stop, stop - start, HELD_VALUES):
            yield from self._gathered(first, last, cells)

    def _gathered(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Gather the values of a range of cells in one pass and yield them in pieces."""
        assert self._values_before is not None
        indptr = self._values_before[start : stop + 1] - self._values_before[start]
        counts = np.empty(indptr[-1], native(self._data[0:0]).dtype)
        columns = np.empty(indptr[-1], np.int32)
        free = indptr[:-1].copy()
        for a, b in self._scans():
            rows, values = native(self._indices[a:b]), native(self._data[a:b])
            lengths = (np.clip(self._indptr[1:], a, b) - np.clip(self._indptr[:-1], a, b)).astype(np.int64)
            column = np.repeat(np.arange(self.shape[1], dtype=np.int32), lengths)
            if not scatter(rows, column, values, start, free, indptr, columns, counts):
                raise ValueError("other cells at the second reading than at the first")
        for first, last in _cuts(indptr, 0, stop - start, cells):
            a, b = int(indptr[first]), int(indptr[last])
            # copies: a view would keep all that was gathered while the next cells are
            yield CountBlock(
                counts[a:b].copy(), columns[a:b].copy(), indptr[first : last + 1] - a, self.shape[1], start + first
            )

    def _count(self) -> NDArray[np.int64]:
        """Return the number of values before each cell and after the last, shape (cells + 1,); check the cells."""
        before = np.zeros(self.shape[0] + 1, np.int64)
        for a, b in self._scans():
            rows = native(self._indices[a:b])
            if len(rows) and not (rows.min() >= 0 and rows.max() < self.shape[0]):
                rule = f"row indices of {self._name.matrix} must lie in 0..{self.shape[0] - 1}"
                raise InputError(self._name.uri, rule, f"{rows.min()}..{rows.max()} in values {a}-{b}", _FIX)
            count_rows(rows, before[1:])
        return np.cumsum(before)

    def _scans(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of stored values that cover the matrix."""
        total = int(self._indptr[-1])
        for a in range(0, total, SCAN_VALUES):
            yield a, min(a + SCAN_VALUES, total)


class DenseRows:
    """A dense matrix, stored cells x genes or, as in loom, genes x cells.

    Blocks end where chunks do, as far as memory allows: a chunk that is cut is inflated twice.

    Memory: the cells of one block, dense, at most `SCAN_VALUES` values at a time.
    """

    def __init__(self, array: Any, *, transposed: bool = False) -> None:  # noqa: ANN401
        self._array, self._transposed = fast_array(array), transposed
        rows, columns = (int(n) for n in array.shape)
        self.shape = (columns, rows) if transposed else (rows, columns)
        self._chunk = int(array.chunks[1 if transposed else 0]) if array.chunks else 1  # cells of a chunk

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells, dropping zeros."""
        step = max(1, min(cells, SCAN_VALUES // max(1, self.shape[1])))
        step -= step % self._chunk if step > self._chunk else 0
        first = start
        while first < stop:
            last = min(first - first % step + step, stop)
            dense = self._array[:, first:last].T if self._transposed else self._array[first:last, :]
            matrix = sparse.csr_matrix(native(np.asarray(dense)))
            yield CountBlock(matrix.data, matrix.indices, matrix.indptr, self.shape[1], first)
            first = last


class SomeColumns:
    """A matrix of which only some columns are shown.

    Parameters
    ----------
    rows
        The whole matrix.
    shown
        Which columns to show. Shape (columns of the whole matrix,).
    name
        For messages.
    """

    def __init__(self, rows: MatrixRows, shown: NDArray[np.bool_], name: MatrixName) -> None:
        self._rows, self._name = rows, name
        self.shape = rows.shape[0], int(shown.sum())
        self._number = np.where(shown, np.cumsum(shown) - 1, -1).astype(np.int32)

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells without the columns that are not shown.

        Raises
        ------
        InputError
            Columns out of range.
        """
        for block in self._rows.blocks(start, stop, cells):
            check_columns(block, self._name)
            counts, columns, indptr = _select(block.counts, block.columns, block.indptr, self._number)
            yield CountBlock(counts, columns, indptr, self.shape[1], block.start)


def check_columns(block: CountBlock, name: MatrixName) -> None:
    """Check that a block's columns exist.

    Raises
    ------
    InputError
        One does not.
    """
    if len(block.columns) and not (block.columns.min() >= 0 and block.columns.max() < block.n_columns):
        rule = f"column indices of {name.matrix} must lie in 0..{block.n_columns - 1}"
        rows = f"rows {block.start}-{block.start + block.n_cells}"
        raise InputError(name.uri, rule, f"{block.columns.min()}..{block.columns.max()} in {rows}", _FIX)


def checked_pointers(name: MatrixName, data: Any, indices: Any, indptr: Any, side: int) -> NDArray[np.int64]:  # noqa: ANN401
    """Read the pointers of a sparse matrix and check them against the arrays they point into.

    Parameters
    ----------
    name
        For messages.
    data, indices, indptr
        The matrix's arrays.
    side
        Its length along the axis that is stored together: cells of CSR, columns of CSC.

    Returns
    -------
    NDArray[np.int64]
        Shape (side + 1,): rising from 0 to the number of stored values.

    Raises
    ------
    InputError
        They are not.
    """
    if tuple(indptr.shape) != (side + 1,):  # before it is read: a small file can declare a huge array
        found = f"{_sides(indptr.shape)} pointers for a side of {side:,}"
        raise InputError(name.uri, f"{name.matrix} must have one pointer more than cells or columns", found, _FIX)
    if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        found = f"indices of type {indices.dtype}, pointers of type {indptr.dtype}"
        raise InputError(name.uri, f"indices and pointers of {name.matrix} must be whole numbers", found, _FIX)
    pointers = np.asarray(indptr[:]).astype(np.int64)
    stored = tuple(data.shape), tuple(indices.shape)
    # compared, not subtracted: a difference of damaged pointers may overflow
    falls = int(np.count_nonzero(pointers[1:] < pointers[:-1]))
    if pointers[0] != 0 or falls or {*stored} != {(int(pointers[-1]),)}:
        found = f"{len(pointers)} pointers from {pointers[0]} to {pointers[-1]} that fall {falls} times"
        found = f"{found}, for {_sides(stored[0])} values"
        rule = f"the pointers of {name.matrix} must rise from 0 to the number of stored values"
        raise InputError(name.uri, rule, f"{found} and {_sides(stored[1])} indices", _FIX)
    return pointers


def _sides(shape: tuple[int, ...]) -> str:
    """Render the sides of an array."""
    return " x ".join(str(side) for side in shape)


def _cuts(
    values_before: NDArray[np.int64], start: int, stop: int, cells: int, values: int | None = None
) -> Iterator[tuple[int, int]]:
    """Cut a range of cells: at most `cells` of them together, of at most `values` values, but at least one cell."""
    values = BLOCK_VALUES if values is None else values
    while start < stop:
        fitting = int(np.searchsorted(values_before, values_before[start] + values, side="right")) - 1
        last = min(start + cells, stop, max(start + 1, fitting))
        yield start, last
        start = last


@numba.njit(cache=True, nogil=True)
def count_rows(rows, counts_n):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Add one to a cell's number for each value it has; the rows must be within range."""
    for row in rows:
        counts_n[row] += 1


@numba.njit(cache=True, nogil=True)
def scatter(rows, columns, counts, start, free, indptr, columns_out, counts_out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Put values in rows `start ..` to the next free place of their row; others are passed over.

    Returns False, and stops, where a row has more values than places.
    """
    n_rows = free.size
    for i in range(rows.size):
        row = np.int64(rows[i]) - start
        if 0 <= row < n_rows:
            place = free[row]
            if place >= indptr[row + 1]:
                return False
            columns_out[place], counts_out[place] = columns[i], counts[i]
            free[row] = place + 1
    return True


@numba.njit(cache=True, nogil=True)
def _select(counts, columns, indptr, number):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the CSR arrays of the columns that have a new number, under that number."""
    kept = 0
    for column in columns:
        kept += number[column] >= 0
    counts_out, columns_out = np.empty(kept, counts.dtype), np.empty(kept, np.int32)
    indptr_out = np.zeros(indptr.size, np.int64)
    place = 0
    for i in range(indptr.size - 1):
        for j in range(indptr[i], indptr[i + 1]):
            if number[columns[j]] >= 0:
                counts_out[place], columns_out[place] = counts[j], number[columns[j]]
                place += 1
        indptr_out[i + 1] = place
    return counts_out, columns_out, indptr_out


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers in a type the compiled code takes: this machine's byte order, no half precision.

    Raises
    ------
    TypeError
        These are no numbers.
    """
    if values.dtype.kind not in "biuf":
        raise TypeError(f"values of type {values.dtype}, not numbers")
    if values.dtype == np.float16 or values.dtype.itemsize > 8:
        return values.astype(np.float64)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
