"""Edits of token rows: genes deleted, moved to the front, or moved up or down by quartiles of rank.

Works on the genes of one cell in rank order, special tokens left out, and on many perturbations of it at once. Every
edit is index arithmetic: the listed genes are taken out and put back at their new ranks, or not at all. Knows no model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cellray.errors import InputError

NO_TOKEN = -1
"""Fills rows of `token_pk` where a perturbation has fewer genes than another."""
ABSENT = -1
"""Rank of a gene that the cell does not express."""
EDITED = -1
"""Source of a position that holds a listed gene: effects are measured on the other genes."""
QUARTILES = 4


@dataclass(frozen=True)
class Copies:
    """Perturbed copies of one cell's genes, all of one length.

    Attributes
    ----------
    numbers_p
        Which perturbations, as indices into what was asked for.
    tokens_pm
        Genes of each copy in their new order, uint16.
    sources_pm
        Rank each gene had in the cell, `EDITED` for the listed genes, int32.
    reference
        Genes of the unperturbed row that the copies are compared with: all of the cell's, or fewer where an insertion
        pushed the last ones out.
    """

    numbers_p: NDArray[np.int64]
    tokens_pm: NDArray[np.uint16]
    sources_pm: NDArray[np.int32]
    reference: int


class Edit(Protocol):
    """What happens to the listed genes of a cell.

    Attributes
    ----------
    inserts
        Whether a listed gene that the cell lacks is put in; else only cells that express all of them are perturbed.
    ordered
        Whether the order in which genes are listed matters.
    """

    inserts: ClassVar[bool]
    ordered: ClassVar[bool]

    def ranks(self, place_pk: NDArray[np.int32], genes: int) -> NDArray[np.int32] | None:
        """Return the new rank of each listed gene, distinct within a row, or None if they are gone.

        Parameters
        ----------
        place_pk
            Old ranks, `ABSENT` where the cell lacks the gene. Perturbations x listed genes, no gaps.
        genes
            Genes of the cell.
        """
        ...


@dataclass(frozen=True)
class Delete:
    """The genes are gone."""

    inserts: ClassVar[bool] = False
    ordered: ClassVar[bool] = False

    def ranks(self, place_pk: NDArray[np.int32], genes: int) -> None:
        """Give no ranks."""
        return


@dataclass(frozen=True)
class Overexpress:
    """The genes come first, in the given order."""

    inserts: ClassVar[bool] = True
    ordered: ClassVar[bool] = True

    def ranks(self, place_pk: NDArray[np.int32], genes: int) -> NDArray[np.int32]:
        """Return 0, 1, ... for each perturbation."""
        return np.broadcast_to(np.arange(place_pk.shape[1], dtype=np.int32), place_pk.shape)


@dataclass(frozen=True)
class Activate:
    """The genes move up by `steps` quartiles of rank, to the middle of that quartile, or to the front above the first.

    Quartile of rank i of N genes: 1 + floor(4 i / N). (The authors describe it and never released it.)
    """

    steps: int = 1
    inserts: ClassVar[bool] = False
    ordered: ClassVar[bool] = False

    def ranks(self, place_pk: NDArray[np.int32], genes: int) -> NDArray[np.int32]:
        """Return the new ranks; genes that meet stay in their old order."""
        target_pk = _quartile(place_pk, genes) - self.steps
        return _distinct(np.where(target_pk < 1, 0, _middle(target_pk, genes)), place_pk, genes)


@dataclass(frozen=True)
class Inhibit:
    """The genes move down by `steps` quartiles of rank, to the middle of that one, or to the end below the last."""

    steps: int = 1
    inserts: ClassVar[bool] = False
    ordered: ClassVar[bool] = False

    def ranks(self, place_pk: NDArray[np.int32], genes: int) -> NDArray[np.int32]:
        """Return the new ranks; genes that meet stay in their old order."""
        target_pk = _quartile(place_pk, genes) + self.steps
        return _distinct(np.where(target_pk > QUARTILES, genes - 1, _middle(target_pk, genes)), place_pk, genes)


def _quartile(place_pk: NDArray[np.int32], genes: int) -> NDArray[np.int64]:
    return 1 + QUARTILES * place_pk.astype(np.int64) // genes


def _middle(quartile_pk: NDArray[np.int64], genes: int) -> NDArray[np.int64]:
    return (2 * quartile_pk - 1) * genes // (2 * QUARTILES)


def _distinct(rank_pk: NDArray[np.int64], place_pk: NDArray[np.int32], genes: int) -> NDArray[np.int32]:
    """Let genes that would get one rank take neighbouring ones, in their old order, within the row."""
    count = rank_pk.shape[1]
    order_pk = np.lexsort((place_pk, rank_pk), axis=1)
    sorted_pk = np.take_along_axis(rank_pk, order_pk, axis=1)
    step_k = np.arange(count)
    up_pk = np.maximum.accumulate(sorted_pk - step_k, axis=1) + step_k  # each at least one behind the one before
    room_pk = np.minimum(up_pk, genes - count + step_k)  # and all of them before the end
    result_pk = np.empty_like(rank_pk)
    np.put_along_axis(result_pk, order_pk, room_pk, axis=1)
    return result_pk.astype(np.int32)


EDITS: dict[str, Callable[[int], Edit]] = {
    "delete": lambda _: Delete(),
    "overexpress": lambda _: Overexpress(),
    "activate": Activate,
    "inhibit": Inhibit,
}
"""Makers of edits by the name of their kind; they are given the quartiles to move by."""


def make_edit(kind: str, steps: int = 1) -> Edit:
    """Return the edit of a kind.

    Parameters
    ----------
    steps
        Quartiles to move by, 1 to 3; for `activate` and `inhibit`.

    Raises
    ------
    InputError
        There is no such kind, or no such number of quartiles.
    """
    if kind not in EDITS:
        raise InputError("--kind", f"must be one of {', '.join(EDITS)}", repr(kind), "Choose one of them.")
    if not 1 <= steps < QUARTILES:
        raise InputError("--quartiles", f"must lie in 1..{QUARTILES - 1}", str(steps), "Choose 1, 2 or 3.")
    return EDITS[kind](steps)


def places(genes_n: NDArray[np.uint16], token_pk: NDArray[np.int32], tokens: int) -> NDArray[np.int32]:
    """Return the rank of each listed gene in a cell.

    Parameters
    ----------
    genes_n
        The cell's genes in rank order.
    token_pk
        Listed genes of each perturbation, `NO_TOKEN` at the end of shorter lists.
    tokens
        Size of the vocabulary.

    Returns
    -------
    NDArray[np.int32]
        `ABSENT` where the cell lacks the gene or there is none. Perturbations x genes.
    """
    rank_v = np.full(tokens + 1, ABSENT, np.int32)  # the last entry is that of NO_TOKEN
    rank_v[genes_n] = np.arange(len(genes_n), dtype=np.int32)
    return rank_v[token_pk]


def perturb_cell(
    genes_n: NDArray[np.uint16], token_pk: NDArray[np.int32], edit: Edit, capacity: int, tokens: int
) -> Iterator[Copies]:
    """Yield the perturbed copies of a cell, those of one length together.

    Perturbations that do not apply give no copy: a listed gene is missing (unless the edit inserts it), nothing would
    change, or nothing would be left.

    Parameters
    ----------
    genes_n
        The cell's genes in rank order, without special tokens.
    token_pk
        Listed genes of each perturbation, `NO_TOKEN` at the end of shorter lists. int32.
    edit
        What happens to them.
    capacity
        Most genes of a row: the input size without special tokens.
    tokens
        Size of the vocabulary.
    """
    place_pk, listed_pk = places(genes_n, token_pk, tokens), token_pk != NO_TOKEN
    here_pk = place_pk != ABSENT
    listed_p, here_p = listed_pk.sum(axis=1), here_pk.sum(axis=1)
    applies_p = (listed_p > 0) & ((here_p == listed_p) | edit.inserts) & (listed_p <= capacity)
    shapes = np.unique(np.stack([listed_p, here_p], axis=1)[applies_p], axis=0)
    for listed, here in shapes.tolist():
        chosen = np.flatnonzero(applies_p & (listed_p == listed) & (here_p == here))
        copies = _copies(genes_n, token_pk[chosen, :listed], place_pk[chosen, :listed], edit, capacity)
        if copies is None:
            continue
        kept_p, made = copies
        yield Copies(chosen[kept_p], *made)


def _copies(
    genes_n: NDArray[np.uint16],
    token_pk: NDArray[np.int32],
    place_pk: NDArray[np.int32],
    edit: Edit,
    capacity: int,
) -> tuple[NDArray[np.int64], tuple[NDArray[np.uint16], NDArray[np.int32], int]] | None:
    """Return the copies of perturbations that list and meet equally many genes, and which of them change anything."""
    (copies, listed), genes = place_pk.shape, len(genes_n)
    stays_pn = np.ones((copies, genes), bool)
    row, column = np.nonzero(place_pk != ABSENT)
    stays_pn[row, place_pk[row, column]] = False
    others_pm = np.nonzero(stays_pn)[1].reshape(copies, -1).astype(np.int32)
    missing = listed - (genes - others_pm.shape[1])
    rank_pk = edit.ranks(place_pk, genes + missing)
    if rank_pk is None:
        sources_pm, tokens_pm = others_pm, genes_n[others_pm]
    else:
        sources_pm = np.empty((copies, others_pm.shape[1] + listed), np.int32)
        free_pm = np.ones(sources_pm.shape, bool)
        np.put_along_axis(free_pm, rank_pk, values=False, axis=1)
        sources_pm[free_pm] = others_pm.ravel()
        np.put_along_axis(sources_pm, rank_pk, place_pk, axis=1)
        tokens_pm = genes_n[sources_pm]
        np.put_along_axis(tokens_pm, rank_pk, token_pk.astype(np.uint16), axis=1)
    reference = min(genes, capacity - missing)
    sources_pm, tokens_pm = sources_pm[:, :capacity], tokens_pm[:, :capacity]
    if not sources_pm.shape[1] or not reference:
        return None
    same = np.arange(sources_pm.shape[1], dtype=np.int32)
    changed_p = np.flatnonzero((sources_pm != same).any(axis=1) | (sources_pm.shape[1] != reference))
    if rank_pk is not None:
        np.put_along_axis(sources_pm, rank_pk, EDITED, axis=1)
    return changed_p, (tokens_pm[changed_p], sources_pm[changed_p], reference)
