"""Reads cell ranges of AnnData files, `.h5ad` and `.zarr`, local or remote, without loading the file.

Knows AnnData's on-disk layout (CSR, CSC and dense matrices; string, categorical and nullable columns), which is the
same in HDF5 and in Zarr, and nothing of genes.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
from anndata._io.specs.registry import IORegistryError
from anndata.io import read_elem

from cellray import storage
from cellray.data.sources import gate
from cellray.data.sources.contract import CountBlock
from cellray.data.sources.hdf5_exit import close_at_exit
from cellray.data.sources.matrices import CscRows, CsrRows, DenseRows, MatrixName, MatrixRows
from cellray.errors import InputError, StorageError, listing

_KIND_OF_DTYPE = {"b": "flag", "i": "integer", "u": "integer", "f": "real"}
FIX = "Write the file again with anndata, or copy it again if a transfer was cut off."
BROKEN = (
    *(KeyError, OSError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RuntimeError),
    *(EOFError, zlib.error, pa.ArrowException, IORegistryError),
)
"""What reading a damaged or unknown file has been seen to raise, in h5py, zarr, anndata and pyarrow."""


def kind_of(dtype: Any) -> str:  # noqa: ANN401  # numpy's
    """Return the kind (see `cellray.schema.OBS_TYPES`) of a column of some type.

    Unsigned numbers of 64 bits are text: they are hashes, mostly, which neither int64 nor float64 can hold.
    """
    return "text" if dtype.kind == "u" and dtype.itemsize == 8 else _KIND_OF_DTYPE.get(dtype.kind, "text")


class AnnDataSource:
    """An open AnnData file; see `cellray.data.sources.contract.CountSource`.

    Parameters
    ----------
    uri
        What to call it.
    matrix
        `X`, `raw` or `layers/NAME`.
    root
        The file's top group, of h5py or zarr.
    close
        Closes it.

    Raises
    ------
    InputError
        This is no AnnData file, is damaged, or holds no such matrix.
    """

    left_out: Mapping[str, int] = MappingProxyType({})

    def __init__(self, uri: str, matrix: str, root: Any, close: Callable[[], None]) -> None:  # noqa: ANN401
        self.uri, self.matrix = uri, matrix
        self._root, self._close = root, close
        with sound(uri, "the file must be a whole AnnData file", close):
            self._rows = self._open_matrix()
            self.n_cells, self.n_columns = self._rows.shape
            self._check_tables()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def matrices(self) -> list[str]:
        """Names of the matrices the file holds."""
        with self._readable("the list of layers"):
            layers = [f"layers/{name}" for name in self._root["layers"]] if "layers" in self._root else []
            return [name for name in ("X", "raw") if name in self._root] + layers

    def var(self) -> pd.DataFrame:
        """Return the table of the matrix's columns."""
        path = "raw/var" if self.matrix == "raw" else "var"
        with self._readable(path):
            table: pd.DataFrame = read_elem(self._root[path])
        if len(table) != self.n_columns:
            found = f"{len(table)} for {self.n_columns}"
            raise InputError(self.uri, "var must have a row for each column of the matrix", found, FIX)
        return table

    def obs_kinds(self) -> dict[str, str]:
        """Name and kind of each obs column, in the file's order."""
        with self._readable("obs"):
            obs = self._root["obs"]
            return {str(name): _kind(obs[str(name)]) for name in obs.attrs.get("column-order", ())}

    def cell_names(self, start: int, stop: int) -> pa.Array:
        """Return the obs index as strings; refuse cells without a name."""
        with self._readable("the obs index"):
            names = self._cell_names(start, stop)
        if names.null_count:
            found = f"{names.null_count} without one in obs column {self._root['obs'].attrs['_index']!r}"
            raise InputError(self.uri, "cells need names", f"{found}, rows {start}-{stop}", "Name them: obs_names.")
        return names

    def _cell_names(self, start: int, stop: int) -> pa.Array:
        obs = self._root["obs"]
        index = obs[obs.attrs["_index"]]
        if not _is_array(index):  # nullable strings or a categorical
            return pa.array(pd.Series(read_elem(index)[start:stop]).astype("string"), pa.string(), from_pandas=True)
        values = index[start:stop]
        return _text(values) if _is_text(index) else pa.array(values.astype(str), pa.string())

    def obs(self, column: str, start: int, stop: int) -> pa.Array:
        """Return rows of an obs column; missing values are null."""
        with self._readable(f"obs column {column!r}"):
            return self._obs(column, start, stop)

    def _obs(self, column: str, start: int, stop: int) -> pa.Array:
        node = self._root["obs"][column]
        if _is_array(node) and "categories" in node.attrs:  # written by anndata before 0.8
            return _take(self._root[node.attrs["categories"]][:], node[start:stop])
        if _is_array(node):
            values = node[start:stop]
            return _text(values) if _is_text(node) else pa.array(values, from_pandas=True)
        if node.attrs.get("encoding-type") == "categorical":
            return _take(read_elem(node["categories"]), node["codes"][start:stop])
        return pa.array(read_elem(node)[start:stop], from_pandas=True)

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield rows of the matrix, at most `cells` at a time."""
        with self._readable(f"cells {start}-{stop}"):
            yield from self._rows.blocks(start, stop, cells)

    def _readable(self, what: str) -> AbstractContextManager[None]:
        return readable(self.uri, what)

    def _open_matrix(self) -> MatrixRows:
        """Return a reader of the wanted matrix."""
        if "obs" not in self._root or "var" not in self._root:
            found = f"{listing(self._root)} at its top"
            raise InputError(self.uri, "an AnnData file holds obs and var", found, "Convert it with anndata.")
        path = "raw/X" if self.matrix == "raw" else self.matrix
        if path not in self._root:
            raise InputError(self.uri, f"it must hold {self.matrix!r}", listing(self.matrices()), "Correct --matrix.")
        node = self._root[path]
        if _is_array(node):
            return DenseRows(node)
        encoding = str(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "?"))).removesuffix("_matrix")
        if encoding not in ("csr", "csc"):
            raise InputError(self.uri, f"{self.matrix} must be CSR, CSC or dense", encoding, FIX)
        shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
        n_cells, n_columns = (int(n) for n in shape)
        kind, name = CsrRows if encoding == "csr" else CscRows, MatrixName(self.uri, self.matrix)
        return kind(name, node["data"], node["indices"], node["indptr"], (n_cells, n_columns))

    def _check_tables(self) -> None:
        """Check that obs has a row for each cell."""
        obs = self._root["obs"]
        index = obs[obs.attrs["_index"]]
        rows = int(index.shape[0]) if _is_array(index) else len(read_elem(index))
        if rows != self.n_cells:
            raise InputError(self.uri, "obs must have a row for each cell", f"{rows} for {self.n_cells}", FIX)


@contextmanager
def sound(uri: str, rule: str, close: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn whatever a damaged file makes its readers raise into one clear error, and close it.

    What the machine or the storage is to blame for is no damage: it comes out as `StorageError`, or as it is.
    """
    try:
        yield
    except BaseException as error:
        close()
        if not isinstance(error, BROKEN) or isinstance(error, InputError):
            raise
        if storage.is_outage(error):
            raise StorageError(uri, "a read", 1, f"{type(error).__name__}: {first_line(error)}") from error
        raise InputError(uri, rule, first_line(error), FIX) from None


def readable(uri: str, what: str) -> AbstractContextManager[None]:
    """See `sound`, for a part of a file."""
    return sound(uri, f"{what} must be readable")


def open_h5ad(uri: str, matrix: str) -> AnnDataSource:
    """Open an `.h5ad` file; remote ones are read by range requests."""
    file, close = open_hdf5(uri)
    return AnnDataSource(uri, matrix, file, close)


def open_zarr(uri: str, matrix: str) -> AnnDataSource:
    """Open an AnnData Zarr store, version 2 or 3, sharded or not."""
    import zarr

    with sound(uri, "the folder must be a whole Zarr group"):
        root = zarr.open_group(storage.open_store(uri), mode="r")
        gate.check_zarr(uri, storage.stamp(uri).version, root)
    return AnnDataSource(uri, matrix, root, lambda: None)


def open_hdf5(uri: str) -> tuple[h5py.File, Callable[[], None]]:
    """Open an HDF5 file for reading, if it passes the gate; returns it and what closes it."""
    import hdf5plugin  # noqa: F401  # makes the blosc, zstd, lz4 and bitshuffle filters known to HDF5

    stamp = storage.stamp(uri)
    if stamp.size == 0:
        raise InputError(uri, "the file must hold data", "an empty file", FIX)
    _, path = storage.filesystem(uri)
    stream = None if storage.is_local(uri) else storage.open_scattered(uri)
    if stream is not None:
        close_at_exit()
    try:
        file = h5py.File(path if stream is None else stream, "r")
    except OSError as error:
        if stream is not None:
            stream.close()
        if storage.is_outage(error):
            raise StorageError(uri, "a read", 1, f"{type(error).__name__}: {first_line(error)}") from error
        raise _not_hdf5(uri, str(error)) from None

    def close() -> None:
        file.close()
        if stream is not None:
            stream.close()

    with sound(uri, "the file must be a whole HDF5 file", close):
        gate.check_hdf5(uri, stamp.version, file)
    return file, close


def _not_hdf5(uri: str, message: str) -> InputError:
    """Say in plain words why HDF5 does not open a file."""
    rule = "the file must be a whole HDF5 file"
    if cut := re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", message):
        found = f"{int(cut[1]):,} of {int(cut[2]):,} bytes: the end is missing"
        return InputError(uri, rule, found, "Copy it again.")
    if "signature not found" in message:
        return InputError(uri, rule, "another kind of file, whatever its name", "Convert it with anndata.")
    return InputError(uri, rule, message.split("\n", 1)[0], FIX)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its name."""
    return str(error).strip("'\"").split("\n", 1)[0] or type(error).__name__


def _is_array(node: Any) -> bool:  # noqa: ANN401  # an array or a group, of h5py or zarr
    return hasattr(node, "dtype")


def _is_text(node: Any) -> bool:  # noqa: ANN401
    return node.dtype.kind in "OSTU"


def _kind(node: Any) -> str:  # noqa: ANN401
    """Return the kind of an obs column."""
    if not _is_array(node):
        part = next((name for name in ("categories", "values") if name in node), None)
        return "text" if part is None else _kind(node[part])
    return "text" if "categories" in node.attrs else kind_of(node.dtype)


def _text(values: Any) -> pa.Array:  # noqa: ANN401  # bytes of HDF5, strings of Zarr
    return pa.array([v.decode() if isinstance(v, bytes) else v for v in values.tolist()], pa.string())


def _take(categories: Any, codes: Any) -> pa.Array:  # noqa: ANN401
    """Return the categories that codes name; a code below zero is missing."""
    categories = np.asarray(categories)
    names = _text(categories) if categories.dtype.kind in "OSTU" else pa.array(categories)
    return names.take(pa.array(codes, mask=codes < 0))
