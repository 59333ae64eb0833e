"""What a file of counts must offer, and which reader opens which file.

A new format is one class that fulfils `CountSource` and one line in `FORMATS`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cellray.errors import InputError, listing


@dataclass(frozen=True)
class CountBlock:
    """Rows `start .. start + n_cells` of a counts matrix in compressed sparse row form.

    Attributes
    ----------
    counts, columns, indptr
        The CSR arrays; `indptr` begins at 0. Not yet checked.
    n_columns
        Columns of the whole matrix.
    start
        Row of the matrix at which the block begins.
    """

    counts: NDArray[Any]
    columns: NDArray[np.integer]
    indptr: NDArray[np.integer]
    n_columns: int
    start: int

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1


class CountSource(Protocol):
    """An open file of cells x genes counts. Files are never written to."""

    uri: str
    matrix: str
    n_cells: int
    n_columns: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def matrices(self) -> list[str]:
        """Names of the count matrices the file holds, as `X`, `raw`, `layers/counts`."""
        ...

    def var(self) -> pd.DataFrame:
        """Return the table of columns (genes), indexed by their names."""
        ...

    def obs_kinds(self) -> dict[str, str]:
        """Name and kind (see `cellray.schema.OBS_TYPES`) of each obs column."""
        ...

    def cell_names(self, start: int, stop: int) -> pa.Array:
        """Return the cells' own names, as strings."""
        ...

    def obs(self, column: str, start: int, stop: int) -> pa.Array:
        """Return rows of one obs column; missing values are null."""
        ...

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield rows `start .. stop` of the matrix, at most `cells` at a time."""
        ...


FORMATS = {
    ".h5ad": "cellray.data.sources.anndata_store:open_h5ad",
    ".zarr": "cellray.data.sources.anndata_store:open_zarr",
    ".loom": "cellray.data.sources.loom:open_loom",
    ".h5": "cellray.data.sources.tenx:open_tenx_h5",
    "matrix.mtx.gz": "cellray.data.sources.tenx:open_tenx_mtx",
    "matrix.mtx": "cellray.data.sources.tenx:open_tenx_mtx",
}
"""Ending of a file's name to the function (uri, matrix) that opens it, imported when needed."""


def format_of(uri: str) -> str:
    """Return the format of a file, told by its ending.

    Raises
    ------
    InputError
        No reader knows that ending.
    """
    return _ending(uri).strip(".")


def _ending(uri: str) -> str:
    """Return the key of `FORMATS` that a name ends in."""
    for ending in FORMATS:
        if uri.lower().rstrip("/").endswith(ending):
            return ending
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    raise InputError(uri, f"a file of counts ends in one of {listing(FORMATS)}", repr(name), "Convert it with anndata.")


def open_source(uri: str, matrix: str = "X") -> CountSource:
    """Open a file of counts.

    Parameters
    ----------
    uri
        Local path or any fsspec URI.
    matrix
        `X`, `raw` or `layers/NAME`.

    Raises
    ------
    InputError
        The format is unknown, the file is unreadable, or it holds no such matrix.
    """
    module, function = FORMATS[_ending(uri)].split(":")
    source: CountSource = getattr(import_module(module), function)(uri, matrix)
    return source


def require_obs(source: CountSource, columns: Sequence[str]) -> dict[str, str]:
    """Return the kinds of the wanted obs columns.

    Raises
    ------
    InputError
        The file lacks one of them.
    """
    kinds = source.obs_kinds()
    missing = [name for name in columns if name not in kinds]
    if missing:
        raise InputError(
            source.uri,
            "every obs column asked for must exist",
            f"no {listing(missing)}; the file has {listing(kinds, limit=30)}",
            "Correct the name; columns that only some files have may stay empty in the others with --missing-obs null.",
        )
    return {name: kinds[name] for name in columns}
