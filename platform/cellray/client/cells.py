"""From an AnnData to pieces that a request may hold. Cells are sent as their row numbers; their names stay here."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cellray.api.schema import LimitsInfo
from cellray.api.wire import CellTable
from cellray.errors import InputError, listing

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

ENSEMBL_COLUMN = "ensembl_id"
"""Var column that gene ids are taken from where there is one, as in tokenization."""

_RAW, _LAYERS = "raw", "layers/"
_BYTES_A_COUNT = 8
_BYTES_A_CELL = 64
_BODY_SHARE = 0.9
_DEFAULT_BODY_MB = 16.0


@dataclass(frozen=True)
class Chunk:
    """Some cells in a row.

    Attributes
    ----------
    start
        Row number of the first.
    table
        Their counts; ids are row numbers.
    """

    start: int
    table: CellTable

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.table)

    def part(self, first: int, stop: int) -> "Chunk":
        """Return some of the cells, with the genes they have."""
        table = self.table
        low, high = int(table.indptr[first]), int(table.indptr[stop])
        used_g = np.zeros(len(table.genes), bool)
        used_g[table.columns[low:high]] = True
        place_g = np.cumsum(used_g, dtype=np.int32) - 1
        genes = [table.genes[place] for place in np.flatnonzero(used_g).tolist()]
        columns, indptr = place_g[table.columns[low:high]], table.indptr[first : stop + 1] - low
        own = CellTable(table.ids[first:stop], genes, indptr, columns, table.counts[low:high])
        return Chunk(self.start + first, own)

    def halves(self) -> tuple["Chunk", "Chunk"]:
        """Return two chunks of half the cells."""
        middle = len(self) // 2
        return self.part(0, middle), self.part(middle, len(self))


@dataclass(frozen=True)
class Most:
    """What a request may hold.

    Attributes
    ----------
    cells, size, counts, genes
        Of one request; `size` is that of its body [bytes].
    """

    cells: int
    size: float = math.inf
    counts: float = math.inf
    genes: float = math.inf

    def holds(self, table: CellTable) -> bool:
        """Tell whether some cells are no more than that."""
        return (
            len(table) <= self.cells
            and len(table.counts) <= self.counts
            and len(table.genes) <= self.genes
            and size_of(table) <= self.size
        )


def most_of(limits: LimitsInfo | None, cells: int) -> Most:
    """Return what a request may hold.

    Of a model's queue it takes half at most: that much room the server waits for when it says when to ask again, while
    a request that needs all of the queue might find it never empty.

    Parameters
    ----------
    limits
        That the server tells; None: it does not.
    cells
        That are wanted in a request at most.
    """
    if limits is None:
        return Most(cells, _DEFAULT_BODY_MB * _BODY_SHARE * 1e6)
    queue = cells if limits.max_queued_cells is None else max(1, limits.max_queued_cells // 2)
    return Most(
        min(cells, limits.cells_per_request, queue),
        limits.body_mb * _BODY_SHARE * 1e6,
        limits.counts_per_request or math.inf,
        limits.genes_per_request or math.inf,
    )


class CellSource:
    """Raw counts of an AnnData, row by row.

    Parameters
    ----------
    adata
        In memory or backed by a file.
    matrix
        `X`, `raw` or `layers/NAME`: where the raw counts are.
    gene_ids
        Var column with the gene ids, or `index`; None: `ensembl_id` if there is one, else the index.

    Raises
    ------
    InputError
        It has no such matrix or column.
    """

    def __init__(self, adata: "AnnData", matrix: str = "X", gene_ids: str | None = None) -> None:
        self._x, var = _matrix_of(adata, matrix)
        if getattr(self._x, "format", None) == "csc" and hasattr(self._x, "tocsr"):
            self._x = self._x.tocsr()
        self.cell_ids = [str(name) for name in adata.obs_names]
        names = pa.array(_gene_names(var, gene_ids), pa.string()).dictionary_encode()
        self._genes: list[str] = names.dictionary.to_pylist()
        self._place_g = names.indices.to_numpy().astype(np.int32)
        """Column to gene: a gene may have several columns, whose counts the server sums."""

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.cell_ids)

    def check_names(self) -> None:
        """Refuse cells of one name, for tables whose rows are told apart by it.

        Raises
        ------
        InputError
            Some cells have the same name.
        """
        if twice := [name for name, times in Counter(self.cell_ids).items() if times > 1]:
            rule, fix = (
                "cells differ by name: rows of the table are told apart by it",
                "Call adata.obs_names_make_unique().",
            )
            raise InputError("obs_names", rule, f"more than once: {listing(twice)}", fix)

    def rows(self, start: int, stop: int) -> Chunk:
        """Read some cells; only genes they have are named."""
        block = _sparse(self._x[start:stop])
        ids = [str(row) for row in range(start, stop)]
        columns, indptr = self._place_g[block.indices], block.indptr.astype(np.int64)
        return Chunk(start, CellTable(ids, self._genes, indptr, columns, block.data)).part(0, stop - start)

    def chunks(self, most: Most) -> Iterator[Chunk]:
        """Read all cells in pieces that hold so much at most; one cell alone may be larger."""
        for start in range(0, len(self), most.cells):
            yield from _fitting(self.rows(start, min(start + most.cells, len(self))), most)


def size_of(table: CellTable) -> int:
    """Return about how many bytes cells take in the binary form."""
    genes = sum(len(gene) + 4 for gene in table.genes)
    return genes + _BYTES_A_CELL * len(table) + _BYTES_A_COUNT * len(table.columns)


def _fitting(chunk: Chunk, most: Most) -> Iterator[Chunk]:
    if len(chunk) <= 1 or most.holds(chunk.table):
        yield chunk
    else:
        for half in chunk.halves():
            yield from _fitting(half, most)


def _matrix_of(adata: "AnnData", matrix: str) -> tuple[Any, Any]:
    """Return a matrix and the table of its columns."""
    if matrix == _RAW and adata.raw is not None:
        return adata.raw.X, adata.raw.var
    if matrix == "X" and adata.X is not None:
        return adata.X, adata.var
    if matrix.startswith(_LAYERS) and matrix.removeprefix(_LAYERS) in adata.layers:
        return adata.layers[matrix.removeprefix(_LAYERS)], adata.var
    there = [_LAYERS + name for name in adata.layers]
    there += [name for name, found in (("X", adata.X), (_RAW, adata.raw)) if found is not None]
    raise InputError("matrix", f"one of {listing(there)}", repr(matrix), "Name the one with the raw counts.")


def _gene_names(var: Any, gene_ids: str | None) -> list[str]:  # noqa: ANN401  # a DataFrame
    if gene_ids is None:
        gene_ids = ENSEMBL_COLUMN if ENSEMBL_COLUMN in var.columns else "index"
    if gene_ids == "index":
        return [str(name) for name in var.index]
    if gene_ids not in var.columns:
        raise InputError("gene_ids", f"index, or one of {listing(var.columns)}", repr(gene_ids), "Name one of them.")
    return [str(name) for name in var[gene_ids].astype("string").fillna("")]


def _sparse(block: Any) -> "sparse.csr_matrix":  # noqa: ANN401  # an array of one of many kinds
    """Return rows in compressed form without zeros; what was given is not changed."""
    from scipy import sparse

    plain: Any = block if sparse.issparse(block) else np.asarray(block)
    found = sparse.csr_matrix(plain, copy=True)
    found.eliminate_zeros()
    return found
