"""Reads cell ranges of Cell Ranger's feature-barcode matrices: `.h5` files here, folders of text in `tenx_text`.

In both the values of a cell lie together. What a matrix holds beside genes (antibodies, guides, peaks) is counted and
left out: in a cell's total it would drown the transcripts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import pandas as pd
import pyarrow as pa

from cellray.data.sources.anndata_store import FIX, open_hdf5, readable, sound
from cellray.data.sources.contract import CountBlock
from cellray.data.sources.matrices import CsrRows, MatrixName, MatrixRows, SomeColumns
from cellray.errors import InputError, listing

EXPRESSION = "Gene Expression"


class TenxSource:
    """An opened Cell Ranger matrix; see `cellray.data.sources.contract.CountSource`.

    Parameters
    ----------
    uri
        What to call it.
    rows
        The matrix with all its features.
    features
        Their table: index = symbol, `ensembl_id`, `feature_type`.
    barcodes
        The cells' names; slices of it are read when asked for.
    close
        Closes the file.

    Raises
    ------
    InputError
        The sides of matrix and tables differ, or no feature is a gene.
    """

    def __init__(
        self,
        uri: str,
        rows: MatrixRows,
        features: pd.DataFrame,
        barcodes: Any,  # noqa: ANN401  # an array of h5py or numpy
        close: Callable[[], None],
    ) -> None:
        self.uri, self.matrix = uri, "X"
        self._barcodes, self._close = barcodes, close
        if (barcodes.shape[0], len(features)) != rows.shape:
            found = f"{barcodes.shape[0]} barcodes and {len(features)} features for {rows.shape}"
            raise InputError(uri, "barcodes and features must match the matrix", found, FIX)
        gene = (features["feature_type"] == EXPRESSION).to_numpy()
        self.left_out: Mapping[str, int] = dict(sorted(Counter(features["feature_type"][~gene]).items()))
        if len(gene) and not gene.any():
            found = f"types {listing(self.left_out)}"
            raise InputError(uri, f"some feature must be of type {EXPRESSION!r}", found, "Leave the file out.")
        self._rows = SomeColumns(rows, gene, MatrixName(uri, "X")) if self.left_out else rows
        self._var = features[gene]
        self.n_cells, self.n_columns = self._rows.shape

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def matrices(self) -> list[str]:
        """Return the only matrix there is."""
        return ["X"]

    def var(self) -> pd.DataFrame:
        """Return the genes: index = symbol, `ensembl_id`, `feature_type`."""
        return self._var

    def obs_kinds(self) -> dict[str, str]:
        """Return no columns: Cell Ranger's matrices know barcodes only."""
        return {}

    def cell_names(self, start: int, stop: int) -> pa.Array:
        """Return the barcodes."""
        with readable(self.uri, "the barcodes"):
            return pa.array(text(self._barcodes[start:stop]), pa.string())

    def obs(self, column: str, start: int, stop: int) -> pa.Array:  # the contract's signature
        """Refuse: there are no obs columns."""
        raise InputError(self.uri, "a Cell Ranger matrix has no obs columns", repr(column), "Leave --obs-columns out.")

    def blocks(self, start: int, stop: int, cells: int) -> Iterator[CountBlock]:
        """Yield cells, at most `cells` at a time."""
        with readable(self.uri, f"cells {start}-{stop}"):
            yield from self._rows.blocks(start, stop, cells)


def open_tenx_h5(uri: str, matrix: str) -> TenxSource:
    """Open a Cell Ranger feature-barcode `.h5` file (version 3 or later)."""
    require_x(uri, matrix)
    file, close = open_hdf5(uri)
    with sound(uri, "it must be a feature-barcode matrix of Cell Ranger 3 or later", close):
        group = file["matrix"]
        n_features, n_cells = (int(n) for n in group["shape"][:])
        name = MatrixName(uri, "X")
        rows = CsrRows(name, group["data"], group["indices"], group["indptr"], (n_cells, n_features))
        ids, names, kinds = (text(group["features"][column][:]) for column in ("id", "name", "feature_type"))
        return TenxSource(uri, rows, feature_table(ids, names, kinds), group["barcodes"], close)


def feature_table(ids: Sequence[str], names: Sequence[str], kinds: Sequence[str]) -> pd.DataFrame:
    """Return the table of features; raises ValueError where the columns differ in length."""
    return pd.DataFrame(
        {"ensembl_id": list(ids), "feature_type": list(kinds)}, index=pd.Index(list(names), dtype=object)
    )


def text(values: Any) -> list[str]:  # noqa: ANN401  # bytes of HDF5, or strings
    """Return an array of bytes or strings as strings."""
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]


def require_x(uri: str, matrix: str) -> None:
    """Refuse any other matrix than the one there is."""
    if matrix != "X":
        raise InputError(uri, "a Cell Ranger matrix has one matrix, X", repr(matrix), "Leave --matrix out.")
