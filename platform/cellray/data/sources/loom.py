"""Reads cell ranges of `.loom` files: a dense genes x cells matrix with row and column attributes.

Memory: a range of cells is read as a band of columns, dense, a bounded number of values at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

import h5py
import pandas as pd
import pyarrow as pa

from cellray.data.sources.anndata_store import FIX, kind_of, open_hdf5, readable, sound
from cellray.data.sources.contract import CountBlock
from cellray.data.sources.matrices import DenseRows
from cellray.errors import InputError, listing

_CELL_NAMES = ("CellID", "obs_names", "cell_names", "CellName")
_GENE_NAMES = ("var_names", "Gene", "gene_names", "Accession")


class LoomSource:
    """An open loom file; see `cellray.data.sources.contract.CountSource`. `X` is its main matrix."""

    left_out: Mapping[str, int] = MappingProxyType({})

    def __init__(self, uri: str, matrix: str, file: h5py.File, close: Callable[[], None]) -> None:
        self.uri, self.matrix = uri, matrix
        self._file, self._close = file, close
        path = "matrix" if matrix == "X" else matrix
        with sound(uri, "the file must be a whole loom file", close):
            if not {"matrix", "row_attrs", "col_attrs"} <= set(file):
                found = f"{listing(file)} at its top"
                raise InputError(uri, "a loom file holds matrix, row_attrs and col_attrs", found, FIX)
            if path not in file:
                raise InputError(uri, f"it must hold {matrix!r}", listing(self.matrices()), "Correct --matrix.")
            self._rows = DenseRows(file[path], transposed=True)
            self.n_cells, self.n_columns = self._rows.shape
            self._check_sides()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _check_sides(self) -> None:
        """Check that each attribute of one value a gene or cell has as many as the matrix."""
        for group, what, side in (("row_attrs", "gene", self.n_columns), ("col_attrs", "cell", self.n_cells)):
            for name, values in self._file[group].items():
                if values.ndim == 1 and len(values) != side:
                    found = f"{len(values):,} in {group}/{name} for {side:,}"
                    raise InputError(self.uri, f"{group} must have a value for each {what}", found, FIX)

    def matrices(self) -> list[str]:
        """Names of the matrices the file holds."""
        return ["X", *(f"layers/{name}" for name in self._file.get("layers", ()))]

    def var(self) -> pd.DataFrame:
        """Return the row attributes, indexed by the genes' names; `Accession` becomes `ensembl_id`."""
        with readable(self.uri, "row_attrs"):
            return self._var()

    def _var(self) -> pd.DataFrame:
        attributes = self._file["row_attrs"]
        columns = {
            name: _values(attributes[name], 0, self.n_columns) for name in attributes if attributes[name].ndim == 1
        }
        table = pd.DataFrame({name: values.to_pandas() for name, values in columns.items()})
        index = next((name for name in _GENE_NAMES if name in table), None)
        if "Accession" in table:
            table["ensembl_id"] = table["Accession"]
        return table if index is None else table.set_index(table[index].astype(str))

    def obs_kinds(self) -> dict[str, str]:
        """Name and kind of each column attribute that has one value a cell."""
        with readable(self.uri, "col_attrs"):
            attributes = self._file["col_attrs"]
            return {name: kind_of(attributes[name].dtype) for name in attributes if attributes[name].ndim == 1}

    def cell_names(self, start: int, stop: int) -> pa.Array:
        """Return the cells' names, or their numbers where there are none."""
        with readable(self.uri, "the cells' names"):
            attributes = self._file["col_attrs"]
            name = next((name for name in _CELL_NAMES if name in attributes), None)
            if name is None:
                return pa.array([str(i) for i in range(start, stop)], pa.string())
            return _values(attributes[name], start, stop).cast(pa.string())

    def obs(self, column: str, start: int, stop: int) -> pa.Array:
        """Return a column attribute of a range of cells."""
        with readable(self.uri, f"column attribute {column!r}"):
            return _values(self._file["col_attrs"][column], start, stop)

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells, at most `cells` at a time."""
        with readable(self.uri, f"cells {start}-{stop}"):
            yield from self._rows.blocks(start, stop, cells)


def open_loom(uri: str, matrix: str) -> LoomSource:
    """Open a loom file."""
    return LoomSource(uri, matrix, *open_hdf5(uri))


def _values(dataset: Any, start: int, stop: int) -> pa.Array:  # noqa: ANN401
    values = dataset[start:stop]
    if values.dtype.kind in "OS":
        return pa.array([v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()], pa.string())
    return pa.array(values, from_pandas=True)
