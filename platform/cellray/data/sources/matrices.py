"""Reads cell ranges of a stored cells x genes matrix: rows of CSR, CSC or dense arrays, of HDF5 or Zarr alike.

Each reader bounds its memory by the cells asked for and `SCAN_VALUES`; none loads the matrix.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellray.data.sources.contract import CountBlock
from cellray.data.sources.hdf5_chunks import fast_array

SCAN_VALUES = 4_000_000
"""Stored values held at a time while a matrix that is not stored by cell is scanned (48 MB at most)."""


BLOCK_VALUES = 8_000_000
"""Most stored values of a block of several cells (96 MB)."""


class MatrixRows(Protocol):
    """A stored matrix that can be read by cells."""

    shape: tuple[int, int]

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells `start .. stop`, at most `cells` at a time."""
        ...


class CsrRows:
    """A CSR matrix: the cells' values lie together."""

    def __init__(self, data: Any, indices: Any, indptr: NDArray[np.int64], shape: tuple[int, int]) -> None:  # noqa: ANN401
        self.shape, self._indptr = shape, indptr
        self._data, self._indices = fast_array(data), fast_array(indices)

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells, reading only what they hold."""
        first = start
        while first < stop:
            a = int(self._indptr[first])
            fitting = int(np.searchsorted(self._indptr, a + BLOCK_VALUES, side="right")) - 1
            last = min(first + cells, stop, max(first + 1, fitting))
            b = int(self._indptr[last])
            indptr = self._indptr[first : last + 1] - a
            yield CountBlock(native(self._data[a:b]), native(self._indices[a:b]), indptr, self.shape[1], first)
            first = last


class CscRows:
    """A CSC matrix: the genes' values lie together, so a range of cells costs one pass over the matrix.

    Memory: the wanted cells' values and `SCAN_VALUES` stored ones.
    """

    def __init__(self, data: Any, indices: Any, indptr: NDArray[np.int64], shape: tuple[int, int]) -> None:  # noqa: ANN401
        self.shape, self._indptr = shape, indptr
        self._data, self._indices = fast_array(data), fast_array(indices)

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Scan the columns once for the whole range, then yield it in pieces."""
        found = [self._within(a, b, start, stop) for a, b in self._scans()]
        rows, columns, counts = (np.concatenate([part[i] for part in found]) for i in range(3))
        matrix = sparse.coo_matrix((counts, (rows, columns)), shape=(stop - start, self.shape[1])).tocsr()
        yield from pieces(matrix, start, cells)

    def _scans(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of stored values that cover the matrix."""
        total = int(self._indptr[-1])
        for a in range(0, max(total, 1), SCAN_VALUES):
            yield a, min(a + SCAN_VALUES, total)

    def _within(self, a: int, b: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return row (from `start`), column and value of the stored values `a .. b` that belong to the wanted cells."""
        rows = native(self._indices[a:b])
        wanted = np.flatnonzero((rows >= start) & (rows < stop))
        columns = np.searchsorted(self._indptr, wanted + a, side="right") - 1
        return rows[wanted].astype(np.int64) - start, columns, native(self._data[a:b])[wanted]


class DenseRows:
    """A dense matrix, stored cells x genes or, as in loom, genes x cells.

    Memory: the cells of one block, dense, at most `SCAN_VALUES` values at a time.
    """

    def __init__(self, array: Any, *, transposed: bool = False) -> None:  # noqa: ANN401
        self._array, self._transposed = array, transposed
        rows, columns = (int(n) for n in array.shape)
        self.shape = (columns, rows) if transposed else (rows, columns)

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells, dropping zeros."""
        step = max(1, min(cells, SCAN_VALUES // max(1, self.shape[1])))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            dense = self._array[:, first:last].T if self._transposed else self._array[first:last]
            matrix = sparse.csr_matrix(native(np.asarray(dense)))
            yield CountBlock(matrix.data, matrix.indices, matrix.indptr, self.shape[1], first)


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


def pieces(matrix: sparse.csr_matrix, start: int, cells: int) -> Iterator[CountBlock]:
    """Yield a CSR matrix in memory as blocks, the first of which begins at cell `start`."""
    for first in range(0, matrix.shape[0], cells):
        part = matrix[first : first + cells]
        yield CountBlock(part.data, part.indices, part.indptr, matrix.shape[1], start + first)
