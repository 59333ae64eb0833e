"""Files that reach out of themselves or claim sizes they do not hold are refused before they are read."""

import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

from cellray.data.sources import gate
from cellray.data.sources.contract import open_source
from cellray.errors import InputError
from tests.conftest import random_counts
from tests.data.test_formats import COUNTS, loom, tenx_h5
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


def _missing_chunks(name: str) -> Callable[[h5py.File, Path], None]:
    """Return what leaves an array as an interrupted writer does: of its right length, half of it never written."""

    def harm(file: h5py.File, secret: Path) -> None:
        del secret
        values, attributes = file[name][:], dict(file[name].attrs)
        del file[name]
        array = file.create_dataset(name, values.shape, values.dtype, chunks=(10,))
        array[: len(values) // 2] = values[: len(values) // 2]
        array.attrs.update(attributes)

    return harm


def _never_written(file: h5py.File, secret: Path) -> None:
    del secret
    length = len(file["X/indices"])
    del file["X/indices"]
    file.create_dataset("X/indices", (length,), "i4")


@pytest.mark.parametrize(
    ("harm", "rule"),
    [
        (_external_link, "may not lead into other files (external link); found /obs/kind leads to"),
        (_nested, "may not lead into other files (external link); found /uns/deep/er leads to"),
        (_external_storage, "may not lead into other files (external storage)"),
        (_virtual, "may not lead into other files (external storage)"),
        (_bomb, "may not claim much more than its file holds; found /layers/bomb declares 8,796,093,022,208 bytes"),
        (_missing_chunks("X/data"), "a sparse matrix must be whole; found "),
        (_missing_chunks("X/indices"), "chunks of /X/indices are missing"),
        (_missing_chunks("X/indptr"), "a sparse matrix must be whole; found 3 of 6 chunks of /X/indptr are missing"),
        (
            _missing_chunks("obs/kind/codes"),
            "a column of categories must be whole; found 2 of 5 chunks of /obs/kind/codes",
        ),
        (_never_written, "found 1 of 1 chunks of /X/indices are missing"),
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


def _soft(file: h5py.File) -> None:
    file["var/bomb"] = h5py.SoftLink("/a_bomb")


def _hard(file: h5py.File) -> None:
    file["var/bomb"] = file["a_bomb"]


def _group(file: h5py.File) -> None:
    """Be found twice: as a group of no consequence, and as raw's table of columns."""
    file["uns/a_table/bomb"] = file["a_bomb"]
    file["raw/var"] = file["uns/a_table"]


def _old_categories(file: h5py.File) -> None:
    """Have categories as anndata wrote them before 0.8: a reference to anywhere."""
    file["obs/old"] = np.zeros(50, np.int8)
    file["obs/old"].attrs["categories"] = file["a_bomb"].ref


@pytest.mark.parametrize("disguise", [_soft, _hard, _group, _old_categories])
def test_no_path_leads_around_the_limit(
    make_h5ad: Make, monkeypatch: pytest.MonkeyPatch, disguise: Callable[[h5py.File], None]
) -> None:
    monkeypatch.setattr(gate, "MAX_WHOLE_BYTES", 10_000)
    path = make_h5ad()
    with h5py.File(path, "r+") as file:
        file["a_bomb"] = np.zeros(2000)
    with open_source(str(path)) as source:
        assert source.n_cells == 50
    with h5py.File(path, "r+") as file:
        disguise(file)
    with pytest.raises(InputError, match=r"read whole may have 10,000 bytes; found /.*/.* has 16,000"):
        open_source(str(path))


def test_a_soft_link_may_stand_for_a_matrix(make_h5ad: Make) -> None:
    path = make_h5ad()
    with h5py.File(path, "r+") as file:
        file.move("X", "elsewhere")
        file["X"] = h5py.SoftLink("/elsewhere")
    with open_source(str(path)) as source:
        assert sum(block.n_cells for block in source.blocks(0, 50, 20)) == 50


def test_missing_chunks_of_a_tenx_file(tmp_path: Path) -> None:
    path = tenx_h5(tmp_path)
    with h5py.File(path, "r+") as file:
        _missing_chunks("matrix/indices")(file, path)
    with pytest.raises(InputError, match=r"a sparse matrix must be whole; found .* chunks of /matrix/indices"):
        open_source(str(path))


def test_missing_chunks_of_a_dense_matrix(tmp_path: Path) -> None:
    path = loom(tmp_path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("layers/place", (40, 37), "i4", chunks=(8, 8))  # nothing written: it holds a place
    with open_source(str(path)) as source:
        assert source.n_cells == 37
    with h5py.File(path, "r+") as file:
        del file["matrix"]
        file.create_dataset("matrix", (40, 37), "f4", chunks=(8, 8))[:, :30] = 1
    with pytest.raises(InputError, match="a matrix or column must be whole; found 5 of 25 chunks of /matrix are"):
        open_source(str(path))


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


def test_zarr_does_not_write_chunks_of_the_first_category(tmp_path: Path) -> None:
    """So a store that lacks chunks of codes may be whole; if it wrote them, the gate could tell."""
    x = random_counts(20, 5)
    table = pd.DataFrame({"kind": pd.Categorical(["a"] * 20)}, index=[f"cell{i}" for i in range(20)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata warns of defaults to come
        anndata.AnnData(x, obs=table, var=pd.DataFrame(index=list("abcde"))).write_zarr(tmp_path / "cells.zarr")
    assert not [path for path in (tmp_path / "cells.zarr/obs/kind/codes").iterdir() if not path.name.startswith(".z")]
    with open_source(str(tmp_path / "cells.zarr")) as source:
        assert source.obs("kind", 0, 20).to_pylist() == ["a"] * 20


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_zarr_store_may_not_link_out(store: Path, tmp_path: Path, scheme: str) -> None:
    chunk = _chunk(store)
    moved = chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(moved)
    with pytest.raises(InputError, match=r"other files .symbolic link.; found X/data/"):
        open_source(f"{scheme}{store}")


class _Harm:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    ("filters", "compressor"),
    [
        ([{"id": "vlen-utf8"}], {"id": "pickle", "protocol": 5}),
        ([{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}], None),
        ([{"id": "pickle", "protocol": 5}], None),
    ],
)
def test_a_zarr_store_may_not_run_code(tmp_path: Path, filters: list[object], compressor: object) -> None:
    store = write_zarr(COUNTS, 2)(tmp_path)
    (store / ".zmetadata").unlink()
    index = store / "obs" / "_index"
    described = json.loads((index / ".zarray").read_text())
    (index / ".zarray").write_text(json.dumps({**described, "filters": filters, "compressor": compressor}))
    (index / "0").write_bytes(pickle.dumps(_Harm(tmp_path / "harm")))
    with pytest.raises(InputError, match=r"may be encoded by .*; found 'pickle' at /obs/_index|No Zarr data type"):
        open_source(str(store))
    assert not (tmp_path / "harm").exists()


def test_codecs_within_shards_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CODECS", gate.CODECS - {"zstd"})
    with pytest.raises(InputError, match="found 'zstd' at /"):
        open_source(str(write_zarr(COUNTS, 3, shards=True)(tmp_path)))


def test_a_zarr_bomb(tmp_path: Path) -> None:
    store = write_zarr(COUNTS, 2)(tmp_path)
    (store / ".zmetadata").unlink()  # the summary, which would not know of what comes now
    root = zarr.open_group(store, mode="r+")
    root.create_array("layers/bomb", shape=(1 << 40,), chunks=(1 << 10,), dtype=np.float64)
    with pytest.raises(InputError, match="may not claim much more than its file holds; found /layers/bomb declares"):
        open_source(str(store))
