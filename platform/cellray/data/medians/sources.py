"""The sources of a vocabulary before their counts are read: which gene each column is, and the work cut into units.

Runs a Ray task for each source, of which only the table of columns is read. Knows nothing of how medians are measured.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cellray.data import gene_ids
from cellray.data.medians.gene_tables import GeneTables
from cellray.data.medians.symbols import NO_SYMBOLS, FileSymbols, MergedSymbols, file_symbols, merge_symbols
from cellray.data.plan import look_at_all, sift
from cellray.data.quality.table import QualityTable
from cellray.data.sources.contract import open_source, require_obs, stamp_of
from cellray.errors import InputError
from cellray.schema import FailedSource
from cellray.vocabulary import IdType

NO_NAME, NO_ENSEMBL_ID = "no name", "no Ensembl ID"
NOT_LISTED, OTHER_TYPE = "not in the gene table", "a gene of another type"
"""Why a column is left out."""

MOST_UNIT_CELLS = 32_768
"""Most cells of a unit: what is read again when a worker is lost."""
_LEAST_UNIT_CELLS = 1024
_UNITS_PER_CPU = 2
_MOST_PIECES = 256


@dataclass(frozen=True)
class ReadOptions:
    """Which parts of a source are read, and whether bad ones are left out; see `MedianConfig` of the same package."""

    matrix: str
    gene_ids: str | None
    n_counts_column: str | None
    quality: QualityTable | None = None
    skip: bool = False


@dataclass(frozen=True)
class OpenedSource:
    """What is known of a source before its counts are read.

    Attributes
    ----------
    genes
        Gene of each column, '' where it is left out.
    kind
        What its gene ids are.
    left_out
        Number of columns left out, by reason.
    replaced
        Columns whose id was a retired one.
    symbols
        Symbols of its columns, where ids are Ensembl IDs and the file tells them.
    """

    uri: str
    version: str
    n_cells: int
    genes: tuple[str, ...]
    kind: IdType
    left_out: Counter[str]
    replaced: int
    symbols: FileSymbols = NO_SYMBOLS


@dataclass(frozen=True)
class Piece:
    """Rows `start .. stop` of a source; `columns` numbers the table that tells the gene of each column."""

    uri: str
    version: str
    start: int
    stop: int
    columns: int
    repeated: bool


Unit = tuple[Piece, ...]
"""Cells that one task reads."""


@dataclass(frozen=True)
class Plan:
    """All sources on one axis of genes.

    Attributes
    ----------
    genes
        The genes of all sources.
    columns
        Distinct tables from columns to genes, below zero: left out. Each of shape (columns,), int32.
    """

    sources: tuple[OpenedSource, ...]
    genes: tuple[str, ...]
    kind: IdType
    columns: tuple[NDArray[np.int32], ...]
    table_of_source: tuple[int, ...]

    @property
    def n_cells(self) -> int:
        """Cells of all sources."""
        return sum(source.n_cells for source in self.sources)

    def symbols(self) -> MergedSymbols:
        """Return the symbols that the sources tell of their genes."""
        return merge_symbols((source.genes, source.symbols) for source in self.sources)

    def units(self, cpus: int) -> list[Unit]:
        """Cut the sources into units, at least two for each CPU where there are cells enough.

        Small files go together into one. What is measured does not depend on the cut.
        """
        wanted = -(-self.n_cells // (_UNITS_PER_CPU * max(1, cpus)))
        most = min(MOST_UNIT_CELLS, max(_LEAST_UNIT_CELLS, wanted))
        units: list[Unit] = []
        unit: list[Piece] = []
        for piece in self._pieces(most):
            if unit and (
                sum(p.stop - p.start for p in unit) + piece.stop - piece.start > most or len(unit) == _MOST_PIECES
            ):
                units.append(tuple(unit))
                unit = []
            unit.append(piece)
        return [*units, tuple(unit)]

    def _pieces(self, most: int) -> Iterator[Piece]:
        repeated = [len(np.unique(table[table >= 0])) < int((table >= 0).sum()) for table in self.columns]
        for source, table in zip(self.sources, self.table_of_source, strict=True):
            for start in range(0, source.n_cells, most):
                stop = min(start + most, source.n_cells)
                yield Piece(source.uri, source.version, start, stop, table, repeated[table])


def open_sources(
    uris: Sequence[str], options: ReadOptions, tables: GeneTables
) -> tuple[list[OpenedSource], list[FailedSource]]:
    """Read the tables of columns of all sources; return the sound ones and, with `options.skip`, the bad ones.

    Raises
    ------
    InputError
        Sources break a rule (all of them are named), and are not to be left out or none is sound.
    """
    describe = partial(_describe, options=options, tables=tables)
    return sift(uris, look_at_all(describe, uris), "skip" if options.skip else "fail")


def plan_sources(sources: Sequence[OpenedSource]) -> Plan:
    """Put the genes of all sources on one axis.

    Raises
    ------
    InputError
        No gene is left, or the sources use different kinds of gene ids.
    """
    kinds = {source.kind for source in sources}
    if len(kinds) > 1:
        found = str({source.uri: source.kind for source in sources[:20]})
        fix = "Use --gene-ids, or give a --gene-table with symbols."
        raise InputError("--source", "all sources must use one kind of gene id", found, fix)
    number: dict[str, int] = {}
    table_of: dict[tuple[str, ...], int] = {}
    columns: list[NDArray[np.int32]] = []
    for source in sources:
        if source.genes not in table_of:
            table_of[source.genes] = len(columns)
            columns.append(np.array([number.setdefault(g, len(number)) if g else -1 for g in source.genes], np.int32))
    if not number:
        left_out = sum((source.left_out for source in sources), Counter[str]())
        found = "none; columns left out: " + counted(left_out)
        raise InputError("--source", "some gene must be left", found, "Check --gene-ids and --gene-table.")
    tables = tuple(table_of[source.genes] for source in sources)
    return Plan(tuple(sources), tuple(number), kinds.pop(), tuple(columns), tables)


def counted(reasons: Counter[str]) -> str:
    """Render counts by reason, the largest first."""
    return ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()) or "none"


def _describe(uri: str, options: ReadOptions, tables: GeneTables) -> OpenedSource:
    """Open a source and find the gene of each column."""
    with open_source(uri, options.matrix) as source:
        if source.n_cells == 0:
            raise InputError(uri, "a source needs at least one cell", "none", "Leave it out.")
        if options.n_counts_column:
            require_obs(source, [options.n_counts_column])
        names, ids_from = gene_ids.column_names(source, options.gene_ids)
        version = stamp_of(uri).version
        genes, kind, left_out, replaced = _genes(names, tables)
        left_out.update(source.left_out)  # adds up: features of other types are no columns
        symbols = file_symbols(source.var(), ids_from) if kind == "ensembl" else NO_SYMBOLS
        return OpenedSource(uri, version, source.n_cells, tuple(genes), kind, left_out, replaced, symbols)


def _genes(names: Sequence[str], tables: GeneTables) -> tuple[list[str], IdType, Counter[str], int]:
    """Return each column's gene ('' where it is left out), the kind of ids, what was left out, how many were replaced.

    Names are looked up as tokenization will do it: retired ids first, then symbols.
    """
    plain = [gene_ids.normalise_gene_id(name) for name in names]
    genes = [tables.retired_ids.get(name, name) for name in plain]
    replaced = sum(name != gene for name, gene in zip(plain, genes, strict=True))
    genes = [tables.symbols.get(gene, gene) for gene in genes]
    ensembl = [gene_ids.is_ensembl(gene) for gene in genes]
    kind: IdType = "ensembl" if 2 * sum(ensembl) >= sum(bool(gene) for gene in genes) else "symbol"
    left_out: Counter[str] = Counter()
    for column, gene in enumerate(genes):
        reason = _reason(gene, tables, needs_ensembl=kind == "ensembl" and not ensembl[column])
        if reason:
            left_out[reason] += 1
            genes[column] = ""
    return genes, kind, left_out, replaced


def _reason(gene: str, tables: GeneTables, *, needs_ensembl: bool) -> str:
    """Return why a gene is left out, '' if it is not."""
    if not gene:
        return NO_NAME
    if needs_ensembl:
        return NO_ENSEMBL_ID
    if tables.listed is None or tables.wanted is None or gene in tables.wanted:
        return ""
    return OTHER_TYPE if gene in tables.listed else NOT_LISTED
