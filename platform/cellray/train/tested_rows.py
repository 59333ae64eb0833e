"""What each fold's model answered in its test part, row by row: `test_predictions.parquet` of a report.

A row is a cell (`cell_id`) or a gene (`gene`, `token`, and `cells`: in how many it was met), in the `fold` whose test
part it was in. For each head there are `HEAD.true`, `HEAD.predicted` and, of classes, `HEAD.probability.CLASS`. Knows
nothing of tasks or figures.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellray import schema
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.prediction_schema import CELLS, TOKEN, probability_column
from cellray.train.feed import spans
from cellray.train.metrics.genes import GeneSums
from cellray.train.tasks.gene_labels import GeneLabels

TEST_PREDICTIONS = "test_predictions.parquet"
FOLD = "fold"
_MISSING = -1


@dataclass(frozen=True)
class Truth:
    """True classes (codes, -1 where missing) or numbers (NaN where missing) of all cells, and the classes' names."""

    value_n: NDArray[Any]
    classes: tuple[str, ...] | None


def write_test_predictions(path: Path, tables: Iterable[pa.Table]) -> Path | None:
    """Write tables of one schema, one at a time; returns the path, None where nothing was tested."""
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    return None if writer is None else path


def cell_rows(
    corpus: Corpus,
    fold: int,
    cells_t: NDArray[np.int64],
    outputs: Mapping[str, NDArray[np.floating]],
    truths: Mapping[str, Truth],
) -> Iterator[pa.Table]:
    """Yield the rows of a fold's test cells, no more than a span of the corpus at a time.

    Parameters
    ----------
    corpus
        Knows the cells' names.
    fold
        Its number.
    cells_t
        Numbers of the tested cells in the corpus, ascending. Shape (tested cells,).
    outputs
        Of each head: probabilities (tested cells x classes), or numbers (tested cells x 1).
    truths
        Of each head, over all cells.
    """
    for span in spans(corpus):
        first, stop = np.searchsorted(cells_t, [span.first, span.first + len(span)])
        if first == stop:
            continue
        own = cells_t[first:stop]
        names = read_rows(span.uri, span.start, span.stop, [schema.CELL_ID])[schema.CELL_ID]
        columns = {schema.CELL_ID: names.take(pa.array(own - span.first)), FOLD: _fold(fold, len(own))}
        for head, output_tc in outputs.items():
            columns |= _answers(head, output_tc[first:stop], truths[head].value_n[own], truths[head].classes)
        yield pa.table(columns)


def gene_rows(head: str, fold: int, labels: GeneLabels, chosen_g: NDArray[np.bool_], sums: GeneSums) -> pa.Table:
    """Return the rows of a fold's test genes; what was answered for a gene that no cell held is null.

    Parameters
    ----------
    head, fold
        The head's name and the fold's number.
    labels
        Of all genes.
    chosen_g
        Which of them are in the test part. Shape (genes,).
    sums
        Over all cells that were run.
    """
    token_t = labels.token_g[chosen_g]
    seen_t = sums.seen_v[token_t]
    columns = {
        schema.GENE: pa.array(
            [gene for gene, chosen in zip(labels.genes, chosen_g, strict=True) if chosen], pa.string()
        ),
        TOKEN: pa.array(token_t, pa.int32()),
        CELLS: pa.array(seen_t, pa.int64()),
        FOLD: _fold(fold, len(token_t)),
    }
    return pa.table(columns | _answers(head, sums.mean_gc(token_t), labels.code_g[chosen_g], labels.classes))


def _fold(fold: int, rows: int) -> pa.Array:
    return pa.array(np.full(rows, fold), pa.int32())


def _answers(
    head: str, output_tc: NDArray[np.floating], truth_t: NDArray[Any], classes: Sequence[str] | None
) -> dict[str, pa.Array]:
    """Return a head's columns; what is NaN or missing is null."""
    true, predicted = f"{head}.true", f"{head}.predicted"
    if classes is None:
        return {true: _numbers(truth_t, pa.float64()), predicted: _numbers(output_tc[:, 0], pa.float32())}
    answered_t = np.isfinite(output_tc).all(axis=1)
    given_t = np.where(answered_t, np.nan_to_num(output_tc).argmax(axis=1), _MISSING)
    columns = {true: _names(truth_t, classes), predicted: _names(given_t, classes)}
    probabilities = {probability_column(head, name): output_tc[:, c] for c, name in enumerate(classes)}
    return columns | {name: _numbers(values, pa.float32()) for name, values in probabilities.items()}


def _numbers(values_t: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(np.asarray(values_t, np.float64), kind, from_pandas=True)


def _names(code_t: NDArray[np.integer], classes: Sequence[str]) -> pa.Array:
    return pa.array(list(classes), pa.string()).take(pa.array(code_t, pa.int32(), mask=np.asarray(code_t) == _MISSING))
