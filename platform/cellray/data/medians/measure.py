"""Measures the nonzero median of every gene over planned sources: by a sketch, or exactly.

Units of cells are mapped on Ray and what they found is merged; which gene a column is, the plan says. Knows nothing of
vocabularies.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.data.cells import filter_pass, total_counts
from cellray.data.checks import check_block, sum_duplicates
from cellray.data.medians.map_merge import Job, MergeTree, map_units
from cellray.data.medians.sketch import ACCURACY, TARGET_SUM, GeneSketch, SketchBuilder, merge
from cellray.data.medians.sources import Plan, ReadOptions, Unit
from cellray.data.progress import Progress
from cellray.data.sources.contract import CountBlock, CountSource, open_source, stamp_of
from cellray.errors import InputError
from cellray.schema import FILTER_PASS, QUALITY_CONTROL

MAX_VALUES = 150_000_000
"""Most nonzero values held at once by `--exact` (about 4 GB while they are sorted)."""
NO_COUNTS = "no counts"
"""Why a cell is left out, where it passed the filter."""
_READ_CELLS = 1024
_RANGE_CELLS = 8192  # cells asked of a reader at a time: one that scans its file for them holds all their values
_TOTALS = (1e-30, 1e30)  # so that every scaled count has a bucket


@dataclass(frozen=True)
class Measured:
    """What a pass over the sources found.

    Attributes
    ----------
    median_g
        Nonzero median of each gene in counts per 10,000, NaN where it was never seen. Shape (genes,).
    n_values_g
        Cells in which each gene was seen. Shape (genes,).
    tally
        `cells` read, `values` above zero, and cells left out by reason.
    """

    median_g: NDArray[np.float64]
    n_values_g: NDArray[np.int64]
    tally: Counter[str]

    @property
    def left_out(self) -> Counter[str]:
        """Cells left out, by reason."""
        return +Counter({reason: self.tally[reason] for reason in (FILTER_PASS, QUALITY_CONTROL, NO_COUNTS)})


class BadFiles(Exception):  # noqa: N818  # what it tells of
    """Files that turned out to be bad while they were read; nothing that was measured with them holds."""

    def __init__(self, errors: dict[str, InputError]) -> None:
        super().__init__(errors)
        self.errors = errors


def sketched(plan: Plan, options: ReadOptions, workers: int | None) -> Measured:
    """Sketch every unit and merge the sketches in a tree; only medians come to the driver.

    Raises
    ------
    InputError, BadFiles
        See `_run`.
    """
    import ray

    tree, tally = MergeTree(merge), Counter[str]()
    for summary, sketch in _run(_sketch_unit, plan, options, workers):
        tally += summary
        tree.add(sketch)
    medians, n_cells = ray.get(ray.remote(_finish).remote(tree.finish()))
    return Measured(medians, n_cells, tally)


def exact(plan: Plan, options: ReadOptions, workers: int | None) -> Measured:
    """Gather all values here and sort them.

    Raises
    ------
    InputError
        There are more than `MAX_VALUES`.
    """
    import ray

    found, tally = [], Counter[str]()
    for summary, values in _run(_values_of_unit, plan, options, workers):
        tally += summary
        if tally["values"] > MAX_VALUES:
            rule = f"exact medians hold at most {MAX_VALUES:,} nonzero values"
            more = f"more after {tally['cells']:,} of {plan.n_cells:,} cells"
            raise InputError("--exact", rule, more, f"Leave it out: the sketch errs by at most {ACCURACY:.2%}.")
        found.append(ray.get(values))
    gene, value = (np.concatenate([pair[i] for pair in found]) for i in range(2))
    n_genes = len(plan.genes)
    return Measured(grouped_median(gene, value, n_genes), np.bincount(gene, minlength=n_genes), tally)


def grouped_median(group: NDArray[np.integer], value: NDArray[np.floating], n_groups: int) -> NDArray[np.float64]:
    """Return the median of the values of each group, NaN for an empty one. Shape (n_groups,)."""
    order = np.lexsort((value, group))
    size = np.bincount(group, minlength=n_groups)
    first = np.cumsum(size) - size
    medians = np.full(n_groups, np.nan)
    some = size > 0
    low, high = first[some] + (size[some] - 1) // 2, first[some] + size[some] // 2
    medians[some] = (value[order[low]].astype(np.float64) + value[order[high]]) / 2
    return medians


def _run(function: Any, plan: Plan, options: ReadOptions, workers: int | None) -> Iterator[tuple[Counter[str], Any]]:  # noqa: ANN401
    """Map a function over the units; yield each one's tally and the reference of its result.

    Raises
    ------
    InputError
        Of the first bad file.
    BadFiles
        With `options.skip`: of all bad files, once everything was read.
    """
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    units = plan.units(min(cpus, workers or cpus))
    columns = [ray.put(table) for table in plan.columns]
    progress = Progress("medians", plan.n_cells)
    bad: dict[str, InputError] = {}

    def arguments(unit: Unit) -> Sequence[Any]:
        tables = sorted({piece.columns for piece in unit})
        return [unit, options, len(plan.genes), tables, *(columns[table] for table in tables)]

    job = Job(function, arguments, lambda unit: ", ".join(sorted({piece.uri for piece in unit})), _parts)
    for unit, summary, result in map_units(job, units, workers):
        if isinstance(summary, InputError):
            if not options.skip or summary.subject not in {piece.uri for piece in unit}:
                raise summary
            bad[summary.subject] = summary
            continue
        progress.add(sum(piece.stop - piece.start for piece in unit))
        yield summary, result
    if bad:
        raise BadFiles(bad)


def _parts(unit: Unit) -> list[Unit]:
    return [(piece,) for piece in unit]


def _finish(sketch: GeneSketch) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return sketch.medians(), sketch.n_values()


def _sketch_unit(
    unit: Unit, options: ReadOptions, n_genes: int, numbers: list[int], *columns: NDArray[np.int32]
) -> tuple[Counter[str], GeneSketch]:
    """Sketch the cells of one unit, in a Ray task."""
    tally, builder = Counter[str](), SketchBuilder(n_genes)
    for cells in _cells(unit, options, n_genes, dict(zip(numbers, columns, strict=True)), tally):
        tally["values"] += builder.add(cells.block, cells.gene_of_column, cells.passed_n, cells.n_counts_n)
    return tally, builder.finish()


def _values_of_unit(
    unit: Unit, options: ReadOptions, n_genes: int, numbers: list[int], *columns: NDArray[np.int32]
) -> tuple[Counter[str], tuple[NDArray[np.int32], NDArray[np.float64]]]:
    """Return gene and scaled count of every nonzero value of one unit, in a Ray task."""
    tally = Counter[str]()
    genes, values = [np.empty(0, np.int32)], [np.empty(0)]
    for cells in _cells(unit, options, n_genes, dict(zip(numbers, columns, strict=True)), tally):
        block = cells.block
        cell = np.repeat(np.arange(block.n_cells), np.diff(block.indptr))
        gene = cells.gene_of_column[block.columns]
        kept = (block.counts > 0) & (gene >= 0) & cells.passed_n[cell]
        genes.append(gene[kept])
        values.append(block.counts[kept] / cells.n_counts_n[cell[kept]] * TARGET_SUM)
        tally["values"] += int(kept.sum())
    return tally, (np.concatenate(genes), np.concatenate(values))


@dataclass(frozen=True)
class _Cells:
    """A checked block, the gene of each column (below zero: none; none twice), which cells count, their totals."""

    block: CountBlock
    gene_of_column: NDArray[np.int32]
    passed_n: NDArray[np.bool_]
    n_counts_n: NDArray[np.float64]


def _cells(
    unit: Unit, options: ReadOptions, n_genes: int, columns: dict[int, NDArray[np.int32]], tally: Counter[str]
) -> Iterator[_Cells]:
    """Read a unit's cells."""
    for piece in unit:
        if stamp_of(piece.uri).version != piece.version:
            raise InputError(piece.uri, "a source may not change while it is read", "another version", "Run again.")
        with open_source(piece.uri, options.matrix) as source:
            for start in range(piece.start, piece.stop, _RANGE_CELLS):
                stop = min(start + _RANGE_CELLS, piece.stop)
                judged = None
                if options.quality is not None:
                    judged = options.quality.passed(piece.uri, piece.version, start, stop)
                for block in source.blocks(start, stop, _READ_CELLS):
                    own = judged[block.start - start :][: block.n_cells] if judged is not None else None
                    yield _look(source, block, options, own, columns[piece.columns], n_genes, tally, piece.repeated)


def _look(
    source: CountSource,
    block: CountBlock,
    options: ReadOptions,
    judged: NDArray[np.bool_] | None,
    columns: NDArray[np.int32],
    n_genes: int,
    tally: Counter[str],
    repeated: bool,
) -> _Cells:
    """Check a block and count its cells; sum columns only where a gene may stand twice in a cell."""
    totals = check_block(block, source)
    start, stop = block.start, block.start + block.n_cells
    n_counts = total_counts(source, options.n_counts_column, start, stop, totals.n_counts)
    passed = filter_pass(source, start, stop) if judged is None else judged
    used = n_counts[passed & (totals.n_counts > 0)]
    if len(used) and not (used.min() >= _TOTALS[0] and used.max() <= _TOTALS[1]):
        found = f"{used.min():g}..{used.max():g}"
        raise InputError(source.uri, "cells' totals must be plausible", found, "Correct --n-counts-column.")
    tally["cells"] += block.n_cells
    tally[FILTER_PASS if judged is None else QUALITY_CONTROL] += int((~passed).sum())
    tally[NO_COUNTS] += int((passed & (totals.n_counts == 0)).sum())
    if repeated or not totals.canonical:
        block, columns = sum_duplicates(block, columns, n_genes), np.arange(n_genes, dtype=np.int32)
    return _Cells(block, columns, passed, n_counts)
