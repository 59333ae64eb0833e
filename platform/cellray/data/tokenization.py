"""From files of raw counts to a token corpus: plans row ranges, encodes them on Ray Data, publishes the manifest.

The order of work: describe every source (a task each), refuse what is wrong before anything is written, cut the
sources into units, let `cellray.data.units` do them, account for every cell.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data import gene_ids
from cellray.data.cells import filter_pass, total_counts
from cellray.data.checks import check_block, sum_duplicates
from cellray.data.locate import expand_sources
from cellray.data.session import ensure_ray, plain_errors
from cellray.data.source import CountBlock, CountSource, format_of, open_source, require_obs
from cellray.data.units import PartWriter, Pool, Unit, finished, publish_manifest, run_units
from cellray.errors import InputError, listing
from cellray.rank_value import EncodedCells, encode_rows
from cellray.schema import CorpusManifest, Encoding, GeneReport, PartRecord, SourceRecord
from cellray.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)

READ_CELLS = 1024
"""Cells read, encoded and written at a time: the row groups of a shard, and what bounds a worker's memory."""

DROPPED = {"dropped_filter_pass": schema.FILTER_PASS, "dropped_no_gene": "no gene of the vocabulary"}
"""Counter of a part to the reason a manifest gives."""


class TokenizeConfig(JobConfig):
    """Turn files of raw counts into a token corpus: rank value encoding with a fixed vocabulary."""

    source: tuple[str, ...] = Field(
        description="files of raw counts, folders, globs or lists (.txt) of them, local or s3://, comma-separated"
    )
    vocabulary: str = Field(description="vocabulary.json, from jobs.build_vocabulary")
    output: str = Field(description="directory or s3:// URI of the corpus")
    obs_columns: tuple[str, ...] = Field((), description="obs columns to keep with each cell, comma-separated")
    matrix: str = Field("X", description="where the raw counts are: X, raw or layers/NAME")
    gene_ids: str | None = Field(
        None, description="var column with the gene ids, or index; default: ensembl_id if there is one, else index"
    )
    n_counts_column: str | None = Field(
        None, description="obs column with each cell's total count; default: the sum over all columns of the matrix"
    )
    input_size: int | None = Field(None, gt=4, description="tokens of a row, default: the vocabulary's [tokens]")
    cells_per_shard: int = Field(8192, ge=1, description="most cells of a source that go into one shard [cells]")
    workers: int | None = Field(None, ge=1, description="most tasks at the same time, default: what the cluster has")


@dataclass(frozen=True)
class SourcePlan:
    """What is known of a source before it is read."""

    uri: str
    format: str
    stamp: storage.FileStamp
    n_cells: int
    genes: GeneReport
    obs_kinds: dict[str, str]


@dataclass(frozen=True)
class TokenizeOptions:
    """What a worker needs beside its unit."""

    vocabulary: GeneVocabulary
    matrix: str
    gene_ids: str | None
    n_counts_column: str | None
    input_size: int
    obs_kinds: dict[str, str]


@plain_errors()
def tokenize_corpus(config: TokenizeConfig) -> CorpusManifest:
    """Tokenize all sources into one corpus and return its manifest.

    A finished corpus of the same request is returned as it is; after an interruption only the missing shards are made.

    Raises
    ------
    InputError
        A source breaks a rule (see `cellray.data.checks`, `cellray.data.gene_ids`), or the output holds another corpus.
    """
    vocabulary = GeneVocabulary.load(config.vocabulary)
    output = storage.absolute(config.output)
    ensure_ray()
    plans = _describe_sources(config, vocabulary)
    options = TokenizeOptions(
        vocabulary=vocabulary,
        matrix=config.matrix,
        gene_ids=config.gene_ids,
        n_counts_column=config.n_counts_column,
        input_size=config.input_size or vocabulary.input_size,
        obs_kinds=_common_kinds(plans, config.obs_columns),
    )
    units = plan_units(plans, options, config.cells_per_shard)
    request = schema.request_digest(artefact="token corpus", units=[unit.key for unit in units])
    if done := finished(output, request, CorpusManifest):
        logger.info("%s is complete already: nothing to do", output)
        assert isinstance(done, CorpusManifest)
        return done
    storage.write_bytes(storage.join(output, schema.VOCABULARY), vocabulary.to_json())
    parts = run_units(
        "tokenize", output, units, lambda: TokenizeWorker(options), Pool(concurrency=config.workers), actors=False
    )
    manifest = CorpusManifest(
        request=request,
        parts=parts,
        software=schema.software_versions("anndata", "pyarrow", "numpy"),
        encoding=Encoding(input_size=options.input_size, special_tokens=dict(vocabulary.special_tokens)),
        vocabulary_digest=vocabulary.digest,
        obs_kinds=options.obs_kinds,
        sources=tuple(_account(i, plan, parts, config.matrix) for i, plan in enumerate(plans)),
    )
    if manifest.rows == 0:
        dropped = Counter[str]()
        for source in manifest.sources:
            dropped.update(source.dropped)
        found = "none; dropped: " + ", ".join(f"{n:,} ({reason})" for reason, n in dropped.items())
        raise InputError(
            listing(config.source), "a corpus needs at least one cell", found, "Check these columns and ids."
        )
    publish_manifest(output, manifest)
    return manifest


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
            "format": 1,
        }
        for start in range(0, plan.n_cells, cells_per_shard):
            stop = min(start + cells_per_shard, plan.n_cells)
            key = schema.request_digest(**common, start=start, stop=stop)
            units.append(Unit(key, plan.uri, plan.stamp.version, index, start, stop))
    return units


def describe_source(uri: str, config: TokenizeConfig, vocabulary: GeneVocabulary) -> SourcePlan:
    """Open a source and check all that can be told without reading it through, and its first cells.

    Raises
    ------
    InputError
        The source breaks a rule.
    """
    with open_source(uri, config.matrix) as source:
        if source.n_cells == 0:
            raise InputError(uri, "a source needs at least one cell", "none", "Leave it out.")
        kinds = require_obs(source, config.obs_columns)
        clash = sorted(set(kinds) & set(schema.RESERVED_COLUMNS))
        if clash:
            raise InputError(uri, "an obs column may not bear a name of the corpus", listing(clash), "Rename it.")
        if config.n_counts_column:
            require_obs(source, [config.n_counts_column])
        stamp = storage.stamp(uri)
        mapping = _read_mapping(uri, stamp.version, config.matrix, config.gene_ids, vocabulary)
        check_block(next(source.blocks(0, min(source.n_cells, READ_CELLS), READ_CELLS)), source)
        return SourcePlan(uri, format_of(uri), stamp, source.n_cells, mapping.report, kinds)


def _describe_sources(config: TokenizeConfig, vocabulary: GeneVocabulary) -> list[SourcePlan]:
    """Describe all sources, a Ray task each, in their order."""
    import ray

    uris = expand_sources(config.source)
    describe = ray.remote(describe_source)
    shared = ray.put(vocabulary)
    plans: list[SourcePlan] = ray.get([describe.remote(uri, config, shared) for uri in uris])
    return plans


def _common_kinds(plans: Sequence[SourcePlan], columns: Sequence[str]) -> dict[str, str]:
    """Return one kind for each obs column; where files differ, numbers become real and all else text."""
    kinds = {}
    for column in columns:
        found = {plan.obs_kinds[column] for plan in plans}
        kinds[column] = found.pop() if len(found) == 1 else "real" if found == {"integer", "real"} else "text"
    return kinds


class TokenizeWorker:
    """Reads one row range, encodes it and writes a shard, `READ_CELLS` cells at a time."""

    def __init__(self, options: TokenizeOptions) -> None:
        self._options = options
        self._schema = schema.token_schema(options.obs_kinds)

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        options = self._options
        if storage.stamp(unit.uri).version != unit.version:
            raise InputError(unit.uri, "a source may not change while it is read", "another version", "Run again.")
        mapping = _read_mapping(unit.uri, unit.version, options.matrix, options.gene_ids, options.vocabulary)
        part = open_part(self._schema)
        with open_source(unit.uri, options.matrix) as source:
            for block in source.blocks(unit.start, unit.stop, READ_CELLS):
                self._encode(source, block, mapping, part)

    def _encode(
        self,
        source: CountSource,
        block: CountBlock,
        mapping: gene_ids.ColumnMapping,
        part: PartWriter,
    ) -> None:
        """Encode one block, write the kept cells and count the others."""
        totals = check_block(block, source)
        layout = self._options.vocabulary.layout(self._options.input_size)
        start, stop = block.start, block.start + block.n_cells
        n_counts = total_counts(source, self._options.n_counts_column, start, stop, totals.n_counts)
        genes = mapping.genes
        if mapping.repeated or not totals.canonical:
            block = sum_duplicates(block, genes.token_g, len(self._options.vocabulary))
            genes = gene_ids.vocabulary_genes(self._options.vocabulary)
        cells = encode_rows(block.counts, block.columns, block.indptr, genes, layout)
        passed = filter_pass(source, start, stop)
        kept = passed & (cells.n_genes > 0)
        part.counts["dropped_filter_pass"] += int((~passed).sum())
        part.counts["dropped_no_gene"] += int((passed & ~kept).sum())
        part.counts["truncated"] += int((kept & (cells.n_genes > layout.max_genes)).sum())
        part.counts["tokens"] += int(np.diff(cells.offsets)[kept].sum())
        part.write(self._table(source, start, stop, n_counts, cells).filter(pa.array(kept)))

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
            *(source.obs(name, start, stop).cast(schema.OBS_TYPES[kind]) for name, kind in options.obs_kinds.items()),
        ]
        return pa.table(columns, schema=self._schema)


@lru_cache(maxsize=8)
def _read_mapping(
    uri: str,
    version: str,  # part of the key: another version of a file has another mapping
    matrix: str,
    column: str | None,
    vocabulary: GeneVocabulary,
) -> gene_ids.ColumnMapping:
    """Map a file's columns, once a worker process: the next units of the file find the mapping here."""
    with open_source(uri, matrix) as source:
        return gene_ids.map_columns(*gene_ids.column_names(source, column), vocabulary, uri)


def _account(index: int, plan: SourcePlan, parts: Sequence[PartRecord], matrix: str) -> SourceRecord:
    """Sum a source's parts; every cell is kept or dropped for a reason."""
    own = [part for part in parts if part.source == index]
    kept = sum(part.rows for part in own)
    dropped = {reason: sum(part.counts[counter] for part in own) for counter, reason in DROPPED.items()}
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
    )


def report(manifest: CorpusManifest) -> str:
    """Tell people what was mapped, kept and dropped."""
    lines = []
    for source in manifest.sources:
        genes = source.genes
        dropped = ", ".join(f"{n:,} dropped ({reason})" for reason, n in source.dropped.items() if n) or "none dropped"
        lines.append(
            f"{source.uri}: genes from {genes.ids_from}: {genes.known:,} known of {genes.columns:,} columns "
            f"({genes.summed:,} summed into others, {genes.without_median:,} without median, "
            f"{genes.unknown:,} unknown); cells: {source.kept:,} kept of {source.cells:,}, {dropped}"
        )
    tokens = sum(part.counts["tokens"] for part in manifest.parts)
    truncated = sum(part.counts["truncated"] for part in manifest.parts)
    lines.append(
        f"{manifest.rows:,} cells, {tokens:,} tokens ({tokens / max(manifest.rows, 1):,.0f} a cell), "
        f"{truncated:,} cells cut to {manifest.encoding.input_size:,} tokens, {len(manifest.parts):,} shards"
    )
    return "\n".join(lines)
