"""Reads cell ranges of Cell Ranger's folders of text: `matrix.mtx[.gz]` with its tables of barcodes and features.

A folder is named by its matrix file. What stands before `matrix.mtx` in its name (as in `GSM1_matrix.mtx.gz`) stands
before the tables' names too. Text cannot be read by range: the matrix is parsed once an opening, when cells are first
asked for, and held in memory (12 bytes a value, 20 while one that is not in the order of the cells is sorted).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray import storage
from cellray.data.sources.anndata_store import FIX, readable
from cellray.data.sources.contract import CountBlock
from cellray.data.sources.matrices import CsrRows, MatrixName, count_rows, scatter
from cellray.data.sources.tenx import EXPRESSION, TenxSource, feature_table, require_x
from cellray.errors import InputError, listing

MAX_TEXT_VALUES = 60_000_000
"""Most stored values of a text matrix (720 MB in memory)."""
MAX_TABLE_LINES = 50_000_000
"""Most barcodes, and most features."""
MAX_TABLE_BYTES = 2 << 30
"""Most bytes of a table, inflated."""
_MAX_LINE = 1 << 16
_LINES = 1_000_000

_MATRIX = ("matrix.mtx.gz", "matrix.mtx")
_BARCODES = ("barcodes.tsv.gz", "barcodes.tsv")
_FEATURES = ("features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv")


def open_tenx_mtx(uri: str, matrix: str) -> TenxSource:
    """Open a folder with `matrix.mtx[.gz]`, `barcodes.tsv[.gz]` and `features.tsv[.gz]` (or `genes.tsv[.gz]`).

    Of the matrix only the header is read.
    """
    require_x(uri, matrix)
    with readable(uri, "the folder's tables and matrix"):
        rows = TextRows(uri)
        barcodes = [line[0] for line in _table(_beside(uri, _BARCODES), rows.shape[0])]
        features = list(_table(_beside(uri, _FEATURES), rows.shape[1]))
        kinds = [(line[2] if len(line) > 2 else "") or EXPRESSION for line in features]
        names = [line[1] if len(line) > 1 else line[0] for line in features]
        table = feature_table([line[0] for line in features], names, kinds)
        return TenxSource(uri, rows, table, np.array(barcodes, object), lambda: None)


def stamp(uri: str) -> storage.FileStamp:
    """Return one stamp for the matrix and its tables.

    Raises
    ------
    InputError
        One of them is missing.
    """
    stamps = [(name, storage.stamp(name)) for name in (uri, _beside(uri, _BARCODES), _beside(uri, _FEATURES))]
    parts = [[name.rsplit("/", 1)[-1], each.size, each.version] for name, each in stamps]
    return storage.FileStamp(sum(each.size for _, each in stamps), storage.sha256_json(parts))


class TextRows:
    """A Matrix Market file whose columns are cells, parsed when it is first read; see `MatrixRows`.

    Raises
    ------
    InputError
        The header is none, or declares more values than may be held.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._parsed: CsrRows | None = None
        with _lines(uri) as stream:
            n_features, n_cells, self._stored = _header(uri, stream)
        self.shape = n_cells, n_features

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells, at most `cells` at a time."""
        if self._parsed is None:
            self._parsed = self._parse()
        yield from self._parsed.blocks(start, stop, cells)

    def _parse(self) -> CsrRows:
        """Parse the matrix and put its values in the order of the cells, where they are not."""
        cell, column = np.empty(self._stored, np.int32), np.empty(self._stored, np.int32)
        count = np.empty(self._stored, np.float32)
        n = 0
        with readable(self._uri, "the matrix"):
            for cells, columns, counts in self._chunks():
                if n + len(cells) > self._stored:
                    raise self._not_whole("more")
                for whole, chunk in ((cell, cells), (column, columns), (count, counts)):
                    whole[n : n + len(chunk)] = chunk
                n += len(cells)
        if n < self._stored:
            raise self._not_whole(f"{n:,}")
        indptr = np.zeros(self.shape[0] + 1, np.int64)
        count_rows(cell, indptr[1:])
        np.cumsum(indptr, out=indptr)
        if np.any(cell[1:] < cell[:-1]):
            columns, counts = np.empty_like(column), np.empty_like(count)
            whole = scatter(cell, column, count, 0, indptr[:-1].copy(), indptr, columns, counts)
            assert whole, "the cells were counted"
            column, count = columns, counts
        return CsrRows(MatrixName(self._uri, "X"), count, column, indptr, self.shape)

    def _chunks(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]]:
        """Yield cells and columns, both from 0, and counts."""
        with _lines(self._uri) as stream:
            _header(self._uri, stream)
            names = ["feature", "cell", "count"]
            try:
                reader = pd.read_csv(stream, sep=r"\s+", header=None, names=names, dtype=np.float64, chunksize=_LINES)
            except pd.errors.EmptyDataError:
                return
            for chunk in reader:
                feature, cell, count = (chunk[name].to_numpy() for name in names)
                sound = _numbers_to(self.shape[1], feature) & _numbers_to(self.shape[0], cell) & ~np.isnan(count)
                if not sound.all():
                    line = [f"{values[~sound][0]:g}" for values in (feature, cell, count)]
                    found = f"{' '.join(line)} in a matrix of {self.shape[1]:,} x {self.shape[0]:,}"
                    raise InputError(self._uri, "each entry must be a feature, a cell and a count", found, FIX)
                yield cell.astype(np.int32) - 1, feature.astype(np.int32) - 1, count.astype(np.float32)

    def _not_whole(self, found: str) -> InputError:
        return InputError(self._uri, f"the matrix must be whole: {self._stored:,} entries", found, FIX)


def _numbers_to(side: int, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which values are whole numbers from 1 to `side`."""
    sound: NDArray[np.bool_] = (values >= 1) & (values <= side) & (values == np.floor(values))
    return sound


def _header(uri: str, stream: Any) -> tuple[int, int, int]:  # noqa: ANN401  # a text stream
    """Read the lines above the entries; return the numbers of features, cells and entries."""
    header = stream.readline(_MAX_LINE)
    if not header.startswith("%%MatrixMarket matrix coordinate") or "general" not in header:
        raise InputError(uri, "it must be a general coordinate Matrix Market file", repr(header[:60]), FIX)
    line = stream.readline(_MAX_LINE)
    while line.startswith("%"):
        line = stream.readline(_MAX_LINE)
    n_features, n_cells, stored = (int(n) for n in line.split())
    if min(n_features, n_cells, stored) < 0 or max(n_features, n_cells) > MAX_TABLE_LINES:
        found = f"{n_features:,} x {n_cells:,}"
        raise InputError(uri, f"a text matrix may have sides up to {MAX_TABLE_LINES:,}", found, FIX)
    if stored > MAX_TEXT_VALUES:
        fix = "Use Cell Ranger's .h5 file, or convert the folder with scanpy.read_10x_mtx(...).write_h5ad(...)."
        raise InputError(uri, f"a text matrix may hold {MAX_TEXT_VALUES:,} values", f"{stored:,}", fix)
    return n_features, n_cells, stored


def _beside(uri: str, names: tuple[str, ...]) -> str:
    """Return the first of several files that lies beside a matrix, with the same prefix."""
    folder, _, name = uri.rpartition("/")
    ending = next(ending for ending in _MATRIX if name.lower().endswith(ending))
    names = tuple(name[: -len(ending)] + each for each in names)
    found = next((each for each in names if storage.exists(storage.join(folder, each))), None)
    if found is None:
        raise InputError(uri, f"beside it must lie one of {listing(names)}", "none", "Copy the whole folder.")
    return storage.join(folder, found)


def _table(uri: str, most: int) -> Iterator[list[str]]:
    """Yield the fields of the lines of a tab-separated file; of more than `most` lines, one more."""
    size = 0
    with _lines(uri) as stream:
        for _ in range(most + 1):
            line = stream.readline(_MAX_LINE)
            size += len(line)
            if not line:
                return
            if len(line) == _MAX_LINE or size > MAX_TABLE_BYTES:
                found = f"a line of {_MAX_LINE:,} or more" if len(line) == _MAX_LINE else "more"
                raise InputError(uri, f"a table may have {MAX_TABLE_BYTES:,} bytes", found, "This is no such table.")
            yield line.rstrip("\r\n").split("\t")


def _lines(uri: str) -> Any:  # noqa: ANN401  # a text stream
    fs, path = storage.filesystem(uri)
    return fs.open(path, "rt", compression="gzip" if uri.lower().endswith(".gz") else None)
