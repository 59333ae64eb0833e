"""Cells with their perturbed copies, and the columns of their shifts: of a screen's tables and of a server's answers.

Knows token rows, designs and measures. Models, corpora and files it does not know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.infer.design import Design
from cellray.infer.perturbed import Measures
from cellray.perturbation import ABSENT, Copies, Edit, perturb_cell, places
from cellray.shift_schema import INSERTED

_NOWHERE = np.iinfo(np.int32).max


@dataclass(frozen=True)
class PerturbedCell:
    """A cell, its perturbations and their copies.

    Attributes
    ----------
    row
        Of the cell in the caller's table.
    genes_n
        Its genes in rank order.
    number_p, token_pk
        Numbers and listed genes of the perturbations.
    copies
        Of those that apply.
    """

    row: int
    genes_n: NDArray[np.uint16]
    number_p: NDArray[np.int64]
    token_pk: NDArray[np.int32]
    copies: Sequence[Copies]

    @property
    def lost(self) -> int:
        """Number of perturbations that do not apply."""
        return len(self.number_p) - sum(len(each.numbers_p) for each in self.copies)


def perturbed_cell(
    row: int,
    genes_n: NDArray[np.uint16],
    design: Design,
    chunk: tuple[int, int],
    edit: Edit,
    capacity: int,
    tokens: int,
) -> PerturbedCell:
    """Return a cell with the copies of some of a design's perturbations.

    Parameters
    ----------
    row, genes_n
        See `PerturbedCell`.
    chunk
        First perturbation, and that before which to stop; see `Design.of_cell`.
    edit, capacity, tokens
        See `cellray.perturbation.perturb_cell`.
    """
    number_p, token_pk = design.of_cell(genes_n, *chunk)
    made = perturb_cell(genes_n, token_pk, edit, capacity, tokens)
    return PerturbedCell(row, genes_n, number_p, token_pk, [each for each in made if len(each.numbers_p)])


def best_ranks(cell: PerturbedCell, tokens: int) -> NDArray[np.int32]:
    """Return for each perturbation the best rank of its genes in the cell, `INSERTED` where it has none of them."""
    place_pk = places(cell.genes_n, cell.token_pk, tokens)
    best_p = np.where(place_pk == ABSENT, _NOWHERE, place_pk).min(axis=1)
    return np.where(best_p == _NOWHERE, INSERTED, best_p).astype(np.int32)


def shift_columns(
    cells: Sequence[PerturbedCell],
    ids: pa.Array | pa.ChunkedArray,
    found: Measures,
    titles: Sequence[Sequence[str]],
    tokens: int,
    names: Sequence[str] | None = None,
) -> list[pa.Array]:
    """Return the columns of `cellray.shift_schema.shift_schema` up to the shifts: a row a copy, cell by cell.

    Parameters
    ----------
    cells, ids
        That were perturbed, and what they are called.
    found
        What was measured of their copies.
    titles
        Of each perturbation of each cell.
    tokens
        Size of the vocabulary.
    names
        Of the perturbations, by their numbers, if they have any.
    """
    order = np.lexsort((found.number_r, found.cell_r))
    cell_r, place_r = found.cell_r[order], found.number_r[order]
    pairs = list(zip(cell_r.tolist(), place_r.tolist(), strict=True))
    ranks = [best_ranks(cell, tokens) for cell in cells]
    numbers = np.array([cells[c].number_p[p] for c, p in pairs], np.int32)
    return [
        ids.take(pa.array(cell_r)),
        pa.array(numbers),
        pa.array([titles[c][p] for c, p in pairs], pa.string()),
        *([] if names is None else [pa.array([names[number] for number in numbers], pa.string())]),
        pa.array(np.array([ranks[c][p] for c, p in pairs], np.int32)),
        pa.array(np.array([len(cell.genes_n) for cell in cells], np.int32)[cell_r]),
        pa.array(found.similarity_r[order]),
        *(pa.array(np.ascontiguousarray(found.shift_rs[order, s])) for s in range(found.shift_rs.shape[1])),
    ]
