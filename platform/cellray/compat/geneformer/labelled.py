"""Which cells a classifier is told: those of the wanted classes, rare classes left out, so many of each at most."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.compat.geneformer.cells import SEED
from cellray.data.corpora.corpus import Corpus, scan
from cellray.errors import InputError, listing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Cells with their classes.

    Attributes
    ----------
    rows
        Numbers of the cells in the corpus, ascending.
    label_r
        The class of each, as text.
    """

    rows: NDArray[np.int64]
    label_r: NDArray[np.object_]

    @property
    def classes(self) -> list[str]:
        """The classes, sorted."""
        return sorted(set(self.label_r))

    def take(self, chosen_r: NDArray[np.bool_]) -> "Labelled":
        """Return some of the cells."""
        return Labelled(self.rows[chosen_r], self.label_r[chosen_r])


def column_of(corpus: Corpus, column: str, option: str) -> NDArray[np.object_]:
    """Return an obs column of all cells as text, None where it is empty. Shape (cells,).

    Raises
    ------
    InputError
        The corpus lacks it.
    """
    corpus.require_column(column, option)
    pieces = [piece[column].cast(pa.string()) for piece in scan(corpus, [column], lambda _, cells: cells)]
    return np.concatenate([piece.to_numpy(zero_copy_only=False).astype(object) for piece in pieces])


def labelled(corpus: Corpus, rows: NDArray[np.int64], column: str, states: list[str] | None) -> Labelled:
    """Return the chosen cells that have one of the wanted classes; None: any.

    Raises
    ------
    InputError
        The corpus lacks the column or a class.
    """
    rows = np.sort(rows)
    label_r = column_of(corpus, column, "cell_state_dict")[rows]
    if missing := set(states or ()) - set(label_r):
        there = listing({each for each in label_r if each is not None}, 30)
        raise InputError("cell_state_dict", "every state needs cells", f"no {listing(missing)}; {there}", "Correct it.")
    wanted_r = np.array([each is not None and (states is None or each in states) for each in label_r], bool)
    return Labelled(rows, label_r).take(wanted_r)


def without_rare(cells: Labelled, threshold: float) -> Labelled:
    """Return the cells of classes that have at least this share of all cells; says which are left out."""
    share = {name: float((cells.label_r == name).mean()) for name in cells.classes}
    rare = {name for name, value in share.items() if value < threshold}
    if rare:
        logger.warning("classes with less than %s of the cells are left out: %s", threshold, listing(rare))
    return cells.take(~np.isin(cells.label_r, list(rare)))


def drawn(cells: Labelled, most: int | None, most_of_class: int | None) -> Labelled:
    """Return cells drawn at random: so many at most, then so many of each class at most."""
    order = np.random.default_rng(SEED).permutation(len(cells.rows))
    chosen_r = np.zeros(len(cells.rows), bool)
    chosen_r[order[:most]] = True
    for name in cells.classes if most_of_class is not None else ():
        own = [r for r in order if chosen_r[r] and cells.label_r[r] == name]
        chosen_r[own[most_of_class:]] = False
    return cells.take(chosen_r)


def held_out(cells: Labelled, share: float) -> NDArray[np.bool_]:
    """Return which cells are held out: this share of each class, rounded, drawn at random. Shape (cells,)."""
    order = np.random.default_rng(SEED).permutation(len(cells.rows))
    held_r = np.zeros(len(cells.rows), bool)
    for name in cells.classes:
        own = order[cells.label_r[order] == name]
        held_r[own[: round(share * len(own))]] = True
    return held_r
