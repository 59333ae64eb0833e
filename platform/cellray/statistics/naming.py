"""Perturbations by name: their digests, the columns `Gene` and `Gene_name` of the official tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.shift_schema import GROUP_MARK

CALLED = "Perturbation_name"
"""Column of the names that the user gave."""


def gene_digests(genes: Sequence[str]) -> NDArray[np.uint64]:
    """Return a 64-bit digest of each name, the same in every run."""
    return np.asarray(pd.util.hash_array(np.array(genes, object), categorize=False), np.uint64)


def name_digests(names: Sequence[str]) -> NDArray[np.uint64]:
    """Return a 64-bit digest of each cell's name; two of a million cells agree with probability 3e-8."""
    return gene_digests(names)


@dataclass(frozen=True)
class GeneNames:
    """What genes are called.

    Attributes
    ----------
    tokens
        Ensembl ID to token id.
    symbols
        Ensembl ID to symbol.
    perturbations
        Genes, joined, to what the user called their perturbation.
    """

    tokens: Mapping[str, int] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)
    perturbations: Mapping[str, str] = field(default_factory=dict)

    def columns(self, perturbations: "pd.Series[str]") -> tuple[list[str | None], list[str | None]]:
        """Return token ids and symbols, as text, of genes or of groups of genes; None where unknown."""
        of_token = {gene: str(token) for gene, token in self.tokens.items()}
        return _translated(perturbations, of_token), _translated(perturbations, self.symbols)

    def put_before(self, table: pd.DataFrame, column: str, token: str, symbol: str) -> pd.DataFrame:
        """Return a table with the columns of token ids and of symbols in front of that of Ensembl IDs."""
        tokens, symbols = self.columns(table[column])
        place = table.columns.get_loc(column)
        assert isinstance(place, int)
        table = table.copy()
        table.insert(place, symbol, pd.Series(symbols, table.index, "string"))
        table.insert(place, token, pd.Series(tokens, table.index, "string"))
        return table

    def called(self, table: pd.DataFrame, column: str) -> pd.DataFrame:
        """Return a table with what the user called the perturbations of a column, if that is known, in front of it."""
        if not self.perturbations:
            return table
        names = table[column].map(self.perturbations).astype("string")
        before = list(table).index(column)
        return pd.concat([table.iloc[:, :before], names.rename(CALLED), table.iloc[:, before:]], axis=1)


def _translated(perturbations: "pd.Series[str]", names: Mapping[str, str]) -> list[str | None]:
    """Translate each gene of each perturbation; a group with an unknown gene has no name."""
    once = {text: _translate(text, names) for text in perturbations.unique()}
    return [once[text] for text in perturbations]


def _translate(text: str, names: Mapping[str, str]) -> str | None:
    found = [names.get(gene) for gene in text.split(GROUP_MARK)]
    return None if None in found else GROUP_MARK.join(map(str, found))
