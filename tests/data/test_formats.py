"""Every format gives the same cells: any range, any block size, local or on S3."""

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest
import scipy.io
from numpy.typing import NDArray
from scipy import sparse

from cellray import storage
from cellray.data.sources import matrices
from cellray.data.sources.contract import CountSource, open_source
from cellray.data.sources.locate import expand_sources
from cellray.errors import InputError, StorageError
from tests.conftest import GENES, random_counts

CELLS = 37
COUNTS = random_counts(CELLS, 40)
NAMES = [f"cell{i}" for i in range(CELLS)]


def read_rows(source: CountSource, start: int, stop: int, cells: int = 10) -> NDArray[np.float32]:
    """Return a range of cells as a dense matrix, and check how it is cut."""
    blocks = list(source.blocks(start, stop, cells))
    assert sum(block.n_cells for block in blocks) == stop - start
    assert all(0 < block.n_cells <= cells for block in blocks)
    assert [block.start for block in blocks] == [start + sum(b.n_cells for b in blocks[:i]) for i in range(len(blocks))]
    rows = [
        sparse.csr_matrix((b.counts, b.columns, b.indptr), shape=(b.n_cells, b.n_columns)).toarray() for b in blocks
    ]
    return np.concatenate(rows) if rows else np.empty((0, source.n_columns), np.float32)


def adata_of(x: object) -> anndata.AnnData:
    obs = pd.DataFrame({"kind": pd.Categorical(["a", "b", "c"] * 12 + [None])}, index=pd.Index(NAMES))
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame({"ensembl_id": GENES}, index=[f"G{i}" for i in range(40)]))


def h5ad(x: object, **options: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        adata_of(x).write_h5ad(folder / "cells.h5ad", **options)
        return folder / "cells.h5ad"

    return write


def blosc(folder: Path) -> Path:
    """Compress the matrix alone: the filter crashes on text."""
    path = h5ad(COUNTS)(folder)
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices", "indptr"):
            values = file["X"][name][:]
            del file["X"][name]
            file["X"].create_dataset(name, data=values, **hdf5plugin.Blosc(cname="zstd"))
    return path


def zarr(x: object, version: int, *, shards: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata warns of defaults to come
            with anndata.settings.override(zarr_write_format=version, auto_shard_zarr_v3=shards):
                adata_of(x).write_zarr(folder / "cells.zarr")
        return folder / "cells.zarr"

    return write


def loom(folder: Path) -> Path:
    with h5py.File(folder / "cells.loom", "w") as file:
        file.create_dataset("matrix", data=COUNTS.toarray().T, chunks=(8, 8), compression="gzip")
        file["row_attrs/Gene"] = np.array([f"G{i}" for i in range(40)], "S")
        file["row_attrs/Accession"] = np.array(GENES, "S")
        file["col_attrs/CellID"] = np.array(NAMES, "S")
        file["col_attrs/kind"] = np.array(["a", "b", "c"] * 12 + ["a"], "S")
    return folder / "cells.loom"


def tenx_h5(folder: Path) -> Path:
    with h5py.File(folder / "cells.h5", "w") as file:
        for name, values in (
            ("data", COUNTS.data.astype(np.int32)),
            ("indices", COUNTS.indices),
            ("indptr", COUNTS.indptr),
        ):
            file[f"matrix/{name}"] = values
        file["matrix/shape"] = [40, CELLS]
        file["matrix/barcodes"] = np.array(NAMES, "S")
        file["matrix/features/id"] = np.array(GENES, "S")
        file["matrix/features/name"] = np.array([f"G{i}" for i in range(40)], "S")
        file["matrix/features/feature_type"] = np.array(["Gene Expression"] * 40, "S")
    return folder / "cells.h5"


def tenx_mtx(folder: Path) -> Path:
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, COUNTS.T.tocsc().astype(np.int64))
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.write("\n".join(NAMES) + "\n")
    with gzip.open(folder / "features.tsv.gz", "wt") as file:
        file.writelines(f"{gene}\tG{i}\tGene Expression\n" for i, gene in enumerate(GENES))
    return folder / "matrix.mtx.gz"


WRITERS = {
    "h5ad csr": h5ad(COUNTS),
    "h5ad csr gzip": h5ad(COUNTS, compression="gzip"),
    "h5ad csr lzf": h5ad(COUNTS, compression="lzf"),
    "h5ad csr blosc": blosc,
    "h5ad csr zstd": h5ad(COUNTS, **hdf5plugin.Zstd()),
    "h5ad csc": h5ad(COUNTS.tocsc()),
    "h5ad dense": h5ad(COUNTS.toarray()),
    "zarr v2 csr": zarr(COUNTS, 2),
    "zarr v3 csr": zarr(COUNTS, 3),
    "zarr v3 sharded": zarr(COUNTS, 3, shards=True),
    "zarr v3 csc": zarr(COUNTS.tocsc(), 3),
    "zarr v3 dense": zarr(COUNTS.toarray(), 3),
    "loom": loom,
    "10x h5": tenx_h5,
    "10x mtx": tenx_mtx,
}


@pytest.fixture(params=WRITERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the same cells in each format."""
    return WRITERS[request.param](tmp_path)


@pytest.mark.parametrize("scan", [7, 4_000_000])
def test_any_range_in_any_blocks(path: Path, scan: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "SCAN_VALUES", scan)
    whole = COUNTS.toarray()
    with open_source(str(path)) as source:
        assert (source.n_cells, source.n_columns) == whole.shape
        for start, stop, cells in ((0, CELLS, 100), (0, CELLS, 10), (5, 23, 4), (36, 37, 1), (3, 3, 5)):
            assert np.array_equal(read_rows(source, start, stop, cells), whole[start:stop])


def test_names_and_genes(path: Path) -> None:
    with open_source(str(path)) as source:
        assert source.cell_names(3, 6).to_pylist() == ["cell3", "cell4", "cell5"]
        var = source.var()
        assert var.index.tolist()[:2] == ["G0", "G1"]
        assert var["ensembl_id"].tolist() == GENES
        if "kind" in source.obs_kinds():
            assert source.obs("kind", 1, 4).to_pylist() == ["b", "c", "a"]
            assert set(source.obs_kinds().values()) == {"text"}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # zarr leaves its S3 session to the collector
def test_on_s3(path: Path, bucket: str) -> None:
    fs, _ = storage.filesystem(bucket)
    folder = path.parent
    for file in folder.rglob("*"):
        if file.is_file():
            fs.put_file(str(file), f"{bucket}/in/{file.relative_to(folder)}")
    uri = f"{bucket}/in/{path.name}"
    assert storage.stamp(uri).size > 0
    with open_source(uri) as source:
        assert np.array_equal(read_rows(source, 5, 20), COUNTS.toarray()[5:20])
    assert expand_sources([f"{bucket}/in"]) == [uri]


def test_folders_globs_and_lists_name_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/2.h5ad", "a/1.h5ad", "a/notes.csv", "b.loom"):
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "s.zarr").mkdir()
    (tmp_path / "a" / "s.zarr" / "zarr.json").write_text("")
    (tmp_path / "all.txt").write_text(f"# mine\n{tmp_path}/b.loom\n\n{tmp_path}/a/*.h5ad  # both\n")
    in_a = [str(tmp_path / "a" / name) for name in ("1.h5ad", "2.h5ad", "s.zarr")]
    assert expand_sources([str(tmp_path / "a")]) == in_a
    assert expand_sources([str(tmp_path / "all.txt")]) == [str(tmp_path / "b.loom"), *in_a[:2]]
    with pytest.raises(InputError, match=r"may be named once; found '.*1\.h5ad'"):
        expand_sources([str(tmp_path / "a"), in_a[0]])
    with pytest.raises(InputError, match="there must be files ending in"):
        expand_sources([str(tmp_path / "a" / "*.csv")])


@pytest.mark.parametrize("name", ["barcodes.tsv.gz", "features.tsv.gz"])
def test_a_cut_text_matrix_is_refused(tmp_path: Path, name: str) -> None:
    path = tenx_mtx(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with (
        pytest.raises(InputError, match=r"matrix\.mtx\.gz: the .* must be (readable|whole)"),
        open_source(str(path)) as source,
    ):
        list(source.blocks(0, 1, 1))


def test_an_outage_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = h5ad(COUNTS)(tmp_path)

    def fail(*_: object) -> object:
        raise OSError("Can't read data (file read failed: errno = 5, error message = 'Input/output error')")

    monkeypatch.setattr(matrices.CsrRows, "blocks", fail)
    with open_source(str(path)) as source, pytest.raises(StorageError, match="Input/output error"):
        next(source.blocks(0, 5, 5))


def test_an_experiment_is_not_counted_twice(tmp_path: Path) -> None:
    for name in ("raw_feature_bc_matrix", "filtered_feature_bc_matrix"):
        (tmp_path / "outs" / name).mkdir(parents=True)
        tenx_mtx(tmp_path / "outs" / name)
    (tmp_path / "outs" / "molecule_info.h5").touch()
    with pytest.raises(InputError, match=r"cells may be counted once; found .*filtered_\S+ beside .*raw_\S+, of one"):
        expand_sources([str(tmp_path)])
    (found,) = expand_sources([f"{tmp_path}/outs/filtered_*/*.mtx.gz"])
    assert found.endswith("filtered_feature_bc_matrix/matrix.mtx.gz")
    (tmp_path / "a[1].h5ad").touch()
    assert expand_sources([str(tmp_path / "a[1].h5ad")]) == [str(tmp_path / "a[1].h5ad")]
    with pytest.raises(InputError, match="a file may be named once"):
        expand_sources([str(tmp_path / "a[1].h5ad"), f"file://{tmp_path}/a[1].h5ad"])
