"""Slices of deflated HDF5 arrays, inflated by libdeflate: a third of the time that HDF5 itself takes.

Knows chunked arrays of one or two axes with the filters that `compression="gzip"` writes, with or without shuffling.
All others are left to h5py. A chunk that the file's index lists and does not find is an error here; HDF5 gives zeros.
"""

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
_KNOWN = ((_DEFLATE,), (_SHUFFLE, _DEFLATE))


class _Chunks:
    """The chunks of a deflated dataset, one at a time."""

    def __init__(self, dataset: h5py.Dataset, filters: tuple[int, ...]) -> None:
        self.sides: tuple[int, ...] = dataset.chunks
        self._dataset, self._filters = dataset, filters
        self._bytes = int(np.prod(self.sides)) * dataset.dtype.itemsize

    def read(self, *number: int) -> NDArray[Any]:
        """Return a chunk by its number along each axis, whole: at the array's edges with what lies beyond them.

        Raises
        ------
        OSError
            It cannot be found, or is damaged.
        """
        skipped, data = self._dataset.id.read_direct_chunk(
            tuple(n * side for n, side in zip(number, self.sides, strict=True))
        )
        for place in reversed(range(len(self._filters))):
            if not skipped >> place & 1:  # HDF5 may leave a filter out of single chunks
                data = self._undo(self._filters[place], data, number)
        if len(data) != self._bytes:
            raise OSError(f"chunk {number} of {self._dataset.name} holds {len(data)} of {self._bytes} bytes")
        return np.frombuffer(data, self._dataset.dtype).reshape(self.sides)

    def _undo(self, filter_: int, data: bytes, number: tuple[int, ...]) -> bytes:
        import deflate

        if filter_ == _SHUFFLE:  # the first bytes of all values, then the second ones, ...
            return np.frombuffer(data, np.uint8).reshape(self._dataset.dtype.itemsize, -1).T.tobytes()
        try:
            return bytes(deflate.zlib_decompress(data, self._bytes))
        except deflate.DeflateError as error:
            raise OSError(f"chunk {number} of {self._dataset.name} is damaged: {error}") from None


class DeflatedArray:
    """A one-dimensional deflated dataset; `array[a:b]` gives its values.

    The last chunk of a slice is kept, since the next slice mostly begins within it.
    """

    def __init__(self, dataset: h5py.Dataset, filters: tuple[int, ...]) -> None:
        self.shape, self.dtype = dataset.shape, dataset.dtype
        self._chunks = _Chunks(dataset, filters)
        self._kept: tuple[int, NDArray[Any]] | None = None

    def __getitem__(self, wanted: slice) -> NDArray[Any]:
        """Return a slice of values; only `a:b` with whole numbers within the array is understood."""
        start, stop = wanted.start, wanted.stop
        (side,) = self._chunks.sides
        out = np.empty(stop - start, self.dtype)
        for number in range(start // side, -(-stop // side) if stop > start else 0):
            first, values = number * side, self._values(number)
            a, b = max(start, first), min(stop, first + side)
            out[a - start : b - start] = values[a - first : b - first]
        return out

    def _values(self, number: int) -> NDArray[Any]:
        """Return one chunk, inflated."""
        if self._kept is None or self._kept[0] != number:
            self._kept = number, self._chunks.read(number)
        return self._kept[1]


class DeflatedMatrix:
    """A two-dimensional deflated dataset; `array[a:b, c:d]` gives a copy of a rectangle."""

    def __init__(self, dataset: h5py.Dataset, filters: tuple[int, ...]) -> None:
        self.shape, self.dtype, self.chunks = dataset.shape, dataset.dtype, dataset.chunks
        self._chunks = _Chunks(dataset, filters)

    def __getitem__(self, wanted: tuple[slice, slice]) -> NDArray[Any]:
        """Return a rectangle; only slices without a step are understood."""
        (a, b, _), (c, d, _) = (part.indices(length) for part, length in zip(wanted, self.shape, strict=True))
        high, wide = self._chunks.sides
        out = np.empty((b - a, d - c), self.dtype)
        for row in range(a - a % high, b, high):
            for column in range(c - c % wide, d, wide):
                top, left = max(a, row), max(c, column)
                bottom, right = min(b, row + high), min(d, column + wide)
                values = self._chunks.read(row // high, column // wide)
                part = values[top - row : bottom - row, left - column : right - column]
                out[top - a : bottom - a, left - c : right - c] = part
        return out


_OF_AXES = {1: DeflatedArray, 2: DeflatedMatrix}


def fast_array(dataset: Any) -> Any:  # noqa: ANN401  # an array of h5py or zarr, or ours
    """Return a faster reader of a dataset's slices if there is one, else the dataset."""
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim not in _OF_AXES or dataset.chunks is None:
        return dataset
    properties = dataset.id.get_create_plist()
    filters = tuple(properties.get_filter(i)[0] for i in range(properties.get_nfilters()))
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    whole = dataset.id.get_num_chunks() >= np.prod([-(-length // side) for length, side in sides])  # none left out
    plain = dataset.dtype.kind in "biuf"
    return _OF_AXES[dataset.ndim](dataset, filters) if whole and plain and filters in _KNOWN else dataset
