"""Deflated arrays read by libdeflate are those of h5py, and a chunk that cannot be found is an error, not zeros."""

import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from cellray.data.sources.hdf5_chunks import DeflatedArray, DeflatedMatrix, fast_array

RNG = np.random.default_rng(0)
LINE = RNG.poisson(2, 1003).astype(np.int32)
TABLE = (RNG.poisson(3, (45, 38)) * (RNG.random((45, 38)) < 0.3)).astype(np.float32)


def stored(folder: Path, values: np.ndarray, chunks: tuple[int, ...], **options: object) -> h5py.Dataset:
    file = h5py.File(folder / "array.h5", "w")
    return file.create_dataset("array", data=values, chunks=chunks, **options)  # type: ignore[arg-type]


def written(array: h5py.Dataset, at: tuple[int, int], data: bytes, skipped: int = 0) -> h5py.Dataset:
    """Put the bytes of a chunk into the file and open it again: HDF5 remembers chunks as they were."""
    path = array.file.filename
    array.id.write_direct_chunk(at, data, filter_mask=skipped)
    array.file.close()
    return h5py.File(path)["array"]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
def test_slices_are_those_of_h5py(tmp_path: Path, dtype: type, shuffle: bool) -> None:
    array = fast_array(stored(tmp_path, LINE.astype(dtype), (64,), compression="gzip", shuffle=shuffle))
    assert isinstance(array, DeflatedArray)
    for start, stop in ((0, 1003), (0, 64), (63, 65), (64, 64), (1000, 1003), (5, 999)):
        np.testing.assert_array_equal(array[start:stop], LINE[start:stop].astype(dtype))
        assert array[start:stop].dtype == dtype


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("chunks", [(8, 8), (45, 38), (1, 38), (7, 11)])
def test_rectangles_are_those_of_h5py(tmp_path: Path, chunks: tuple[int, int], shuffle: bool) -> None:
    array = fast_array(stored(tmp_path, TABLE, chunks, compression="gzip", shuffle=shuffle))
    assert isinstance(array, DeflatedMatrix)
    np.testing.assert_array_equal(array[:, :], TABLE)
    for a, b, c, d in ((0, 45, 3, 9), (8, 16, 0, 38), (7, 8, 37, 38), (44, 45, 0, 1), (3, 3, 0, 38)):
        np.testing.assert_array_equal(array[a:b, c:d], TABLE[a:b, c:d])


@pytest.mark.parametrize("options", [{}, {"compression": "lzf"}, {"compression": "gzip", "fletcher32": True}])
def test_other_filters_are_left_to_h5py(tmp_path: Path, options: dict[str, object]) -> None:
    array = stored(tmp_path, TABLE, (8, 8), **options)
    assert fast_array(array) is array


def test_a_chunk_that_was_never_written_is_left_to_h5py(tmp_path: Path) -> None:
    file = h5py.File(tmp_path / "array.h5", "w")
    array = file.create_dataset("array", (20, 20), np.float32, chunks=(8, 8), compression="gzip")
    array[:8, :8] = 1
    assert fast_array(array) is array


def test_chunks_whose_filters_were_skipped(tmp_path: Path) -> None:
    """HDF5 notes at each chunk which filters it was stored without."""
    values = TABLE[:8, :8]
    shuffled = values.reshape(-1).view(np.uint8).reshape(-1, 4).T.tobytes()
    for skipped, data in ((0b01, zlib.compress(values.tobytes())), (0b10, shuffled), (0b11, values.tobytes())):
        array = written(stored(tmp_path, values, (8, 8), compression="gzip", shuffle=True), (0, 0), data, skipped)
        np.testing.assert_array_equal(fast_array(array)[:, :], values)
        np.testing.assert_array_equal(array[:, :], values)
        array.file.close()


def test_a_chunk_of_another_length_is_damage(tmp_path: Path) -> None:
    array = stored(tmp_path, TABLE, (8, 8), compression="gzip")
    fast = fast_array(written(array, (8, 8), TABLE[:8, :4].tobytes(), skipped=1))
    np.testing.assert_array_equal(fast[:8, :8], TABLE[:8, :8])
    with pytest.raises(OSError, match=r"chunk \(1, 1\) of /array holds 128 of 256 bytes"):
        fast[8:16, 8:16]


def test_damaged_bytes_are_told(tmp_path: Path) -> None:
    array = stored(tmp_path, TABLE, (8, 8), compression="gzip")
    fast = fast_array(written(array, (0, 8), b"no deflated bytes at all"))
    with pytest.raises(OSError, match=r"chunk \(0, 1\) of /array is damaged"):
        fast[:8, 8:16]
