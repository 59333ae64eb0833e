"""Which columns of a file count as genes when a cell's detected genes are counted.

Those of a vocabulary, those of a gene table (protein-coding and miRNA genes, by custom), those of both, or, without
either, all. Columns of one gene count once. Knows nothing of counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellray import storage
from cellray.data import gene_ids
from cellray.data.medians.gene_tables import GeneTables, read_gene_tables
from cellray.data.plan import read_mapping
from cellray.data.sources.contract import CountSource
from cellray.errors import InputError, listing
from cellray.schema import GeneReport
from cellray.vocabulary import GeneVocabulary

EVERY_COLUMN = (
    "every column counts as a gene, those of lncRNA or antibodies too: name the genes with --gene-table (and "
    "--gene-types) or --vocabulary"
)


@dataclass(frozen=True)
class GeneChoice:
    """What the user says about which columns are genes.

    Attributes
    ----------
    vocabulary
        Its genes count; None: whatever the table says.
    wanted
        Genes of the table that count; None without a table.
    symbols
        Symbol to gene, of the table.
    """

    vocabulary: GeneVocabulary | None = None
    wanted: frozenset[str] | None = None
    symbols: Mapping[str, str] | None = None

    @classmethod
    def read(cls, vocabulary: str | None, gene_table: str | None, gene_types: tuple[str, ...]) -> "GeneChoice":
        """Read the files of a request.

        Raises
        ------
        InputError
            One is missing or not what it should be, or the table has no gene of a wanted type.
        """
        known = None if vocabulary is None else GeneVocabulary.load(vocabulary)
        tables = GeneTables() if gene_table is None else read_gene_tables(gene_table, gene_types, None)
        return cls(known, tables.wanted, tables.symbols)

    @property
    def every_column(self) -> bool:
        """Whether nothing was said."""
        return self.vocabulary is None and self.wanted is None

    @property
    def vocabulary_digest(self) -> str | None:
        """Digest of all that the vocabulary decides."""
        return None if self.vocabulary is None else self.vocabulary.full_digest

    @property
    def table_digest(self) -> str | None:
        """Digest of all that the table decides."""
        return None if self.wanted is None else storage.sha256_json([sorted(self.wanted), dict(self.symbols or {})])

    def is_wanted(self, gene: str) -> bool:
        """Tell whether a gene of the vocabulary, or a name without blanks and version, is one of the table's."""
        return self.wanted is None or (self.symbols or {}).get(gene, gene) in self.wanted


@dataclass(frozen=True)
class CountedGenes:
    """The genes of one file.

    Attributes
    ----------
    target_g
        Number of the gene that each column counts for, below zero: none. Shape (columns,).
    n_targets
        Above all these numbers.
    report
        What the vocabulary made of the columns; None without one.
    """

    target_g: NDArray[np.int32]
    n_targets: int
    report: GeneReport | None = None

    @property
    def n_genes(self) -> int:
        """How many genes can be detected."""
        return len(np.unique(self.target_g[self.target_g >= 0]))

    @property
    def repeated(self) -> bool:
        """Whether several columns count for one gene."""
        return self.n_genes < int((self.target_g >= 0).sum())


def counted_genes(
    source: CountSource, version: str, choice: GeneChoice, matrix: str, column: str | None
) -> CountedGenes:
    """Find the genes of an open file.

    Parameters
    ----------
    source
        The file.
    version
        As `cellray.storage.stamp` gives it.
    choice
        What counts.
    matrix, column
        Where counts and gene ids are, as in `QualityConfig`.

    Raises
    ------
    InputError
        No column is a gene of the vocabulary, or of the table.
    """
    if choice.every_column:
        return CountedGenes(np.arange(source.n_columns, dtype=np.int32), source.n_columns)
    if choice.vocabulary is None:
        names, told_by = gene_ids.column_names(source, column)
        number: dict[str, int] = {}
        genes = [(choice.symbols or {}).get(name, name) for name in map(gene_ids.normalise_gene_id, names)]
        target_g = np.array([number.setdefault(g, len(number)) if choice.is_wanted(g) else -1 for g in genes], np.int32)
        found, report = CountedGenes(target_g, len(number)), None
    else:
        mapping = read_mapping(source.uri, version, matrix, column, choice.vocabulary)
        told_by, report = mapping.report.ids_from, mapping.report
        names = list(choice.vocabulary.genes)
        found = CountedGenes(_of_both(mapping.genes.token_g, choice), len(choice.vocabulary), report)
    if not found.n_genes:
        raise InputError(
            source.uri,
            "some column must be a gene of the gene table",
            f"none; {told_by} with {listing(names[:4])}",
            "Check --gene-table, and name the var column of gene ids with --gene-ids.",
        )
    return found


def _of_both(token_g: NDArray[np.int32], choice: GeneChoice) -> NDArray[np.int32]:
    """Return the token of each column where the table wants its gene, else -1."""
    assert choice.vocabulary is not None
    if choice.wanted is None:
        return token_g
    # the table may name genes by ids that the vocabulary knows as retired
    current = frozenset(choice.vocabulary.retired_ids.get(gene, gene) for gene in choice.wanted)
    table = GeneChoice(wanted=current | choice.wanted, symbols=choice.symbols)
    tokens = [token for gene, token in choice.vocabulary.genes.items() if table.is_wanted(gene)]
    return np.where(np.isin(token_g, tokens), token_g, -1).astype(np.int32)
