"""Which columns of a file are mitochondrial genes: told by Ensembl IDs, by symbols, or by names the user gives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.data.gene_ids import normalise_gene_id

PREFIX = "mt-"
"""How symbols of mitochondrial genes begin, in lower case: `MT-ND1` (human), `mt-Nd1` (mouse)."""

_HUMAN_NUMBERS = (
    *(198695, 198712, 198727, 198763, 198786, 198804, 198840, 198886, 198888, 198899, 198938, 212907, 228253),
    *(211459, 210082),
    *(209082, 210049, 210077, 210100, 210107, 210112, 210117, 210127, 210135, 210140, 210144),
    *(210151, 210154, 210156, 210164, 210174, 210176, 210184, 210191, 210194, 210195, 210196),
)
HUMAN = frozenset(f"ENSG{number:011d}" for number in _HUMAN_NUMBERS)
"""The 37 genes of the human mitochondrial chromosome: 13 proteins, 2 ribosomal RNAs, 22 transfer RNAs (Ensembl)."""


@dataclass(frozen=True)
class MitochondrialColumns:
    """The mitochondrial genes of one file.

    Attributes
    ----------
    mask_g
        Which columns they are. Shape (columns,).
    found_by
        How they were told, for people.
    """

    mask_g: NDArray[np.bool_]
    found_by: str

    @property
    def n_genes(self) -> int:
        """How many columns are mitochondrial genes."""
        return int(self.mask_g.sum())


def find_mitochondrial(var: pd.DataFrame, names: Sequence[str] = ()) -> MitochondrialColumns:
    """Find the mitochondrial genes of a file.

    The index and every text column of var are looked through, and the one with most hits decides (the earlier of
    equals, the index first), so that one odd column cannot add genes to those of a sound one.

    Parameters
    ----------
    var
        Table of the file's columns.
    names
        Gene ids or symbols of the mitochondrial genes; if empty, the human Ensembl IDs and symbols in `MT-`.
    """
    best = MitochondrialColumns(np.zeros(len(var), bool), "no column of var names one")
    wanted = frozenset(normalise_gene_id(name) for name in names)
    for where, values in _texts(var):
        genes = [normalise_gene_id(value) for value in values]
        for what, mask in _hits(genes, wanted):
            if mask.sum() > best.n_genes:
                best = MitochondrialColumns(mask, f"{what} in {where}")
    return best


def _hits(genes: list[str], wanted: frozenset[str]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield each way of telling, and the columns it finds."""
    if wanted:
        yield "--mito-genes", np.array([gene in wanted for gene in genes], bool)
        return
    yield "human Ensembl IDs", np.array([gene in HUMAN for gene in genes], bool)
    yield "symbols in MT-", np.array([gene.lower().startswith(PREFIX) for gene in genes], bool)


def _texts(var: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """Yield the index and the text columns."""
    yield "var index", [str(name) for name in var.index]
    for column in var.columns:
        values = var[column]
        kind = values.cat.categories.dtype if isinstance(values.dtype, pd.CategoricalDtype) else values.dtype
        if pd.api.types.is_object_dtype(kind) or pd.api.types.is_string_dtype(kind):
            yield f"var column {column!r}", [str(value) for value in values]
