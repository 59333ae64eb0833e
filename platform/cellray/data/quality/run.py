"""Quality control from files of counts to verdicts: metrics of each cell, bounds of each data set, verdicts.

Both passes run as units on Ray; between them the bounds are put together from the moments of each part, in the parts'
order, so that neither memory nor result depends on how many cells or workers there are. All cells with counts enter the
bounds, those too that the file's own filter or a mark of malignancy leaves out.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cellray import schema, storage
from cellray.data.corpora.corpus import read_rows
from cellray.data.parts import Unit
from cellray.data.publishing import finished, publish_manifest
from cellray.data.quality.doublets import MIN_DOUBLET_CELLS, SCORED, DoubletOptions, DoubletWorker, Library
from cellray.data.quality.genes import EVERY_COLUMN
from cellray.data.quality.metrics import COUNTED, IS_MALIGNANT, MetricsWorker, cell_metrics
from cellray.data.quality.plan import QualityConfig, QualityJob, prepare
from cellray.data.quality.rules import REASONS, DatasetBounds, Moments, can_exclude
from cellray.data.quality.verdicts import (
    CELLS,
    DOUBLET_THRESHOLD,
    DROPPED,
    PASSED,
    Rules,
    VerdictOptions,
    VerdictWorker,
    read_metrics,
)
from cellray.data.session import ensure_ray, plain_errors
from cellray.data.units import require_records, run_units
from cellray.errors import InputError, combined, listing
from cellray.quality_schema import DatasetRecord, DoubletRecord, QualityManifest, QualitySource
from cellray.schema import FailedSource, PartRecord

logger = logging.getLogger(__name__)

METRICS, DOUBLETS = "metrics", "doublets"
"""Folders below the output for what lies between the stages; deleted when the verdicts are published."""
_READS_AT_ONCE = 8


@dataclass(frozen=True)
class Tally:
    """What is known of a data set after the first stage: its cells, the moments of those with counts, its parts."""

    cells: int
    n_counts: Moments
    mito: Moments
    parts: tuple[int, ...]

    def __add__(self, other: "Tally") -> "Tally":
        """Return the tally of both together."""
        return Tally(
            self.cells + other.cells, self.n_counts + other.n_counts, self.mito + other.mito, self.parts + other.parts
        )

    def bounds(self, n_sd: float) -> DatasetBounds:
        """Return the data set's bounds."""
        return DatasetBounds(self.n_counts.bounds(n_sd), self.mito.bounds(n_sd))


@plain_errors()
def quality_control(config: QualityConfig) -> QualityManifest:
    """Judge every cell of all sources and publish the verdicts with their manifest.

    A finished result of the same request is returned as it is; after an interruption only the missing parts are made.

    Raises
    ------
    InputError
        A source breaks a rule and `on_bad_file` is `fail`; a data set is too large for doublet scores; or the output
        holds something else.
    """
    job = prepare(config)
    if done := finished(job.output, job.request, QualityManifest):
        _tidy(job.output)
        return done
    ensure_ray()
    try:
        manifest = _all_stages(job, config)
        publish_manifest(job.output, manifest)
    except (InputError, OSError):  # perhaps another run of this request has finished and cleared its stages away
        if not storage.exists(storage.join(job.output, schema.MANIFEST)):
            raise
        finished(job.output, job.request, QualityManifest)
        logger.info("another run of the same request finished first; its result is this one")
    _tidy(job.output)
    return QualityManifest.load(job.output)


def _all_stages(job: QualityJob, config: QualityConfig) -> QualityManifest:
    """Measure the cells, put the bounds together, score doublets if asked to, and judge.

    Raises
    ------
    InputError, OSError
        A source breaks a rule; or what an earlier stage wrote is gone.
    """
    workers = config.workers
    folder = storage.join(job.output, METRICS)
    results = run_units("cell metrics", folder, job.units, MetricsWorker(job.options), workers)
    broken = {u.source: r for u, r in zip(job.units, results, strict=True) if isinstance(r, InputError)}
    if broken and (config.on_bad_file == "fail" or len(broken) == len(job.plans)):
        raise combined(list(broken.values()))
    parts = [part for part in results if isinstance(part, PartRecord) and part.source not in broken]
    tallies = tally_parts(folder, parts, job.rules.mito)
    rules = Rules({name: t.bounds(config.n_sd) for name, t in tallies.items()}, config.mito, config.min_genes)
    scored = _score_doublets(job, parts, tallies, rules, workers) if config.doublets else {}
    verdicts = _judge(job, parts, rules, scored, workers)
    return _manifest(job, parts, verdicts, tallies, scored, broken)


def tally_parts(folder: str, parts: Sequence[PartRecord], mito: str) -> dict[str, Tally]:
    """Return each data set's tally, merged over the parts in their order."""

    def read(index: int) -> dict[str, Tally]:
        return tally(read_metrics(storage.join(folder, parts[index].path), parts[index].rows), mito, index)

    merged: dict[str, Tally] = {}
    with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
        for found in threads.map(read, range(len(parts))):
            for name, part in found.items():
                merged[name] = merged[name] + part if name in merged else part
    return merged


def tally(table: pa.Table, mito: str, part: int) -> dict[str, Tally]:
    """Return the tally of each data set of one part of metrics."""
    cells, names = cell_metrics(table, mito)
    order = np.argsort(cells.dataset, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(cells.dataset, minlength=len(names)))[:-1])
    found = {}
    for name, rows in zip(names, groups, strict=True):
        counted = rows[cells.n_counts[rows] > 0]
        known = counted[~np.isnan(cells.mito[counted])]
        found[name] = Tally(len(rows), Moments.of(cells.n_counts[counted]), Moments.of(cells.mito[known]), (part,))
    return found


def _score_doublets(
    job: QualityJob, parts: Sequence[PartRecord], tallies: Mapping[str, Tally], rules: Rules, workers: int | None
) -> dict[int, list[tuple[DoubletRecord, PartRecord]]]:
    """Score the doublets of each data set's cells of each file; returned by source."""
    folder = storage.join(job.output, METRICS)
    libraries: dict[str, Library] = {}
    units = []
    for name, found in tallies.items():
        for source in sorted({parts[i].source for i in found.parts}):
            own = [parts[i] for i in found.parts if parts[i].source == source]
            key = schema.request_digest(
                stage="doublets",
                dataset=name,
                metrics=[part.sha256 for part in own],
                source=[job.plans[source].uri, job.plans[source].stamp.version],
                bounds=_numbers(rules.bounds[name]),
                rules=job.rules.model_dump(),
            )
            libraries[key] = Library(name, tuple((storage.join(folder, p.path), p.start, p.stop) for p in own))
            plan = job.plans[source]
            units.append(Unit(key, plan.uri, plan.stamp.version, source, own[0].start, own[-1].stop))
    options = DoubletOptions(libraries, rules, job.options.matrix, job.rules.doublet_threshold, job.rules.seed)
    output = storage.join(job.output, DOUBLETS)
    results = run_units("doublets", output, units, DoubletWorker(options), workers)
    for result in results:
        if isinstance(result, InputError):
            raise result
    scored: dict[int, list[tuple[DoubletRecord, PartRecord]]] = {}
    for unit, part in zip(units, require_records(results), strict=True):
        first = read_rows(storage.join(output, part.path), 0, 1)[DOUBLET_THRESHOLD].to_pylist()
        record = DoubletRecord(
            dataset=libraries[unit.key].dataset, scored=part.counts[SCORED], threshold=first[0] if first else None
        )
        scored.setdefault(unit.source, []).append((record, part))
    return scored


def _judge(
    job: QualityJob,
    parts: Sequence[PartRecord],
    rules: Rules,
    scored: Mapping[int, list[tuple[DoubletRecord, PartRecord]]],
    workers: int | None,
) -> tuple[PartRecord, ...]:
    """Make the verdicts on each part of metrics."""
    folder, output = storage.join(job.output, METRICS), storage.join(job.output, DOUBLETS)
    bounds = schema.request_digest(bounds={name: _numbers(found) for name, found in rules.bounds.items()})
    units = []
    for part in parts:
        doublets = [record.sha256 for _, record in scored.get(part.source, ())]
        key = schema.request_digest(
            stage="verdicts",
            metrics=part.sha256,
            source=[job.plans[part.source].uri, part.start, part.stop],
            bounds=bounds,
            rules=job.rules.model_dump(),
            doublets=doublets,
        )
        units.append(Unit(key, storage.join(folder, part.path), part.sha256, part.source, part.start, part.stop))
    where = {source: tuple(storage.join(output, part.path) for _, part in found) for source, found in scored.items()}
    options = VerdictOptions(rules, tuple(plan.uri for plan in job.plans), where)
    return require_records(run_units("verdicts", job.output, units, VerdictWorker(options), workers))


def _numbers(bounds: DatasetBounds) -> list[object]:
    """Return bounds as JSON."""
    return [None if found is None else found.model_dump() for found in (bounds.n_counts, bounds.mito)]


def _tidy(output: str) -> None:
    """Delete what lay between the stages; what another run of this request puts there meanwhile, it deletes itself."""
    for folder in (METRICS, DOUBLETS):
        with suppress(OSError):
            storage.remove_directory(storage.join(output, folder))


def _manifest(
    job: QualityJob,
    metrics: Sequence[PartRecord],
    verdicts: Sequence[PartRecord],
    tallies: Mapping[str, Tally],
    scored: Mapping[int, list[tuple[DoubletRecord, PartRecord]]],
    broken: Mapping[int, InputError],
) -> QualityManifest:
    """Account for all sources and data sets; sources that turned out bad are left out as a whole."""
    sound = [i for i in range(len(job.plans)) if i not in broken]
    failed = [*job.failed, *(FailedSource(uri=job.plans[i].uri, error=str(e)) for i, e in sorted(broken.items()))]
    return QualityManifest(
        request=job.request,
        parts=tuple(part.model_copy(update={"source": sound.index(part.source)}) for part in verdicts),
        software=schema.software_versions("anndata", "pyarrow", "numpy", "scanpy"),
        rules=job.rules,
        sources=tuple(_account(job, i, metrics, verdicts, scored.get(i, [])) for i in sound),
        datasets=tuple(
            DatasetRecord(
                name=name,
                cells=_sum(verdicts, CELLS + name),
                passed=_sum(verdicts, PASSED + name),
                n_counts=found.n_counts.bounds(job.rules.n_sd),
                mito=found.mito.bounds(job.rules.n_sd),
            )
            for name, found in tallies.items()
        ),
        failed=tuple(failed),
        warnings=tuple(_warnings(job, metrics, tallies)),
    )


def _account(
    job: QualityJob,
    source: int,
    metrics: Sequence[PartRecord],
    verdicts: Sequence[PartRecord],
    scored: Sequence[tuple[DoubletRecord, PartRecord]],
) -> QualitySource:
    """Sum a source's parts; every cell passes or is dropped for a reason."""
    plan = job.plans[source]
    own = [part for part in verdicts if part.source == source]
    dropped = {reason: _sum(own, DROPPED + reason) for reason in REASONS}
    passed = sum(part.rows for part in own) - sum(dropped.values())
    assert sum(part.rows for part in own) == plan.n_cells, f"{plan.uri}: cells lost"
    warnings = list(plan.warnings)
    for counter, what in COUNTED.items():
        if n := _sum([part for part in metrics if part.source == source], counter):
            warnings.append(f"{n:,} cells have {what}")
    records = tuple(record for record, _ in scored)
    few = [record.dataset for record in records if not record.scored]
    if few:
        warnings.append(f"no doublet scores for data sets of less than {MIN_DOUBLET_CELLS} cells: {listing(few)}")
    unclear = [record.dataset for record in records if record.scored and record.threshold is None]
    if unclear:
        warnings.append(f"Scrublet found no threshold, no doublet was dropped; name one: {listing(unclear)}")
    return QualitySource(
        uri=plan.uri,
        format=plan.format,
        matrix=job.options.matrix,
        size=plan.stamp.size,
        version=plan.stamp.version,
        cells=plan.n_cells,
        passed=passed,
        dropped=dropped,
        mito_genes=plan.mito_genes,
        mito_from=plan.mito_from,
        genes=plan.genes,
        counted_genes=plan.counted_genes,
        doublets=records,
        warnings=tuple(warnings),
    )


def _warnings(job: QualityJob, metrics: Sequence[PartRecord], tallies: Mapping[str, Tally]) -> list[str]:
    """Return what the user should know of the whole."""
    found = [EVERY_COLUMN] if job.options.genes.every_column else []
    small = [name for name, tally in tallies.items() if not can_exclude(tally.n_counts.n, job.rules.n_sd)]
    if small:
        found.append(
            f"data sets so small that no cell can lie {job.rules.n_sd:g} standard deviations from the mean: "
            f"{listing(small)}"
        )
    if job.rules.malignant_column is not None and not _sum(metrics, IS_MALIGNANT):
        values = ", ".join(job.rules.malignant_values) or "true or 1"
        found.append(f"no cell is marked by {values} in {job.rules.malignant_column!r}")
    return found


def _sum(parts: Sequence[PartRecord], counter: str) -> int:
    return sum(part.counts.get(counter, 0) for part in parts)
