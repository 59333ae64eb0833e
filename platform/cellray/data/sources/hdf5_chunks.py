"""Slices of deflated HDF5 arrays, inflated by libdeflate: a third of the time that HDF5 itself takes.

Knows one-dimensional chunked arrays with the filters that `compression="gzip"` writes, with or without shuffling. All
others are left to h5py.
"""

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE


class DeflatedArray:
    """A one-dimensional deflated dataset; `array[a:b]` gives its values.

    The last chunk of a slice is kept, since the next slice mostly begins within it.
    """

    def __init__(self, dataset: h5py.Dataset, filters: tuple[int, ...]) -> None:
        self.shape, self.dtype = dataset.shape, dataset.dtype
        self._dataset, self._filters = dataset, filters
        self._chunk = int(dataset.chunks[0])
        self._kept: tuple[int, NDArray[Any]] | None = None

    def __getitem__(self, wanted: slice) -> NDArray[Any]:
        """Return a slice of values; only `a:b` with whole numbers within the array is understood."""
        start, stop = wanted.start, wanted.stop
        out = np.empty(stop - start, self.dtype)
        for number in range(start // self._chunk, -(-stop // self._chunk) if stop > start else 0):
            first = number * self._chunk
            values = self._values(number)
            a, b = max(start, first), min(stop, first + len(values))
            out[a - start : b - start] = values[a - first : b - first]
        return out

    def _values(self, number: int) -> NDArray[Any]:
        """Return one chunk, inflated."""
        if self._kept is None or self._kept[0] != number:
            self._kept = number, self._inflate(number)
        return self._kept[1]

    def _inflate(self, number: int) -> NDArray[Any]:
        import deflate

        first = number * self._chunk
        skipped, data = self._dataset.id.read_direct_chunk((first,))
        size = self._chunk * self.dtype.itemsize
        if skipped:  # HDF5 may leave a filter out of single chunks
            return np.asarray(self._dataset[first : first + self._chunk])
        try:
            data = deflate.zlib_decompress(data, size)
        except deflate.DeflateError as error:
            raise OSError(f"chunk {number} of {self._dataset.name} is damaged: {error}") from None
        if len(data) != size:
            raise OSError(f"chunk {number} of {self._dataset.name} inflates to {len(data)} of {size} bytes")
        if _SHUFFLE in self._filters:  # the first bytes of all values, then the second ones, ...
            data = np.frombuffer(data, np.uint8).reshape(self.dtype.itemsize, -1).T.tobytes()
        return np.frombuffer(data, self.dtype)[: self.shape[0] - first]


def fast_array(dataset: Any) -> Any:  # noqa: ANN401  # an array of h5py or zarr, or ours
    """Return a faster reader of a dataset's slices if there is one, else the dataset."""
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.chunks is None:
        return dataset
    properties = dataset.id.get_create_plist()
    filters = tuple(properties.get_filter(i)[0] for i in range(properties.get_nfilters()))
    whole = dataset.id.get_num_chunks() * dataset.chunks[0] >= dataset.shape[0]  # no chunk left to its fill value
    plain = dataset.dtype.kind in "biuf"
    return DeflatedArray(dataset, filters) if whole and plain and filters in _KNOWN else dataset


_KNOWN = ((_DEFLATE,), (_SHUFFLE, _DEFLATE))
