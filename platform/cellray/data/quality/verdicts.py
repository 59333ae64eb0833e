"""Second stage of quality control: puts each cell's verdict beside its metrics, once all bounds are known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.corpora.corpus import read_rows
from cellray.data.parts import PartWriter, Unit
from cellray.data.quality.metrics import cell_metrics, fraction
from cellray.data.quality.rules import REASONS, DatasetBounds, judge
from cellray.errors import InputError

DOUBLET_THRESHOLD = "doublet_threshold"
DOUBLET_SCHEMA = pa.schema(
    [
        pa.field(schema.SOURCE_ROW, pa.int64(), nullable=False),
        pa.field(schema.DOUBLET_SCORE, pa.float64(), nullable=False),
        pa.field(DOUBLET_THRESHOLD, pa.float64()),
    ]
)
"""Scores of the cells of one data set in one file, ascending by row; the threshold, null if there is none, repeats."""

DROPPED, CELLS, PASSED = "dropped: ", "cells: ", "passed: "
"""Beginnings of a part's counters: of a reason, of a data set, of a data set."""


@dataclass(frozen=True)
class Rules:
    """What the stages after the metrics go by.

    Attributes
    ----------
    bounds
        Of each data set, by name.
    mito
        What the mitochondrial bounds are of.
    min_genes
        Least number of detected genes.
    """

    bounds: Mapping[str, DatasetBounds]
    mito: Literal["fraction", "counts"]
    min_genes: int

    def verdicts(self, table: pa.Table, doublet: NDArray[np.bool_] | None = None) -> NDArray[np.int8]:
        """Judge rows of metrics; see `cellray.data.quality.rules.judge`."""
        cells, names = cell_metrics(table, self.mito)
        return judge(cells, {i: self.bounds[name] for i, name in enumerate(names)}, self.min_genes, doublet)


@dataclass(frozen=True)
class VerdictOptions:
    """What a worker needs beside its unit: the rules, the sources' URIs, the parts with the doublet scores of each."""

    rules: Rules
    sources: tuple[str, ...]
    doublets: Mapping[int, tuple[str, ...]]


class VerdictWorker:
    """Judges the cells of one part of metrics."""

    def __init__(self, options: VerdictOptions) -> None:
        self._options = options

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        part = open_part(schema.quality_schema())
        table = read_metrics(unit.uri, unit.stop - unit.start)
        score, doublet = self._doublets(unit)
        verdicts = self._options.rules.verdicts(table, doublet)
        for index, reason in enumerate(REASONS):
            part.counts[DROPPED + reason] = int((verdicts == index).sum())
        for beginning, names in (
            (CELLS, table[schema.DATASET]),
            (PASSED, table[schema.DATASET].filter(pa.array(verdicts < 0))),
        ):
            for count in pc.value_counts(names).to_pylist():
                part.counts[beginning + count["values"]] += count["counts"]
        part.write(self._table(table, verdicts, score, self._options.sources[unit.source]))

    def _doublets(self, unit: Unit) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the unit's doublet scores, NaN where there is none, and which cells are called doublets."""
        score = np.full(unit.stop - unit.start, np.nan)
        doublet = np.zeros(len(score), bool)
        for uri in self._options.doublets.get(unit.source, ()):
            found = read_rows(uri, 0, 1 << 62)
            row = found[schema.SOURCE_ROW].to_numpy() - unit.start
            ours = (row >= 0) & (row < len(score))
            value = found[schema.DOUBLET_SCORE].to_numpy()[ours]
            score[row[ours]] = value
            doublet[row[ours]] = value > pc.fill_null(found[DOUBLET_THRESHOLD], np.inf).to_numpy()[ours]
        return score, doublet

    def _table(self, table: pa.Table, verdicts: NDArray[np.int8], score: NDArray[np.float64], source: str) -> pa.Table:
        n_counts, mito_counts = table[schema.N_COUNTS], table[schema.MITO_COUNTS]
        share = fraction(pc.fill_null(mito_counts, np.nan).to_numpy(), n_counts.to_numpy())
        passed = verdicts < 0
        reason = pa.DictionaryArray.from_arrays(pa.array(verdicts, mask=passed), pa.array(REASONS))
        columns = {
            schema.SOURCE: pa.array([source] * table.num_rows, pa.string()),
            schema.MITO_FRACTION: pa.array(share, from_pandas=True),
            schema.DOUBLET_SCORE: pa.array(score, from_pandas=True),
            schema.FILTER_PASS: pa.array(passed),
            schema.REASON: reason.cast(pa.string()),
        }
        wanted = schema.quality_schema()
        arrays = [columns[name] if name in columns else table[name] for name in wanted.names]
        return pa.table(arrays, schema=wanted)


def read_metrics(uri: str, rows: int, columns: list[str] | None = None) -> pa.Table:
    """Read a part of metrics.

    Raises
    ------
    InputError
        It is gone: another run of the same request has finished and tidied up.
    """
    if not storage.exists(uri):
        fix = "Run again: another run of the same request has probably finished."
        raise InputError(uri, "the metrics must stay until the verdicts are made", "no such file", fix)
    return read_rows(uri, 0, rows, columns)
