"""First stage of quality control: reads row ranges of counts and writes what the rules need of each cell.

Judges nothing: a data set's bounds are known only when all its cells have been read.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cellray import schema
from cellray.data.cells import filter_pass, marked, names_in
from cellray.data.checks import check_block, sum_duplicates
from cellray.data.parts import PartWriter, Unit
from cellray.data.quality.genes import CountedGenes, GeneChoice, counted_genes
from cellray.data.quality.mitochondrial import MitochondrialColumns, find_mitochondrial
from cellray.data.quality.rules import CellMetrics
from cellray.data.sources.contract import CountBlock, CountSource, open_source, stamp_of
from cellray.errors import InputError

READ_CELLS = 1024
"""Cells read at a time: what bounds a worker's memory."""
MISSING = "(missing)"
"""Data set of cells whose `--dataset-column` is empty."""

FILE_PASS, IS_MALIGNANT = "file_pass", "malignant"
COUNTED = {
    "no_dataset": f"no value in --dataset-column; they form the data set {MISSING!r}",
    "not_marked": "no value in --malignant-column; they count as not marked",
}
"""Counter of a part to what its cells lack."""

METRICS_SCHEMA = pa.schema(
    [
        pa.field(schema.CELL_ID, pa.string(), nullable=False),
        pa.field(schema.SOURCE_ROW, pa.int64(), nullable=False),
        pa.field(schema.DATASET, pa.string(), nullable=False),
        pa.field(schema.N_COUNTS, pa.float64(), nullable=False),
        pa.field(schema.MITO_COUNTS, pa.float64()),
        pa.field(schema.N_GENES, pa.int32(), nullable=False),
        pa.field(FILE_PASS, pa.bool_(), nullable=False),
        pa.field(IS_MALIGNANT, pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class MetricsOptions:
    """What a worker needs beside its unit; see `cellray.data.quality.run.QualityConfig`."""

    genes: GeneChoice
    matrix: str
    gene_ids: str | None
    mito_genes: tuple[str, ...]
    dataset_column: str | None
    malignant_column: str | None
    malignant_values: tuple[str, ...]


class MetricsWorker:
    """Reads one row range and writes its cells' metrics."""

    def __init__(self, options: MetricsOptions) -> None:
        self._options = options

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        require_version(unit.uri, unit.version)
        part = open_part(METRICS_SCHEMA)
        with open_source(unit.uri, self._options.matrix) as source:
            mito = find_mitochondrial(source.var(), self._options.mito_genes)
            options = self._options
            genes = counted_genes(source, unit.version, options.genes, options.matrix, options.gene_ids)
            for block in source.blocks(unit.start, unit.stop, READ_CELLS):
                self._measure(source, block, mito, genes, part)

    def _measure(
        self, source: CountSource, block: CountBlock, mito: MitochondrialColumns, genes: CountedGenes, part: PartWriter
    ) -> None:
        """Measure one block and write it."""
        totals = check_block(block, source)
        mito_counts = mitochondrial_counts(block, mito.mask_g)
        n_genes = detected_genes(block, genes, canonical=totals.canonical)
        options, (start, stop) = self._options, (block.start, block.start + block.n_cells)
        malignant, unmarked = np.zeros(block.n_cells, bool), 0
        if options.malignant_column is not None:
            malignant, unmarked = marked(source, options.malignant_column, options.malignant_values, start, stop)
        dataset = pa.array([source.uri] * block.n_cells)
        if options.dataset_column is not None:
            dataset = names_in(source, options.dataset_column, start, stop)
        part.counts["no_dataset"] += dataset.null_count
        part.counts["not_marked"] += unmarked
        part.counts["malignant"] += int(malignant.sum())
        columns = [
            source.cell_names(start, stop),
            pa.array(np.arange(start, stop)),
            dataset.fill_null(MISSING),
            pa.array(totals.n_counts),
            pa.array(mito_counts, mask=None if mito.n_genes else np.ones(block.n_cells, bool)),
            pa.array(n_genes),
            pa.array(filter_pass(source, start, stop)),
            pa.array(malignant),
        ]
        part.write(pa.table(columns, schema=METRICS_SCHEMA))


def detected_genes(block: CountBlock, genes: CountedGenes, *, canonical: bool) -> NDArray[np.int32]:
    """Return the number of genes of each cell with a count above zero. Shape (cells,)."""
    target_g = genes.target_g
    if genes.repeated or not canonical:
        block = sum_duplicates(block, target_g, genes.n_targets)
        target_g = np.arange(genes.n_targets, dtype=np.int32)
    found: NDArray[np.int32] = _detected(block.counts, block.columns, block.indptr, target_g >= 0)
    return found


def mitochondrial_counts(block: CountBlock, mito_g: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the counts of each cell in mitochondrial columns. Shape (cells,)."""
    sums: NDArray[np.float64] = _summed(block.counts, block.columns, block.indptr, mito_g)
    return sums


def require_version(uri: str, version: str) -> None:
    """Check that a file is the one that was planned.

    Raises
    ------
    InputError
        It was changed meanwhile.
    """
    if stamp_of(uri).version != version:
        raise InputError(uri, "a source may not change while it is read", "another version", "Run again.")


def cell_metrics(table: pa.Table, mito: str) -> tuple[CellMetrics, list[str]]:
    """Return a table of metrics as arrays, and the names of its data sets.

    Parameters
    ----------
    table
        Rows of `METRICS_SCHEMA`.
    mito
        `fraction` or `counts`: what becomes of the mitochondrial counts.
    """
    dataset = table[schema.DATASET].combine_chunks().dictionary_encode()
    n_counts = table[schema.N_COUNTS].to_numpy()
    mito_counts = pc.fill_null(table[schema.MITO_COUNTS], np.nan).to_numpy()
    cells = CellMetrics(
        n_counts=n_counts,
        mito=fraction(mito_counts, n_counts) if mito == "fraction" else mito_counts,
        n_genes=table[schema.N_GENES].to_numpy(),
        file_pass=table[FILE_PASS].to_numpy(),
        malignant=table[IS_MALIGNANT].to_numpy(),
        dataset=dataset.indices.to_numpy(),
    )
    return cells, [str(name) for name in dataset.dictionary.to_pylist()]


def fraction(mito_counts: NDArray[np.float64], n_counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mitochondrial counts over total counts, 0 for empty cells; NaN stays NaN."""
    return mito_counts / np.maximum(n_counts, 1)


@numba.njit(cache=True, nogil=True)
def _detected(counts, columns, indptr, known_g):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Count the values above zero in known columns."""
    n_genes = np.zeros(indptr.size - 1, np.int32)
    for i in range(n_genes.size):
        for j in range(indptr[i], indptr[i + 1]):
            n_genes[i] += counts[j] > 0 and known_g[columns[j]]
    return n_genes


@numba.njit(cache=True, nogil=True)
def _summed(counts, columns, indptr, chosen_g):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Sum the values in chosen columns."""
    sums = np.zeros(indptr.size - 1, np.float64)
    for i in range(sums.size):
        for j in range(indptr[i], indptr[i + 1]):
            if chosen_g[columns[j]]:
                sums[i] += counts[j]
    return sums
