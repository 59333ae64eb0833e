"""Files that reach out of themselves or claim sizes they do not hold are refused before they are read."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from cellray.data.sources import gate
from cellray.data.sources.contract import open_source
from cellray.errors import InputError
from tests.data.test_formats import COUNTS
from tests.data.test_formats import zarr as write_zarr

Make = Callable[..., Path]


def _external_link(file: h5py.File, secret: Path) -> None:
    del file["obs/kind"]
    file["obs/kind"] = h5py.ExternalLink(str(secret), "/obs/kind")


def _external_storage(file: h5py.File, secret: Path) -> None:
    del file["X/data"]
    file.create_dataset("X/data", (10,), "f4", external=[(str(secret), 0, 40)])


def _virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "X/data", (10,))
    del file["X/data"]
    file.create_virtual_dataset("X/data", layout)


def _bomb(file: h5py.File, secret: Path) -> None:
    del secret
    file.create_dataset("layers/bomb", (1 << 40,), "f8", chunks=(1 << 10,), compression="gzip")


def _huge_chunk(file: h5py.File, secret: Path) -> None:
    del secret
    file.create_dataset("layers/big", (10,), "f8", maxshape=(None,), chunks=(1 << 27,), compression="gzip")


def _nested(file: h5py.File, secret: Path) -> None:
    file["uns/deep/er"] = h5py.ExternalLink(str(secret), "/")


@pytest.mark.parametrize(
    ("harm", "rule"),
    [
        (_external_link, "may not lead into other files (external link); found /obs/kind leads to"),
        (_nested, "may not lead into other files (external link); found /uns/deep/er leads to"),
        (_external_storage, "may not lead into other files (external storage)"),
        (_virtual, "may not lead into other files (external storage)"),
        (_bomb, "may not claim much more than its file holds; found /layers/bomb declares 8,796,093,022,208 bytes"),
        (_huge_chunk, "a chunk may have 536,870,912 bytes; found chunks of /layers/big have 1,073,741,824"),
    ],
)
def test_harmful_hdf5_is_refused(make_h5ad: Make, harm: Callable[[h5py.File, Path], None], rule: str) -> None:
    secret, path = make_h5ad("secret.h5ad"), make_h5ad()
    with h5py.File(path, "r+") as file:
        harm(file, secret)
    with pytest.raises(InputError) as refused:
        open_source(str(path))
    assert rule in str(refused.value)


def test_a_circle_of_links_ends(make_h5ad: Make) -> None:
    path = make_h5ad()
    with h5py.File(path, "r+") as file:
        file["uns/circle"] = file["/"]
        file["uns/soft"] = h5py.SoftLink("/nowhere")
    with open_source(str(path)) as source:
        assert source.n_cells == 50


def test_too_many_objects(make_h5ad: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_OBJECTS", 5)
    with pytest.raises(InputError, match="a file may hold 5 objects; found more"):
        open_source(str(make_h5ad()))


def test_arrays_read_whole_are_bounded(make_h5ad: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_WHOLE_BYTES", 100)
    with pytest.raises(InputError, match="an array that is read whole may have 100 bytes; found /"):
        open_source(str(make_h5ad()))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return an AnnData store of Zarr version 3."""
    return write_zarr(COUNTS, 3)(tmp_path)


def _chunk(store: Path) -> Path:
    return next(path for path in (store / "X" / "data").rglob("*") if path.is_file() and path.name != "zarr.json")


def test_a_lost_chunk_of_a_zarr_store_is_no_zero(store: Path) -> None:
    _chunk(store).unlink()
    with pytest.raises(InputError, match="a sparse matrix must be whole; found 1 of 1 chunks of /X/data are missing"):
        open_source(str(store))


def test_a_zarr_store_may_not_link_out(store: Path, tmp_path: Path) -> None:
    chunk = _chunk(store)
    moved = chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(moved)
    with pytest.raises(InputError, match=r"other files .symbolic link.; found X/data/"):
        open_source(str(store))


def test_a_zarr_bomb(tmp_path: Path) -> None:
    store = write_zarr(COUNTS, 2)(tmp_path)
    (store / ".zmetadata").unlink()  # the summary, which would not know of what comes now
    root = zarr.open_group(store, mode="r+")
    root.create_array("layers/bomb", shape=(1 << 40,), chunks=(1 << 10,), dtype=np.float64)
    with pytest.raises(InputError, match="may not claim much more than its file holds; found /layers/bomb declares"):
        open_source(str(store))
