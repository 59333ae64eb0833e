"""From files of raw counts to a token corpus: plans row ranges, encodes them on Ray Data, publishes the manifest.

The order of work: describe every source (a task each), refuse what is wrong before anything is written, cut the
sources into units, let `cellray.data.units` do them, account for every cell.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data import gene_ids
from cellray.data.cells import filter_pass, obs_values, total_counts
from cellray.data.corpora.names import repeated_names
from cellray.data.encode_block import encode_block
from cellray.data.parts import PartWriter, Unit, find_part
from cellray.data.plan import SourcePlan, common_kinds, describe_sources, read_mapping, sift
from cellray.data.publishing import finished, publish_manifest
from cellray.data.quality.plan import QualityConfig
from cellray.data.quality.report import report as quality_report
from cellray.data.quality.run import quality_control
from cellray.data.quality.table import QualityTable
from cellray.data.session import ensure_ray, plain_errors
from cellray.data.sources.contract import CountBlock, CountSource, open_source, stamp_of
from cellray.data.sources.locate import expand_sources
from cellray.data.units import run_units
from cellray.errors import InputError, combined, listing
from cellray.rank_value import EncodedCells
from cellray.schema import CorpusManifest, Encoding, FailedSource, PartRecord, SourceRecord
from cellray.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)

READ_CELLS = 1024
"""Cells read, encoded and written at a time: the row groups of a shard, and what bounds a worker's memory."""

DROPPED = {
    "dropped_filter_pass": schema.FILTER_PASS,
    "dropped_quality": schema.QUALITY_CONTROL,
    "dropped_no_counts": "no counts",
    "dropped_no_gene": "no gene of the vocabulary",
}
"""Counter of a part to the reason a manifest gives."""


class TokenizeConfig(JobConfig):
    """Turn files of raw counts into a token corpus: rank value encoding with a fixed vocabulary."""

    source: tuple[str, ...] = Field(
        description="files of raw counts, folders, globs or lists (.txt) of them, local or s3://, comma-separated"
    )
    vocabulary: str = Field(description="vocabulary.json, from jobs.build_vocabulary")
    output: str = Field(description="directory or s3:// URI of the corpus")
    obs_columns: tuple[str, ...] = Field((), description="obs columns to keep with each cell, comma-separated")
    missing_obs: Literal["fail", "null"] = Field(
        "fail",
        description="what an obs column does that only some files have: fail the job, or be empty in the others",
    )
    matrix: str = Field("X", description="where the raw counts are: X, raw or layers/NAME")
    gene_ids: str | None = Field(
        None, description="var column with the gene ids, or index; default: ensembl_id if there is one, else index"
    )
    n_counts_column: str | None = Field(
        None, description="obs column with each cell's total count; default: the sum over all columns of the matrix"
    )
    quality: str | None = Field(
        None,
        description="directory of jobs.quality_control, whose verdicts stand for the obs column filter_pass; made "
        "there, by the default rules, if there is none",
    )
    input_size: int | None = Field(None, gt=4, description="tokens of a row, default: the vocabulary's [tokens]")
    cells_per_shard: int = Field(8192, ge=1, description="most cells of a source that go into one shard [cells]")
    on_bad_file: Literal["fail", "skip"] = Field(
        "fail", description="what a file that breaks a rule does: fail the job, or be left out and reported"
    )
    dry_run: bool = Field(False, description="only tell what would be done")
    workers: int | None = Field(None, ge=1, description="most tasks at the same time, default: what the cluster has")


@dataclass(frozen=True)
class TokenizeOptions:
    """What a worker needs beside its unit."""

    vocabulary: GeneVocabulary
    matrix: str
    gene_ids: str | None
    n_counts_column: str | None
    input_size: int
    obs_kinds: dict[str, str]
    quality: QualityTable | None = None


@dataclass(frozen=True)
class Job:
    """A request that has been looked at: sound sources, bad ones, the units of work."""

    output: str
    plans: list[SourcePlan]
    failed: list[FailedSource]
    options: TokenizeOptions
    units: list[Unit]

    @property
    def request(self) -> str:
        """Digest of all that decides the corpus."""
        return schema.request_digest(
            artefact="token corpus",
            units=[unit.key for unit in self.units],
            failed=[failed.uri for failed in self.failed],
        )


@plain_errors()
def prepare(config: TokenizeConfig) -> Job:
    """Open all sources, check what can be checked before reading them through, and cut them into units.

    Raises
    ------
    InputError
        A source breaks a rule and `on_bad_file` is `fail`, or no source is sound.
    """
    vocabulary = GeneVocabulary.load(config.vocabulary)
    uris = expand_sources(config.source)
    quality = _quality(config)
    described = [_judged(found, quality) for found in describe_sources(uris, config, vocabulary)]
    plans, failed = sift(uris, described, config.on_bad_file)
    options = TokenizeOptions(
        vocabulary=vocabulary,
        matrix=config.matrix,
        gene_ids=config.gene_ids,
        n_counts_column=config.n_counts_column,
        input_size=config.input_size or vocabulary.input_size,
        obs_kinds=common_kinds(plans, config.obs_columns),
        quality=quality,
    )
    units = plan_units(plans, options, config.cells_per_shard)
    return Job(storage.absolute(config.output), plans, failed, options, units)


def _quality(config: TokenizeConfig) -> QualityTable | None:
    """Open the quality control that is asked for; make it if it is not there."""
    if config.quality is None:
        return None
    if not storage.exists(storage.join(config.quality, schema.MANIFEST)):
        if config.dry_run:
            return None
        shared = ("source", "vocabulary", "matrix", "gene_ids", "on_bad_file", "workers")
        made = quality_control(QualityConfig(output=config.quality, **{name: getattr(config, name) for name in shared}))
        logger.info("quality control, kept in %s:\n%s", config.quality, quality_report(made))
    return QualityTable.open(config.quality)


def _judged(found: SourcePlan | InputError, quality: QualityTable | None) -> SourcePlan | InputError:
    """Return what was found of a source, or the error that quality control did not see it."""
    if quality is not None and isinstance(found, SourcePlan):
        try:
            quality.require(found.uri, found.stamp.version)
        except InputError as error:
            return error
    return found


@plain_errors()
def tokenize_corpus(config: TokenizeConfig) -> CorpusManifest:
    """Tokenize all sources into one corpus and return its manifest.

    A finished corpus of the same request is returned as it is; after an interruption only the missing shards are made.

    Raises
    ------
    InputError
        A source breaks a rule (see `cellray.data.checks`, `cellray.data.gene_ids`) and `on_bad_file` is `fail`; no cell
        is left; or the output holds something else.
    """
    job = prepare(config)
    if done := finished(job.output, job.request, CorpusManifest):
        return done
    ensure_ray()
    with ThreadPoolExecutor(1) as beside:
        saved = beside.submit(job.options.vocabulary.save, storage.join(job.output, schema.VOCABULARY))
        results = run_units("tokenize", job.output, job.units, TokenizeWorker(job.options), config.workers)
        saved.result()
    broken = {u.source: r for u, r in zip(job.units, results, strict=True) if isinstance(r, InputError)}
    if broken and (config.on_bad_file == "fail" or len(broken) == len(job.plans)):
        raise combined(list(broken.values()))
    manifest = corpus_manifest(job, [r for r in results if isinstance(r, PartRecord)], broken)
    if manifest.rows == 0:
        dropped = Counter[str]()
        for source in manifest.sources:
            dropped.update(source.dropped)
        found = "none; dropped: " + ", ".join(f"{n:,} ({reason})" for reason, n in dropped.items())
        fix = "Check these columns and ids."
        raise InputError(listing(config.source), "a corpus needs at least one cell", found, fix)
    publish_manifest(job.output, manifest)
    return manifest


def dry_run(config: TokenizeConfig) -> str:
    """Tell what tokenization would do, without writing anything."""
    job = prepare(config)
    there = sum(find_part(unit, job.output) is not None for unit in job.units)
    lines = [f"{p.uri}: {p.n_cells:,} cells, {p.genes.known:,} of {p.genes.columns:,} columns known" for p in job.plans]
    lines.extend(f"would be left out: {failed.error}" for failed in job.failed)
    cells = sum(plan.n_cells for plan in job.plans)
    if job.options.quality is not None:
        passed = {source.uri: source.passed for source in job.options.quality.manifest.sources}
        lines.append(f"quality control lets {sum(passed[plan.uri] for plan in job.plans):,} of {cells:,} cells pass")
    elif config.quality is not None:
        lines.append(f"quality control would be made first, in {config.quality}")
    lines.append(
        f"would write {len(job.units):,} shards of {cells:,} cells from {len(job.plans):,} files to {job.output}; "
        f"{there:,} are there already. Nothing was written."
    )
    return "\n".join(lines)


def corpus_manifest(job: Job, parts: Sequence[PartRecord], broken: Mapping[int, InputError]) -> CorpusManifest:
    """Account for all sources; those that turned out bad while they were read are left out as a whole."""
    sound = {old: new for new, old in enumerate(i for i in range(len(job.plans)) if i not in broken)}
    kept = [part.model_copy(update={"source": sound[part.source]}) for part in parts if part.source in sound]
    own: dict[int, list[PartRecord]] = {new: [] for new in sound.values()}
    for part in kept:
        own[part.source].append(part)
    failed = [*job.failed, *(FailedSource(uri=job.plans[i].uri, error=str(e)) for i, e in sorted(broken.items()))]
    vocabulary, options = job.options.vocabulary, job.options
    return CorpusManifest(
        request=job.request,
        parts=tuple(kept),
        software=schema.software_versions("anndata", "pyarrow", "numpy"),
        encoding=Encoding(input_size=options.input_size, special_tokens=dict(vocabulary.special_tokens)),
        vocabulary_digest=vocabulary.digest,
        obs_kinds=options.obs_kinds,
        sources=tuple(_account(job.plans[old], own[new], options.matrix) for old, new in sound.items()),
        failed=tuple(failed),
        repeated_names=repeated_names(job.output, kept),
    )


def plan_units(plans: Sequence[SourcePlan], options: TokenizeOptions, cells_per_shard: int) -> list[Unit]:
    """Cut the sources into row ranges; each unit's key is a digest of its input and all parameters."""
    units = []
    for index, plan in enumerate(plans):
        common = {
            "uri": plan.uri,
            "size": plan.stamp.size,
            "version": plan.stamp.version,
            "vocabulary": options.vocabulary.full_digest,
            "matrix": options.matrix,
            "gene_ids": options.gene_ids,
            "n_counts_column": options.n_counts_column,
            "input_size": options.input_size,
            "obs_kinds": list(options.obs_kinds.items()),
            "quality": None if options.quality is None else options.quality.manifest.digest,
            "format": 2,  # raised when the same input is to give other shards
        }
        for start in range(0, plan.n_cells, cells_per_shard):
            stop = min(start + cells_per_shard, plan.n_cells)
            key = schema.request_digest(**common, start=start, stop=stop)
            units.append(Unit(key, plan.uri, plan.stamp.version, index, start, stop))
    return units


class TokenizeWorker:
    """Reads one row range, encodes it and writes a shard, `READ_CELLS` cells at a time."""

    def __init__(self, options: TokenizeOptions) -> None:
        self._options = options
        self.schema = schema.token_schema(options.obs_kinds)

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        options = self._options
        if stamp_of(unit.uri).version != unit.version:
            raise InputError(unit.uri, "a source may not change while it is read", "another version", "Run again.")
        mapping = read_mapping(unit.uri, unit.version, options.matrix, options.gene_ids, options.vocabulary)
        judged = None
        if options.quality is not None:
            judged = options.quality.passed(unit.uri, unit.version, unit.start, unit.stop)
        part = open_part(self.schema)
        with open_source(unit.uri, options.matrix) as source:
            self.encode(source, unit, mapping, judged, part)

    def encode(
        self,
        source: CountSource,
        unit: Unit,
        mapping: gene_ids.ColumnMapping,
        judged: NDArray[np.bool_] | None,
        part: PartWriter,
    ) -> None:
        """Encode a row range of an open source; `judged` is what quality control lets pass, if it was done."""
        for block in source.blocks(unit.start, unit.stop, READ_CELLS):
            first = block.start - unit.start
            own = None if judged is None else judged[first : first + block.n_cells]
            self._encode(source, block, mapping, own, part)

    def _encode(
        self,
        source: CountSource,
        block: CountBlock,
        mapping: gene_ids.ColumnMapping,
        judged: NDArray[np.bool_] | None,
        part: PartWriter,
    ) -> None:
        """Encode one block, write the kept cells and count the others; `judged` is what quality control lets pass."""
        layout = self._options.vocabulary.layout(self._options.input_size)
        cells, totals, duplicates = encode_block(block, source, mapping, self._options.vocabulary, layout)
        part.counts["duplicate_entries"] += duplicates
        start, stop = block.start, block.start + block.n_cells
        n_counts = total_counts(source, self._options.n_counts_column, start, stop, totals.n_counts)
        passed = filter_pass(source, start, stop) if judged is None else judged
        kept = passed & (cells.n_genes > 0)
        part.counts["dropped_filter_pass" if judged is None else "dropped_quality"] += int((~passed).sum())
        empty = passed & (totals.n_counts == 0)
        part.counts["dropped_no_counts"] += int(empty.sum())
        part.counts["dropped_no_gene"] += int((passed & ~kept & ~empty).sum())
        part.counts["stored_zeros"] += totals.stored_zeros
        part.counts["truncated"] += int((kept & (cells.n_genes > layout.max_genes)).sum())
        part.counts["tokens"] += int(np.diff(cells.offsets)[kept].sum())
        table = self._table(source, start, stop, n_counts, cells)
        table = table if kept.all() else table.filter(pa.array(kept))
        for name in self._options.obs_kinds:
            part.counts[f"missing:{name}"] += table[name].null_count
        part.write(table)

    def _table(
        self, source: CountSource, start: int, stop: int, n_counts: NDArray[np.float64], cells: EncodedCells
    ) -> pa.Table:
        """Return a block's cells as a table, the dropped ones included."""
        options = self._options
        columns = [
            pa.ListArray.from_arrays(pa.array(cells.offsets.astype(np.int32)), pa.array(cells.input_ids)),
            pa.array(np.diff(cells.offsets).astype(np.int32)),
            source.cell_names(start, stop),
            pa.array(n_counts),
            pa.array(np.arange(start, stop)),
            *(obs_values(source, name, kind, start, stop) for name, kind in options.obs_kinds.items()),
        ]
        return pa.table(columns, schema=self.schema)


def _account(plan: SourcePlan, own: Sequence[PartRecord], matrix: str) -> SourceRecord:
    """Sum a source's parts; every cell is kept or dropped for a reason."""
    kept = sum(part.rows for part in own)
    totals = sum((Counter(part.counts) for part in own), Counter())
    dropped = {reason: totals[counter] for counter, reason in DROPPED.items()}
    assert kept + sum(dropped.values()) == plan.n_cells, f"{plan.uri}: cells lost"
    return SourceRecord(
        uri=plan.uri,
        format=plan.format,
        matrix=matrix,
        size=plan.stamp.size,
        version=plan.stamp.version,
        cells=plan.n_cells,
        kept=kept,
        dropped=dropped,
        genes=plan.genes,
        stored_zeros=totals["stored_zeros"],
        duplicate_entries=totals["duplicate_entries"],
        missing={name.removeprefix("missing:"): n for name, n in totals.items() if n and name.startswith("missing:")},
        warnings=plan.warnings,
    )
