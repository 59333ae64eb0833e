"""What a file of counts must offer, and which reader opens which file.

A new format is one class that fulfils `CountSource` and one line in `FORMATS`; if it is several files, also one in
`STAMPS`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cellray import storage
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


class MatrixHolder(Protocol):
    """What messages about counts name: where they are, which matrix it is, and which others there are."""

    uri: str
    matrix: str

    def matrices(self) -> list[str]:
        """Names of the count matrices the file holds, as `X`, `raw`, `layers/counts`."""
        ...


class CountSource(MatrixHolder, Protocol):
    """An open file of cells x genes counts. Files are never written to.

    Attributes
    ----------
    n_cells, n_columns
        Sides of the matrix that is shown; `var` has a row for each column.
    left_out
        Features of the file that are no genes, and so no columns here: how many of each type.
    """

    n_cells: int
    n_columns: int

    @property
    def left_out(self) -> Mapping[str, int]: ...  # noqa: D102

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

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
    "matrix.mtx.gz": "cellray.data.sources.tenx_text:open_tenx_mtx",
    "matrix.mtx": "cellray.data.sources.tenx_text:open_tenx_mtx",
}
"""Ending of a file's name to the function (uri, matrix) that opens it, imported when needed."""

STAMPS = dict.fromkeys(("matrix.mtx.gz", "matrix.mtx"), "cellray.data.sources.tenx_text:stamp")
"""Ending of a name that stands for several files to the function (uri) that stamps them all."""


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


def stamp_of(uri: str) -> storage.FileStamp:
    """Return what tells one version of a source from another: of all its files, where it is several.

    Raises
    ------
    InputError
        A file is missing.
    """
    for ending, function in STAMPS.items():
        if uri.lower().endswith(ending):
            found: storage.FileStamp = _imported(function)(uri)
            return found
    return storage.stamp(uri)


def left_out_warning(source: CountSource) -> tuple[str, ...]:
    """Return a warning where a file holds features that are no genes."""
    if not source.left_out:
        return ()
    types = ", ".join(f"{n:,} {kind!r}" for kind, n in source.left_out.items())
    return (f"{sum(source.left_out.values()):,} features that are no genes are left out ({types})",)


def _imported(name: str) -> Any:  # noqa: ANN401  # a function
    module, function = name.split(":")
    return getattr(import_module(module), function)


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
    source: CountSource = _imported(FORMATS[_ending(uri)])(uri, matrix)
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
