"""Reads cell ranges of Cell Ranger output: feature-barcode `.h5` files and `matrix.mtx` folders.

In both the values of a cell lie together. The `.h5` is read by range; a text matrix cannot be, so a folder is parsed
once an opening, in pieces, and its values are held in memory (12 bytes each, at most `MAX_TEXT_VALUES`).
"""

from collections.abc import Callable, Iterator
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa

from cellray import storage
from cellray.data.sources.anndata_store import BROKEN, FIX, first_line, open_hdf5, readable
from cellray.data.sources.contract import CountBlock
from cellray.data.sources.matrices import CsrRows
from cellray.errors import InputError, StorageError, listing

MAX_TEXT_VALUES = 60_000_000
"""Most stored values of a text matrix (720 MB in memory)."""
EXPRESSION = "Gene Expression"
_FILES = {"matrix": ("matrix.mtx.gz", "matrix.mtx"), "barcodes": ("barcodes.tsv.gz", "barcodes.tsv")}
_FEATURES = ("features.tsv.gz", "features.tsv", "genes.tsv")
_LINES = 1_000_000


class TenxSource:
    """An opened Cell Ranger matrix; see `cellray.data.sources.contract.CountSource`.

    Features that are not genes (antibodies, guides) stay columns without a gene id.
    """

    def __init__(
        self, uri: str, rows: CsrRows, var: pd.DataFrame, barcodes: list[str], close: Callable[[], None]
    ) -> None:
        self.uri, self.matrix = uri, "X"
        self._rows, self._var, self._barcodes, self._close = rows, var, barcodes, close
        self.n_cells, self.n_columns = rows.shape
        if (len(barcodes), len(var)) != rows.shape:
            close()
            found = f"{len(barcodes)} barcodes and {len(var)} features for {rows.shape}"
            raise InputError(uri, "barcodes and features must match the matrix", found, FIX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def matrices(self) -> list[str]:
        """Return the only matrix there is."""
        return ["X"]

    def var(self) -> pd.DataFrame:
        """Return the features: index = symbol, `ensembl_id` where the feature is a gene, `feature_type`."""
        return self._var

    def obs_kinds(self) -> dict[str, str]:
        """Return no columns: Cell Ranger's matrices know barcodes only."""
        return {}

    def cell_names(self, start: int, stop: int) -> pa.Array:
        """Return the barcodes."""
        return pa.array(self._barcodes[start:stop], pa.string())

    def obs(self, column: str, start: int, stop: int) -> pa.Array:  # the contract's signature
        """Refuse: there are no obs columns."""
        raise InputError(self.uri, "a Cell Ranger matrix has no obs columns", repr(column), "Leave --obs-columns out.")

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells, at most `cells` at a time."""
        with readable(self.uri, f"cells {start}-{stop}"):
            yield from self._rows.blocks(start, stop, cells)


def open_tenx_h5(uri: str, matrix: str) -> TenxSource:
    """Open a Cell Ranger feature-barcode `.h5` file (version 3 or later)."""
    _only_x(uri, matrix)
    file, close = open_hdf5(uri)
    try:
        group = file["matrix"]
        n_features, n_cells = (int(n) for n in group["shape"][:])
        rows = CsrRows(group["data"], group["indices"], group["indptr"][:].astype(np.int64), (n_cells, n_features))
        features = group["features"]
        ids, names, kinds = (_text(features[name]) for name in ("id", "name", "feature_type"))
        return TenxSource(uri, rows, _features(ids, names, kinds), _text(group["barcodes"]), close)
    except (InputError, StorageError):
        close()
        raise
    except BROKEN as error:
        close()
        raise InputError(
            uri, "it must be a feature-barcode matrix of Cell Ranger 3 or later", first_line(error), FIX
        ) from None


def open_tenx_mtx(uri: str, matrix: str) -> TenxSource:
    """Open a folder with `matrix.mtx[.gz]`, `barcodes.tsv[.gz]` and `features.tsv[.gz]` (or `genes.tsv`).

    The folder is named by its matrix file.
    """
    _only_x(uri, matrix)
    folder = uri.rsplit("/", 1)[0]
    with readable(uri, "the folder's tables and matrix"):
        barcodes = [line[0] for line in _table(folder, _FILES["barcodes"])]
        features = _table(folder, _FEATURES)
        kinds = [line[2] if len(line) > 2 else EXPRESSION for line in features]
        names = [line[1] if len(line) > 1 else line[0] for line in features]
        var = _features([line[0] for line in features], names, kinds)
        return TenxSource(uri, _parse(uri), var, barcodes, lambda: None)


def _parse(uri: str) -> CsrRows:
    """Parse a Matrix Market file whose columns are cells."""
    counts, columns, cells = [], [], []
    with _lines(uri) as stream:
        header = stream.readline()
        if not header.startswith("%%MatrixMarket matrix coordinate") or "general" not in header:
            raise InputError(uri, "it must be a general coordinate Matrix Market file", repr(header[:60]), FIX)
        line = stream.readline()
        while line.startswith("%"):
            line = stream.readline()
        n_features, n_cells, stored = (int(n) for n in line.split())
        if stored > MAX_TEXT_VALUES:
            fix = "Use Cell Ranger's .h5 file, or convert the folder with scanpy.read_10x_mtx(...).write_h5ad(...)."
            raise InputError(uri, f"a text matrix may hold {MAX_TEXT_VALUES:,} values", f"{stored:,}", fix)
        reader = pd.read_csv(stream, sep=r"\s+", header=None, names=["g", "c", "n"], dtype=np.float64, chunksize=_LINES)
        try:
            for chunk in reader:
                columns.append(chunk["g"].to_numpy().astype(np.int32) - 1)
                cells.append(chunk["c"].to_numpy().astype(np.int64) - 1)
                counts.append(chunk["n"].to_numpy().astype(np.float32))
        except (ValueError, EOFError, OSError) as error:
            raise InputError(uri, "the matrix must be whole", first_line(error), FIX) from None
    cell = np.concatenate(cells) if cells else np.empty(0, np.int64)
    if len(cell) != stored or np.any(np.diff(cell) < 0) or (stored and not 0 <= cell[0] <= cell[-1] < n_cells):
        found = f"{len(cell):,} entries of {stored:,}, cells in 1..{n_cells:,}"
        raise InputError(uri, "the entries must be whole and in the order of the cells", found, FIX)
    indptr = np.searchsorted(cell, np.arange(n_cells + 1))
    return CsrRows(np.concatenate(counts), np.concatenate(columns), indptr, (n_cells, n_features))


def _lines(uri: str) -> Any:  # noqa: ANN401  # a text stream
    fs, path = storage.filesystem(uri)
    return fs.open(path, "rt", compression="gzip" if uri.endswith(".gz") else None)


def _table(folder: str, names: tuple[str, ...]) -> list[list[str]]:
    """Read the first of several tab-separated files that is there."""
    for name in names:
        uri = storage.join(folder, name)
        if storage.exists(uri):
            with _lines(uri) as stream:
                return [line.rstrip("\r\n").split("\t") for line in stream]
    raise InputError(folder, f"the folder must hold one of {listing(names)}", "none", "Copy the whole folder.")


def _features(ids: list[str], names: list[str], kinds: list[str]) -> pd.DataFrame:
    gene = [i if kind == EXPRESSION else "" for i, kind in zip(ids, kinds, strict=True)]
    return pd.DataFrame({"ensembl_id": gene, "feature_type": kinds}, index=pd.Index(names))


def _text(dataset: h5py.Dataset) -> list[str]:
    return [v.decode() for v in dataset[:].tolist()]


def _only_x(uri: str, matrix: str) -> None:
    if matrix != "X":
        raise InputError(uri, "a Cell Ranger matrix has one matrix, X", repr(matrix), "Leave --matrix out.")
