"""From the columns of a file to the genes of a vocabulary, and the report of what became of each column."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellray.data.sources.contract import CountSource
from cellray.errors import InputError, listing
from cellray.rank_value import UNKNOWN_GENE, ColumnGenes
from cellray.schema import GeneReport
from cellray.vocabulary import GeneVocabulary

ENSEMBL_COLUMN = "ensembl_id"
"""The var column the official tokenizer reads; taken before the index where it exists."""

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(?:\.\d+)?(?:_PAR_Y)?", re.IGNORECASE)
_TOO_FEW = 0.02  # below this share of known columns chance hits are all there is
_FEW = 0.2
_HUMAN = re.compile(r"ENSG\d{11}")


@dataclass(frozen=True)
class ColumnMapping:
    """The columns of one file in terms of a vocabulary.

    Attributes
    ----------
    genes
        Token and median of each column.
    repeated
        Whether some token has several columns, whose counts must then be summed.
    report
        What became of the columns.
    """

    genes: ColumnGenes
    repeated: bool
    report: GeneReport


def is_ensembl(name: str) -> bool:
    """Tell whether a name is an Ensembl gene ID of any species, with or without a version."""
    return _ENSEMBL.fullmatch(name.strip()) is not None


def normalise_gene_id(name: str) -> str:
    """Strip blanks; of an Ensembl ID also the version, in upper case: ` ensg00000141510.17` is `ENSG00000141510`."""
    match = _ENSEMBL.fullmatch(name.strip())
    return match[1].upper() if match else name.strip()


def column_names(source: CountSource, gene_ids: str | None) -> tuple[list[str], str]:
    """Return the names of a file's columns and where they were found.

    Parameters
    ----------
    source
        An open file.
    gene_ids
        A var column, `index`, or None: var column `ensembl_id` if there is one, else the index.

    Raises
    ------
    InputError
        The file lacks that column.
    """
    var = source.var()
    if len(var) != source.n_columns:  # compiled code looks columns up in what is made of these names
        found = f"{len(var):,} for {source.n_columns:,}"
        raise InputError(
            source.uri, "var must have a row for each column", found, "The file is damaged: copy it again."
        )
    if gene_ids is None:
        gene_ids = ENSEMBL_COLUMN if ENSEMBL_COLUMN in var.columns else "index"
    if gene_ids == "index":
        return [str(name) for name in var.index], "var index"
    if gene_ids not in var.columns:
        raise InputError(
            source.uri,
            f"var must have the column {gene_ids!r}",
            f"columns {listing(var.columns)}",
            "Correct --gene-ids (a var column, or index).",
        )
    names = var[gene_ids].astype("string").fillna("")
    return [str(name) for name in names], f"var column {gene_ids!r}"


def map_columns(names: Sequence[str], ids_from: str, vocabulary: GeneVocabulary, uri: str) -> ColumnMapping:
    """Find the token of each column.

    A name is looked up as a gene id (Ensembl IDs without version, upper case; retired ids through the vocabulary's
    table) and then as a symbol through the vocabulary's table of symbols.

    Raises
    ------
    InputError
        No column is a gene of the vocabulary.
    """
    token_g = np.full(len(names), UNKNOWN_GENE, np.int32)
    without_median = 0
    told = Counter[str]()
    for column, name in enumerate(names):
        plain = name in vocabulary.medians and name not in vocabulary.retired_ids  # most are: no need to look closer
        gene, how = (name, "") if plain else known_name(name, vocabulary)
        if gene in vocabulary.medians:
            token_g[column] = vocabulary.genes[gene]
            told[how] += 1
        else:
            without_median += gene in vocabulary.genes
    found = token_g[token_g != UNKNOWN_GENE]
    if not len(found):
        raise _few_genes_known(names, 0, ids_from, vocabulary, uri)
    known = len(np.unique(found))
    if len(found) < _TOO_FEW * len(names):
        raise _few_genes_known(names, len(found), ids_from, vocabulary, uri)
    report = GeneReport(
        ids_from=ids_from,
        columns=len(names),
        known=known,
        summed=len(found) - known,
        without_median=without_median,
        unknown=len(names) - len(found) - without_median,
        versioned=told["versioned"],
        retired=told["retired"],
        by_symbol=told["by_symbol"],
    )
    return ColumnMapping(ColumnGenes(token_g, vocabulary.median_of_token[token_g]), known < len(found), report)


def known_name(name: str, vocabulary: GeneVocabulary) -> tuple[str, str]:
    """Return the vocabulary's name of a gene, or the name itself, and the counter of `GeneReport` it falls under."""
    gene = normalise_gene_id(name)
    how = "versioned" if len(gene) < len(name.strip()) else ""
    if gene in vocabulary.retired_ids:
        gene, how = vocabulary.retired_ids[gene], "retired"
    if gene not in vocabulary.genes and gene in vocabulary.symbols:
        gene, how = vocabulary.symbols[gene], "by_symbol"
    return gene, how


def vocabulary_genes(vocabulary: GeneVocabulary) -> ColumnGenes:
    """Return the genes of a matrix whose columns are the vocabulary's tokens themselves."""
    token_g = np.arange(len(vocabulary), dtype=np.int32)
    token_g[np.isnan(vocabulary.median_of_token)] = UNKNOWN_GENE
    return ColumnGenes(token_g, vocabulary.median_of_token)


def few_genes_warning(report: GeneReport) -> tuple[str, ...]:
    """Return a warning where much fewer columns are known than one expects of human genes."""
    found = report.known + report.summed
    if found >= _FEW * report.columns:
        return ()
    return (f"only {found:,} of {report.columns:,} columns are genes of the vocabulary: right species, right ids?",)


def _few_genes_known(
    names: Sequence[str], known: int, ids_from: str, vocabulary: GeneVocabulary, uri: str
) -> InputError:
    """Explain why hardly anything matched: another species, symbols without a table, or something else."""
    sample = f"{ids_from} with {listing(pd.unique(pd.Series(names, dtype=str))[:4])}"
    ensembl = [normalise_gene_id(name) for name in names if is_ensembl(name)]
    human_vocabulary = any(_HUMAN.fullmatch(gene) for gene in list(vocabulary.genes)[:100])
    if ensembl and human_vocabulary and not any(_HUMAN.fullmatch(gene) for gene in ensembl):
        fix = "These ids are of another species than the vocabulary's: map them to human orthologues first."
    elif not ensembl and vocabulary.id_type == "ensembl" and not vocabulary.symbols:
        fix = "The vocabulary has no table of symbols: name a var column of Ensembl IDs with --gene-ids."
    else:
        fix = "Name the var column that holds gene ids with --gene-ids, and check the species."
    example = next(iter(vocabulary.genes))
    rule = f"at least {_TOO_FEW:.0%} of the genes must be in the vocabulary (ids as {example})"
    return InputError(uri, rule, f"{known or 'none'} of {len(names):,}: {sample}", fix)
