"""From files of counts to a gene vocabulary: nonzero medians, the one corpus-wide statistic of rank value encoding.

By a sketch (see `cellray.data.medians.sketch`) for any number of cells, or exactly for as many values as fit in memory.
Sources are opened, cut into units, mapped on Ray; what each unit found is merged.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from cellray.config import JobConfig
from cellray.data.medians.gene_tables import GeneTables, read_gene_tables
from cellray.data.medians.made_before import request_of
from cellray.data.medians.measure import MAX_VALUES, BadFiles, Measured, exact, sketched
from cellray.data.medians.sketch import ACCURACY
from cellray.data.medians.sources import Plan, ReadOptions, counted, open_sources, plan_sources
from cellray.data.medians.symbols import MergedSymbols
from cellray.data.quality.table import QualityTable
from cellray.data.session import ensure_ray, plain_errors
from cellray.data.sources.locate import expand_sources
from cellray.errors import InputError, combined, listing
from cellray.schema import FailedSource
from cellray.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)

FEW_CELLS = 10
"""A median of fewer cells than this says little; such genes are counted in the report."""


_NO_SYMBOLS = "--gene-table gives them"


class MedianConfig(JobConfig):
    """How to measure nonzero medians of a corpus of counts."""

    source: tuple[str, ...] = Field(
        (), description="files of raw counts, folders, globs or lists (.txt) of them, local or s3://, comma-separated"
    )
    matrix: str = Field("X", description="where the raw counts are: X, raw or layers/NAME")
    gene_ids: str | None = Field(
        None, description="var column with the gene ids, or index; default: ensembl_id if there is one, else index"
    )
    n_counts_column: str | None = Field(
        None, description="obs column with each cell's total count; default: the sum over all columns of the matrix"
    )
    generation: Literal["v1", "v2"] = Field(
        "v1", description="special tokens and input size: v1 (<pad>, <mask>; 2,048) or v2 (and <cls>, <eos>; 4,096)"
    )
    input_size: int | None = Field(None, gt=4, description="tokens of a row, default: the generation's [tokens]")
    quality: str | None = Field(
        None, description="directory of jobs.quality_control: its verdicts stand for the obs column filter_pass"
    )
    gene_table: str | None = Field(
        None,
        description="table (.csv, .tsv, .parquet) of the genes to keep, with a column of gene ids and, if it has them, "
        "of gene types and symbols, as BioMart exports it; default: all genes",
    )
    gene_types: tuple[str, ...] = Field(
        (), description="types of the gene table to keep, comma-separated, as protein_coding,miRNA; default: all"
    )
    retired_ids: str | None = Field(
        None, description="table (.csv, .tsv, .parquet, .json, Geneformer's .pkl) of old and new gene ids"
    )
    exact: bool = Field(
        False,
        description=f"hold all values (at most {MAX_VALUES:,}) and take exact medians, in place of a sketch whose "
        f"error is at most {ACCURACY:.2%}",
    )
    on_bad_file: Literal["fail", "skip"] = Field(
        "fail", description="what a file that breaks a rule does: fail the job, or be left out and reported"
    )
    workers: int | None = Field(None, ge=1, description="most tasks at the same time, default: what the cluster has")

    @model_validator(mode="after")
    def _types_need_a_table(self) -> "MedianConfig":
        if self.gene_types and self.gene_table is None:
            raise ValueError("--gene-types needs --gene-table")
        return self


@plain_errors()
def build_vocabulary(config: MedianConfig) -> GeneVocabulary:
    """Measure the nonzero median of every gene over all sources and give each a token.

    The median of x / n_counts * 10,000 over the cells with x > 0 (Theodoris et al. 2023, Methods); columns of one gene
    are summed first; genes never seen get no token. Symbols are the gene table's, else those that the files tell beside
    their Ensembl IDs. Cells with `filter_pass` other than 1, or with `quality` those that
    it does not let pass, are left out; with `on_bad_file` `skip` so are bad files, whole. The result is the same for
    any number of workers. What was read and left out stands in the vocabulary's `origin`.

    Raises
    ------
    InputError
        A table breaks a rule; a source does and `on_bad_file` is `fail`, or no source is sound; the sources use
        different kinds of gene ids; no gene is left; or there are more values than `exact` can hold.
    """
    uris = expand_sources(config.source)
    tables = read_gene_tables(config.gene_table, config.gene_types, config.retired_ids)
    quality = QualityTable.open(config.quality) if config.quality else None
    options = ReadOptions(
        config.matrix, config.gene_ids, config.n_counts_column, quality, skip=config.on_bad_file == "skip"
    )
    plan, failed, measured = _measure(config, uris, options, tables)
    error = 0.0 if config.exact else ACCURACY
    medians = dict(zip(plan.genes, measured.median_g.tolist(), strict=True))
    seen = {name: median for name, median in medians.items() if not np.isnan(median)}
    if not seen:
        found = "none; cells left out: " + counted(measured.left_out)
        raise InputError(listing(uris), "some count of a gene must be above zero", found, "Check the files.")
    vocabulary = GeneVocabulary.from_medians(seen, config.generation, plan.kind, config.input_size)
    symbols = MergedSymbols(tables.symbols, found_in=("--gene-table",)) if tables.symbols else plan.symbols()
    return replace(
        vocabulary,
        symbols={symbol: gene for symbol, gene in sorted(symbols.gene_of.items()) if gene in seen},
        retired_ids={old: new for old, new in sorted(tables.retired_ids.items()) if new in seen},
        origin={"request": request_of(config), **_origin(plan, failed, measured, tables, error), **_told(symbols)},
    )


def _measure(
    config: MedianConfig, uris: Sequence[str], options: ReadOptions, tables: GeneTables
) -> tuple[Plan, list[FailedSource], Measured]:
    """Measure all sources. If some turn out to be bad on the way and may be left out, measure again without them."""
    sources, failed = open_sources(uris, options, tables)
    ensure_ray()
    while True:
        plan = plan_sources(sources)
        try:
            return plan, failed, (exact if config.exact else sketched)(plan, options, config.workers)
        except BadFiles as bad:
            logger.warning("%d files turned out to be bad; measuring again without them", len(bad.errors))
            sources = [source for source in sources if source.uri not in bad.errors]
            failed += [FailedSource(uri=uri, error=str(error)) for uri, error in sorted(bad.errors.items())]
            if not sources:
                raise combined(list(bad.errors.values())) from None


def describe_origin(vocabulary: GeneVocabulary) -> str:
    """Tell in a few lines how a vocabulary's medians were measured; '' if that is unknown."""
    o = vocabulary.origin
    if not o:
        return ""
    how = f"sketched, error at most {o['largest_error']:.2%}" if o["largest_error"] else "exact"
    lines = (
        f"medians: {how}; files: {o['files']:,}, cells: {o['cells']:,}, "
        f"nonzero values: {o['values']:,}, genes seen in fewer than {FEW_CELLS} cells: {o['genes_of_few_cells']:,}",
        f"cells left out: {counted(Counter(o['cells_left_out']))}",
        f"columns left out, over all files: {counted(Counter(o['columns_left_out']))}; "
        f"retired ids replaced: {o['columns_replaced']:,}; "
        f"genes of no cell, which get no token: {o['genes_never_seen']:,}",
        *_symbols_line(vocabulary),
    )
    left_out = [f"left out, {source['error']}" for source in o.get("failed", ())]
    return "\n".join([*lines, *left_out])


def _symbols_line(vocabulary: GeneVocabulary) -> list[str]:
    """Tell how many genes have a symbol and where it is from; nothing where the ids are symbols."""
    if vocabulary.id_type == "symbol":
        return []
    o = vocabulary.origin
    if not vocabulary.symbols:
        earlier = "symbols_from" not in o
        return [f"no symbols: {'made before files were asked for them; make it anew' if earlier else _NO_SYMBOLS}"]
    notes = {
        "symbols of several genes left out": o.get("symbols_shared", 0),
        "genes with other symbols besides, left out": o.get("symbols_renamed", 0),
    }
    told = [f"{n:,} {what}" for what, n in notes.items() if n]
    genes = len(set(vocabulary.symbols.values()))
    return ["; ".join([f"symbols: {genes:,} genes, from {', '.join(o.get('symbols_from', ['--gene-table']))}", *told])]


def _told(symbols: MergedSymbols) -> dict[str, Any]:
    """Say where symbols are from and which were left out."""
    return {
        "symbols_from": list(symbols.found_in),
        "symbols_shared": symbols.shared,
        "symbols_renamed": symbols.renamed,
    }


def _origin(
    plan: Plan, failed: Sequence[FailedSource], measured: Measured, tables: GeneTables, largest_error: float
) -> dict[str, Any]:
    """Say how the medians came about; nothing here depends on the number of workers."""
    few = (measured.n_values_g > 0) & (measured.n_values_g < FEW_CELLS)
    return {
        "method": "ddsketch" if largest_error else "exact",
        "largest_error": largest_error,
        "files": len(plan.sources),
        "failed": [source.model_dump() for source in sorted(failed, key=lambda source: source.uri)],
        "cells": plan.n_cells,
        "cells_left_out": dict(sorted(measured.left_out.items())),
        "values": measured.tally["values"],
        "genes_of_few_cells": int(few.sum()),
        "genes_never_seen": int((measured.n_values_g == 0).sum()),
        "columns_left_out": dict(sorted(sum((s.left_out for s in plan.sources), Counter[str]()).items())),
        "columns_replaced": sum(source.replaced for source in plan.sources),
        "genes_wanted": len(tables.wanted) if tables.wanted is not None else None,
    }
