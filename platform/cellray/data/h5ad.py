"""Reads row ranges of `.h5ad` files, local or remote, without loading the file.

Knows the on-disk layout of AnnData (CSR matrices, string, categorical and nullable columns) and nothing of genes.
"""

from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
from anndata.io import read_elem

from cellray import storage
from cellray.data.source import CountBlock
from cellray.errors import InputError, listing

_KIND_OF_DTYPE = {"b": "flag", "i": "integer", "u": "integer", "f": "real"}
_FIX = "Write the file again with anndata, or copy it again if a transfer was cut off."


class H5adSource:
    """An open `.h5ad` file; see `cellray.data.source.CountSource`.

    Parameters
    ----------
    uri
        Local path or fsspec URI; remote files are read by range requests.
    matrix
        `X`, `raw` or `layers/NAME`; must be stored as CSR.

    Raises
    ------
    InputError
        The file is missing, empty, truncated, no AnnData file, or holds no such CSR matrix.
    """

    def __init__(self, uri: str, matrix: str = "X") -> None:
        self.uri, self.matrix = uri, matrix
        self._stream, self._file = _open_hdf5(uri)
        try:
            self._group = self._find_matrix()
            shape = [int(n) for n in self._group.attrs["shape"]]
            self.n_cells, self.n_columns = shape
            self._indptr = self._group["indptr"][:].astype(np.int64)
            self._check_declared()
        except InputError:
            self.__exit__()
            raise
        except (KeyError, OSError, ValueError, TypeError) as error:
            self.__exit__()
            raise InputError(uri, "the file must be a whole AnnData .h5ad", _first_line(error), _FIX) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        if self._stream is not None:
            self._stream.close()

    def matrices(self) -> list[str]:
        """Names of the matrices the file holds."""
        layers = [f"layers/{name}" for name in self._file.get("layers", {})]
        return [name for name in ("X", "raw") if name in self._file] + layers

    def var(self) -> pd.DataFrame:
        """Return the table of the matrix's columns."""
        table: pd.DataFrame = self._elem("raw/var" if self.matrix == "raw" else "var")
        if len(table) != self.n_columns:
            raise InputError(
                self.uri,
                "var must have a row for each column of the matrix",
                f"{len(table)} for {self.n_columns}",
                _FIX,
            )
        return table

    def obs_kinds(self) -> dict[str, str]:
        """Name and kind of each obs column, in the file's order."""
        obs = self._file["obs"]
        names = [str(name) for name in obs.attrs.get("column-order", ())]
        return {name: _kind(obs[name]) for name in names}

    def cell_names(self, start: int, stop: int) -> pa.Array:
        """Return the obs index as strings."""
        obs = self._file["obs"]
        return _strings(obs[obs.attrs["_index"]], start, stop)

    def obs(self, column: str, start: int, stop: int) -> pa.Array:
        """Return rows of an obs column; missing values are null."""
        node = self._file["obs"][column]
        if isinstance(node, h5py.Dataset):
            if h5py.check_string_dtype(node.dtype):
                return _strings(node, start, stop)
            return pa.array(node[start:stop], from_pandas=True)
        if node.attrs.get("encoding-type") == "categorical":
            categories = pa.array(read_elem(node["categories"]))
            codes = node["codes"][start:stop]
            return categories.take(pa.array(codes, mask=codes < 0))
        return pa.array(read_elem(node)[start:stop], from_pandas=True)

    def read(self, start: int, stop: int) -> CountBlock:
        """Read rows of the matrix as CSR arrays."""
        first, last = int(self._indptr[start]), int(self._indptr[stop])
        try:
            counts, columns = self._group["data"][first:last], self._group["indices"][first:last]
        except (OSError, ValueError) as error:
            raise InputError(self.uri, f"rows {start}-{stop} must be readable", _first_line(error), _FIX) from None
        return CountBlock(counts, columns, self._indptr[start : stop + 1] - first, self.n_columns, start)

    def _find_matrix(self) -> h5py.Group:
        """Return the HDF5 group of the wanted matrix."""
        if "obs" not in self._file or "var" not in self._file:
            raise InputError(
                self.uri,
                "an .h5ad file holds obs and var",
                f"{listing(self._file)} at its top",
                "Convert it with anndata.",
            )
        path = "raw/X" if self.matrix == "raw" else self.matrix
        if path not in self._file:
            raise InputError(
                self.uri, f"the file must hold {self.matrix!r}", listing(self.matrices()), "Correct --matrix."
            )
        group = self._file[path]
        encoding = group.attrs.get("encoding-type", "dense array" if isinstance(group, h5py.Dataset) else "?")
        if encoding != "csr_matrix":
            raise InputError(
                self.uri,
                f"{self.matrix} must be stored as a CSR matrix",
                str(encoding),
                "Read it with anndata, convert the matrix with scipy.sparse.csr_matrix and write it again.",
            )
        return group

    def _check_declared(self) -> None:
        """Check the row pointers against the arrays they point into."""
        stored = len(self._group["data"]), len(self._group["indices"])
        rows_ok = len(self._indptr) == self.n_cells + 1
        if not rows_ok or self._indptr[0] != 0 or np.any(np.diff(self._indptr) < 0) or {*stored} != {self._indptr[-1]}:
            raise InputError(
                self.uri,
                f"the row pointers of {self.matrix} must rise from 0 to the number of stored values",
                f"{len(self._indptr)} pointers to {self._indptr[-1]} for {self.n_cells} cells and {stored} values",
                _FIX,
            )

    def _elem(self, path: str) -> Any:  # noqa: ANN401  # whatever the file holds there
        """Read an element with anndata."""
        try:
            return read_elem(self._file[path])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(self.uri, f"{path} must be readable", _first_line(error), _FIX) from None


def _open_hdf5(uri: str) -> tuple[Any, h5py.File]:
    """Open an HDF5 file; returns the remote stream to close (None for local files) and the file."""
    if storage.stamp(uri).size == 0:
        raise InputError(uri, "the file must hold data", "an empty file", _FIX)
    fs, path = storage.filesystem(uri)
    stream = None if storage.is_local(uri) else fs.open(path, "rb")
    try:
        return stream, h5py.File(path if stream is None else stream, "r")
    except OSError as error:
        if stream is not None:
            stream.close()
        raise InputError(uri, "the file must be a whole HDF5 file", _first_line(error), _FIX) from None


def _kind(node: h5py.Dataset | h5py.Group) -> str:
    """Return the kind of an obs column."""
    if isinstance(node, h5py.Group):
        part = node.get("categories", node.get("values"))
        return _kind(part) if isinstance(part, h5py.Dataset | h5py.Group) else "text"
    return _KIND_OF_DTYPE.get(node.dtype.kind, "text")


def _strings(dataset: h5py.Dataset | h5py.Group, start: int, stop: int) -> pa.Array:
    """Read rows of a string column, or of numbers used as names."""
    if isinstance(dataset, h5py.Group):  # categorical or nullable strings
        return pa.array(pd.Series(read_elem(dataset)[start:stop]).astype("string"), pa.string(), from_pandas=True)
    values = dataset.asstr()[start:stop] if h5py.check_string_dtype(dataset.dtype) else dataset[start:stop].astype(str)
    return pa.array(values, pa.string())


def _first_line(error: Exception) -> str:
    return str(error).strip("'\"").split("\n", 1)[0] or type(error).__name__
