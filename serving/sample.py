"""Cells with what their file tells of them (obs columns, names of genes), in the form that requests take.

For clients that cannot read an .h5ad themselves, as the web page. Knows files and numpy; models it does not know.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from cellray.api.schema import CELL_ID_LENGTH, CellsResponse
from cellray.api.wire import CellTable
from cellray.data.sources.contract import CountSource, open_source
from cellray.errors import InputError
from serving.answers import TooMuchError
from serving.handover import Sample
from serving.json_body import listed, with_field
from serving.upload import SUBJECT, Upload, checked_size, drawn, read_cells

SYMBOL_COLUMNS = ("gene_name", "gene_symbol", "gene_symbols", "feature_name", "symbol")
"""Var columns in which files keep names that people know; the first that is there is taken."""
_MOST_COLUMNS = 64
_MOST_TEXT = 200
_EXACT = 2.0**53
_BYTES_A_COUNT = 12


def read_sample(upload: Upload) -> Sample | TooMuchError:
    """Read the cells of a file, or some, with their obs; runs in the child.

    Raises
    ------
    InputError
        It is no sound .h5ad, or lacks the matrix or the column.
    """
    with open_source(upload.path, upload.matrix) as source:
        row_n = drawn(source, upload)
        found = checked_size(source, upload) or read_cells(source, upload, row_n)
        if isinstance(found, TooMuchError):
            return found
        own = pa.array(row_n)
        kinds = list(source.obs_kinds())
        obs = {name: _plain(source.obs(name, 0, source.n_cells).take(own)) for name in kinds[:_MOST_COLUMNS]}
        sample = Sample(found, obs, _symbols(source), max(0, len(kinds) - _MOST_COLUMNS), source.n_cells)
    return _without_repeats(sample)


def cells_body(sample: Sample) -> bytes:
    """Return the JSON answer with cells.

    Raises
    ------
    InputError
        A count is no finite number, or a cell's name is too long.
    """
    cells = sample.cells
    if not np.isfinite(cells.counts).all():
        raise InputError(
            SUBJECT, "counts must be finite numbers", "NaN or infinity", "Choose the matrix of raw counts."
        )
    if max(map(len, cells.ids)) > CELL_ID_LENGTH:
        raise InputError(SUBJECT, f"a cell's name may have {CELL_ID_LENGTH} characters", "a longer one", "Shorten it.")
    whole = bool((np.abs(cells.counts) < _EXACT).all() and (cells.counts == np.rint(cells.counts)).all())
    counts, columns = cells.counts.astype(np.int64) if whole else cells.counts, cells.columns
    rows = (
        {"id": name, "indices": columns[start:stop].tolist(), "counts": counts[start:stop].tolist()}
        for name, (start, stop) in zip(cells.ids, pairwise(cells.indptr.tolist()), strict=True)
    )
    symbols = None if sample.symbols is None else list(sample.symbols)
    answer = CellsResponse.model_construct(
        about=sample.about,
        genes=list(cells.genes),
        symbols=symbols,
        cells=[],
        obs=sample.obs,
        obs_left_out=sample.left_out,
    )
    return with_field(answer, "cells", listed([row] for row in rows))


def json_megabytes(cells: CellTable) -> float:
    """Return about how large the JSON answer with these cells is [MB]."""
    return _BYTES_A_COUNT * len(cells.counts) / 1e6


def _plain(column: pa.Array) -> list[Any]:
    """Return a column as values that JSON has."""
    kind = column.type
    if pa.types.is_floating(kind):
        return [value if value is not None and np.isfinite(value) else None for value in column.to_pylist()]
    if pa.types.is_integer(kind):
        return list(column.to_pylist())
    return [None if value is None else _text(value) for value in column.to_pylist()]


def _text(value: Any) -> str:  # noqa: ANN401  # whatever a file holds
    return (str(value).lower() if isinstance(value, bool) else str(value))[:_MOST_TEXT]


def _symbols(source: CountSource) -> list[str] | None:
    var = source.var()
    name = next((name for name in SYMBOL_COLUMNS if name in var.columns), None)
    return None if name is None else [str(each)[:_MOST_TEXT] for each in var[name].astype("string").fillna("")]


def _without_repeats(sample: Sample) -> Sample:
    """Sum the columns of one gene, since a request names each gene once."""
    cells, place = sample.cells, dict[str, int]()
    of_column = np.array([place.setdefault(gene, len(place)) for gene in cells.genes], np.int32)
    if len(place) == len(cells.genes):
        return sample
    columns = of_column[cells.columns]
    x_ng = sparse.csr_matrix((cells.counts, columns, cells.indptr), (len(cells), len(place)))
    x_ng.sum_duplicates()
    summed = CellTable(cells.ids, list(place), x_ng.indptr.astype(np.int64), x_ng.indices.astype(np.int32), x_ng.data)
    first = [int(i) for i in np.unique(of_column, return_index=True)[1]]
    symbols = None if sample.symbols is None else [sample.symbols[i] for i in first]
    return replace(sample, cells=summed, symbols=symbols)
