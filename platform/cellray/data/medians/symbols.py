"""Symbols of genes as files of counts tell them: found beside the gene ids, put together over all files.

Knows tables of columns (var) and nothing of counts. Symbols of a user's own table outweigh these.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from cellray.data.gene_ids import is_ensembl
from cellray.data.medians.gene_tables import SYMBOL_COLUMNS, find_column

VAR_INDEX = "var index"
"""What `cellray.data.gene_ids.column_names` calls the index."""
_FILE_COLUMNS = (*SYMBOL_COLUMNS, "feature_name", "gene_symbols", "gene_names", "symbols", "hgnc")
"""Var columns looked for, as scanpy, 10x and CELLxGENE name them; case, blanks and underscores do not matter."""


@dataclass(frozen=True)
class FileSymbols:
    """Symbols of one file.

    Attributes
    ----------
    names
        Symbol of each column, '' where unknown; empty where the file has none.
    found_in
        Where they stood, as `var index`; '' where the file has none.
    """

    names: tuple[str, ...] = ()
    found_in: str = ""


NO_SYMBOLS = FileSymbols()


@dataclass(frozen=True)
class MergedSymbols:
    """Symbols of all files.

    Attributes
    ----------
    gene_of
        Symbol to gene id, one symbol a gene, in the order of symbols.
    shared
        Symbols left out since several genes bear them.
    renamed
        Genes that bear several symbols, of which the one in most columns was taken.
    found_in
        Where they stood, sorted.
    """

    gene_of: Mapping[str, str] = field(default_factory=dict)
    shared: int = 0
    renamed: int = 0
    found_in: tuple[str, ...] = ()


def file_symbols(var: pd.DataFrame, ids_from: str) -> FileSymbols:
    """Find the symbols of a file's columns: in the index where ids are from a column, else in a column of usual name.

    Parameters
    ----------
    var
        A row for each column of the counts.
    ids_from
        Where the gene ids are from, as `cellray.data.gene_ids.column_names` tells it.
    """
    if ids_from != VAR_INDEX:
        names = [str(name).strip() for name in var.index]
        if 2 * sum(map(_may_be_symbol, names)) > len(names):  # else row numbers, or ids once more
            return FileSymbols(tuple(names), VAR_INDEX)
    column = find_column(var, _FILE_COLUMNS)
    told = f"var column {column!r}"
    if column is None or told == ids_from:
        return NO_SYMBOLS
    return FileSymbols(tuple(var[column].astype("string").fillna("").str.strip()), told)


def merge_symbols(files: Iterable[tuple[Sequence[str], FileSymbols]]) -> MergedSymbols:
    """Put together what files say of their genes.

    As in a user's table, a symbol of several genes means none of them. A gene of several symbols keeps the one that
    most columns bear, of equals the first in the alphabet. The order of the files does not matter.

    Parameters
    ----------
    files
        Gene of each column ('' where it is left out) and the symbols of the columns.
    """
    # files of one study share their tables: each distinct table is walked once
    tables = Counter((tuple(genes), symbols) for genes, symbols in files if symbols.found_in)
    times: Counter[tuple[str, str]] = Counter()
    for (genes, symbols), n in tables.items():
        for gene, symbol in zip(genes, symbols.names, strict=True):
            if gene and _may_be_symbol(symbol):
                times[symbol, gene] += n
    bearers = Counter(symbol for symbol, _ in times)
    best: dict[str, tuple[int, str]] = {}
    for (symbol, gene), n in times.items():
        if bearers[symbol] == 1:
            best[gene] = min(best.get(gene, (0, "")), (-n, symbol))
    names = Counter(gene for symbol, gene in times if bearers[symbol] == 1)
    return MergedSymbols(
        gene_of=dict(sorted((symbol, gene) for gene, (_, symbol) in best.items())),
        shared=sum(n > 1 for n in bearers.values()),
        renamed=sum(n > 1 for n in names.values()),
        found_in=tuple(sorted({symbols.found_in for _, symbols in tables})),
    )


def _may_be_symbol(name: str) -> bool:
    """Tell whether a name may be a symbol: no Ensembl ID, no bare number, and there."""
    return any(map(str.isalpha, name)) and not is_ensembl(name)
