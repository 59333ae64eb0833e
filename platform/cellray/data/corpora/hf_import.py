"""A Hugging Face dataset of token rows, an official Geneformer `.dataset` among them, as a token corpus.

Token rows are taken as they are, after checks that they can be what the vocabulary says: known ids, every gene once,
special tokens where the generation has them. What a dataset does not tell stays unknown: total counts are NaN where
there is no such column; cells without names are named by their row; a row of full length counts as cut.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.corpora.hf_layout import SavedDataset
from cellray.data.corpora.names import repeated_names
from cellray.data.corpora.token_checks import check_rows
from cellray.data.parts import PartWriter, Unit
from cellray.data.publishing import finished, publish_manifest
from cellray.data.session import ensure_ray, plain_errors
from cellray.data.units import require_records, run_units
from cellray.errors import InputError, listing
from cellray.schema import CorpusManifest, Encoding, GeneReport, PartRecord, SourceRecord
from cellray.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)

FORMAT = "dataset"
"""Format of such a source in a manifest."""
_READ_CELLS = 1024
_NO_GENE = "no gene of the vocabulary"


class ImportConfig(JobConfig):
    """Turn a Hugging Face dataset of token rows, as Geneformer's .dataset folders are, into a token corpus."""

    dataset: str = Field(description="folder written by save_to_disk, with input_ids and, if there is, length")
    vocabulary: str | None = Field(
        None,
        description="vocabulary.json of the dictionaries it was tokenized with; default: the one in the folder, which "
        "jobs.export_dataset leaves there",
    )
    output: str = Field(description="directory or s3:// URI of the corpus")
    obs_columns: tuple[str, ...] = Field(
        (), description="columns to keep with each cell, comma-separated; default: all of text, numbers or flags"
    )
    cell_id_column: str | None = Field(
        None, description="column with the cells' names; default: cell_id if there is one, else row numbers"
    )
    n_counts_column: str | None = Field(
        None, description="column with the cells' total counts; default: n_counts if there is one, else unknown (NaN)"
    )
    input_size: int | None = Field(None, gt=4, description="most tokens of a row, default: the vocabulary's [tokens]")
    cells_per_shard: int = Field(8192, ge=1, description="cells of a shard [cells]")
    workers: int | None = Field(
        None,
        ge=0,
        description="most tasks at the same time, default: what the cluster has; 0: in this process, without Ray",
    )


@dataclass(frozen=True)
class ImportPlan:
    """A dataset that has been looked at.

    Attributes
    ----------
    dataset, vocabulary, input_size
        What is read, and what its rows must be.
    stamp
        Its version.
    obs_kinds
        Columns that are kept.
    left_out
        Columns that are not.
    cell_id, n_counts
        Columns with names and totals, if there are.
    units
        The work.
    """

    dataset: SavedDataset
    vocabulary: GeneVocabulary
    input_size: int
    stamp: storage.FileStamp
    obs_kinds: dict[str, str]
    left_out: tuple[str, ...]
    cell_id: str | None
    n_counts: str | None
    units: tuple[Unit, ...] = ()


@dataclass(frozen=True)
class Imported:
    """The new corpus's manifest, and the columns of the dataset that are not in it."""

    manifest: CorpusManifest
    left_out: tuple[str, ...]


def _vocabulary(config: ImportConfig) -> GeneVocabulary:
    """Return the vocabulary of the rows: the given one, the folder's own, or, if there are both, the same.

    Raises
    ------
    InputError
        There is none, or they differ: every gene would get another's name.
    """
    beside = storage.join(config.dataset, schema.VOCABULARY)
    own = GeneVocabulary.load(beside) if storage.exists(beside) else None
    if config.vocabulary is None:
        if own is None:
            fix = "Name it with --vocabulary."
            raise InputError(config.dataset, "a dataset needs the vocabulary it was tokenized with", "none in it", fix)
        return own
    given = GeneVocabulary.load(config.vocabulary)
    if own is not None and own.digest != given.digest:
        rule = "the vocabulary must be the one the dataset was tokenized with"
        found = f"digest {given.digest[:12]} for {own.digest[:12]} in the folder"
        raise InputError(config.vocabulary, rule, found, "Leave --vocabulary out.")
    return given


def plan_import(config: ImportConfig) -> ImportPlan:
    """Open a dataset, see which columns it has, and cut it into units.

    Raises
    ------
    InputError
        There is no dataset, it lacks a column, or it holds no rows.
    """
    vocabulary, dataset = _vocabulary(config), SavedDataset.open(config.dataset)
    there = dataset.columns.names
    asked = [*config.obs_columns, *filter(None, (config.cell_id_column, config.n_counts_column))]
    if missing := [name for name in (schema.INPUT_IDS, *asked) if name not in there]:
        found = f"no {listing(missing)}; it has {listing(there, 30)}"
        raise InputError(dataset.uri, "every column asked for must exist", found, "Correct the options.")
    if dataset.rows == 0:
        raise InputError(dataset.uri, "a dataset needs at least one cell", "none", "Check the path.")
    kinds = {name: kind for name in there if (kind := _kind(dataset, name)) is not None}
    read = {schema.INPUT_IDS, schema.LENGTH, schema.CELL_ID, schema.N_COUNTS, *asked}
    not_obs = {*schema.RESERVED_COLUMNS, config.cell_id_column, config.n_counts_column}
    chosen = list(config.obs_columns) or [name for name in kinds if name not in not_obs]
    if bad := [name for name in chosen if name not in kinds or name in schema.RESERVED_COLUMNS]:
        rule = "an obs column holds text, numbers or flags and bears no name of the corpus"
        raise InputError(dataset.uri, rule, listing(bad), "Correct --obs-columns.")
    plan = ImportPlan(
        dataset=dataset,
        vocabulary=vocabulary,
        input_size=config.input_size or vocabulary.input_size,
        stamp=storage.stamp(dataset.uri),
        obs_kinds={name: kinds[name] for name in chosen},
        left_out=tuple(name for name in there if name not in (*chosen, *read)),
        cell_id=config.cell_id_column or (schema.CELL_ID if schema.CELL_ID in there else None),
        n_counts=config.n_counts_column or (schema.N_COUNTS if schema.N_COUNTS in there else None),
    )
    return ImportPlan(**(vars(plan) | {"units": _units(plan, config.cells_per_shard)}))


def read_obs(uri: str) -> pd.DataFrame:
    """Return all columns of a dataset that can be obs columns, indexed by `cell_id` if there is one, else by row."""
    dataset = SavedDataset.open(uri)
    kinds = {name: kind for name in dataset.columns.names if (kind := _kind(dataset, name)) is not None}
    table: pd.DataFrame = dataset.read(0, dataset.rows, list(kinds)).to_pandas()
    index = table[schema.CELL_ID] if schema.CELL_ID in kinds else pd.Series(range(len(table)))
    return table.set_axis(pd.Index(index.astype(str).to_list()))


def _kind(dataset: SavedDataset, name: str) -> str | None:
    """Return the kind of obs column that a dataset's column can be."""
    kind = dataset.columns.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    for found, tests in (
        ("text", (pa.types.is_string, pa.types.is_large_string, lambda _: name in dataset.labels)),
        ("integer", (pa.types.is_integer,)),
        ("real", (pa.types.is_floating,)),
        ("flag", (pa.types.is_boolean,)),
    ):
        if any(test(kind) for test in tests):
            return found
    return None


def _units(plan: ImportPlan, cells_per_shard: int) -> tuple[Unit, ...]:
    common = {
        "uri": plan.dataset.uri,
        "version": plan.stamp.version,
        "vocabulary": plan.vocabulary.digest,
        "input_size": plan.input_size,
        "columns": [plan.cell_id, plan.n_counts, list(plan.obs_kinds.items())],
        "format": 1,
    }
    ranges = [(s, min(s + cells_per_shard, plan.dataset.rows)) for s in range(0, plan.dataset.rows, cells_per_shard)]
    return tuple(
        Unit(schema.request_digest(**common, start=s, stop=e), plan.dataset.uri, plan.stamp.version, 0, s, e)
        for s, e in ranges
    )


@plain_errors()
def import_dataset(config: ImportConfig) -> Imported:
    """Import a dataset; a finished corpus of the same request is returned as it is.

    Raises
    ------
    InputError
        The dataset breaks a rule (see `plan_import`, `cellray.data.corpora.token_checks`), or the output holds
        something else.
    """
    plan, output = plan_import(config), storage.absolute(config.output)
    request = schema.request_digest(artefact="imported corpus", units=[unit.key for unit in plan.units])
    if done := finished(output, request, CorpusManifest):
        return Imported(done, plan.left_out)
    storage.write_bytes(storage.join(output, schema.VOCABULARY), plan.vocabulary.to_json())
    if config.workers != 0:
        ensure_ray()
    results = run_units("import", output, plan.units, ImportWorker(plan), config.workers)
    manifest = _manifest(plan, request, output, require_records(results))
    if manifest.rows == 0:
        raise InputError(plan.dataset.uri, "a corpus needs at least one cell with a gene", "none", "Check the dataset.")
    publish_manifest(output, manifest)
    return Imported(manifest, plan.left_out)


class ImportWorker:
    """Reads one row range of a dataset, checks its rows and writes a shard."""

    def __init__(self, plan: ImportPlan) -> None:
        self._plan = plan
        self._schema = schema.token_schema(plan.obs_kinds)

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        plan = self._plan
        if storage.stamp(unit.uri).version != unit.version:
            raise InputError(unit.uri, "a source may not change while it is read", "another version", "Run again.")
        optional = (plan.cell_id, plan.n_counts, schema.LENGTH if schema.LENGTH in plan.dataset.columns.names else None)
        columns = dict.fromkeys([schema.INPUT_IDS, *filter(None, optional), *plan.obs_kinds])
        part = open_part(self._schema)
        for start in range(unit.start, unit.stop, _READ_CELLS):
            stop = min(start + _READ_CELLS, unit.stop)
            self._write(plan.dataset.read(start, stop, list(columns)), start, part)

    def _write(self, cells: pa.Table, start: int, part: PartWriter) -> None:
        """Check some rows, write those with a gene and count the others."""
        plan, layout = self._plan, self._plan.vocabulary.layout(self._plan.input_size)
        rows = check_rows(cells, start, plan.vocabulary, layout, plan.dataset.uri)
        table = self._table(cells, start, rows.input_ids, rows.offsets)
        special = layout.input_size - layout.max_genes
        kept = rows.lengths > special
        part.counts["dropped_no_gene"] += int((~kept).sum())
        part.counts["truncated"] += int((rows.lengths == layout.input_size).sum())
        part.counts["tokens"] += int(rows.lengths[kept].sum())
        part.write(table if kept.all() else table.filter(pa.array(kept)))

    def _table(self, cells: pa.Table, start: int, ids: NDArray[np.uint16], offsets: NDArray[np.int64]) -> pa.Table:
        """Return rows as a corpus has them."""
        plan, n = self._plan, cells.num_rows
        numbers = pa.array(np.arange(start, start + n))
        names = numbers if plan.cell_id is None else cells[plan.cell_id]
        if names.null_count:
            raise InputError(plan.dataset.uri, f"every cell needs a name in {plan.cell_id!r}", "none", "Fill it.")
        totals = pa.array(np.full(n, np.nan)) if plan.n_counts is None else _numbers(plan, cells[plan.n_counts])
        columns = [
            pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids)),
            pa.array(np.diff(offsets).astype(np.int32)),
            names.cast(pa.string()),
            totals,
            numbers,
            *(cells[name].cast(schema.OBS_TYPES[kind]) for name, kind in plan.obs_kinds.items()),
        ]
        return pa.table(columns, schema=self._schema)


def _numbers(plan: ImportPlan, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return total counts as numbers; missing ones are NaN."""
    try:
        return column.cast(pa.float64()).fill_null(np.nan)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(
            plan.dataset.uri,
            f"column {plan.n_counts!r} must hold numbers",
            f"{column.type} values",
            "Correct --n-counts-column.",
        ) from None


def _manifest(plan: ImportPlan, request: str, output: str, parts: Sequence[PartRecord]) -> CorpusManifest:
    """Account for all rows."""
    genes, kept = len(plan.vocabulary.genes), sum(part.rows for part in parts)
    dropped = sum(part.counts["dropped_no_gene"] for part in parts)
    assert kept + dropped == plan.dataset.rows, "cells lost"
    source = SourceRecord(
        uri=plan.dataset.uri,
        format=FORMAT,
        matrix=schema.INPUT_IDS,
        size=plan.stamp.size,
        version=plan.stamp.version,
        cells=plan.dataset.rows,
        kept=kept,
        dropped={_NO_GENE: dropped},
        genes=GeneReport(ids_from="token ids", columns=genes, known=genes, summed=0, without_median=0, unknown=0),
        stored_zeros=0,
        warnings=(),
    )
    return CorpusManifest(
        request=request,
        parts=tuple(parts),
        software=schema.software_versions("pyarrow", "numpy"),
        encoding=Encoding(input_size=plan.input_size, special_tokens=dict(plan.vocabulary.special_tokens)),
        vocabulary_digest=plan.vocabulary.digest,
        obs_kinds=plan.obs_kinds,
        sources=(source,),
        repeated_names=repeated_names(output, parts),
        made_by="import of a dataset",
    )
