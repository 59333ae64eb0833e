"""How a screen is cut into units and batches, so that its numbers do not depend on the units.

The last bits of a matrix product depend on the shape of the batch. So copies are batched within groups that the corpus,
the design and the token budget alone decide: the perturbations `AT_ONCE * i` up to `AT_ONCE * (i + 1)` of one cell;
or, where cells have fewer perturbations than `TOGETHER`, all those of a run of neighbouring cells of a shard. Units
are whole groups. On one kind of processor, tables then are the same to the last bit, whatever the size of units and
however many replicas there are.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

TOGETHER = 64
"""Copies that are batched together at least, if cells have so few."""
AT_ONCE = 1024
"""Most perturbations of a cell whose copies are in memory, and are batched, together."""


def cells_together(perturbations: int) -> int:
    """Return how many neighbouring cells are batched together, if each has so many perturbations."""
    return max(1, TOGETHER // perturbations)


def unit_size(most: int, together: int, cells: int, copies: int) -> tuple[int, int]:
    """Return how many cells and how many perturbations of each a unit holds: whole groups.

    Parameters
    ----------
    most
        Perturbations of a cell at most.
    together
        Cells of a group.
    cells, copies
        How many cells and copies a unit should hold at most; a unit of one group may hold more.
    """
    wanted = min(cells, copies // most)
    return max(together, wanted // together * together), max(AT_ONCE, copies // AT_ONCE * AT_ONCE)


def groups(start: int, chosen: NDArray[np.bool_], together: int) -> Iterator[list[int]]:
    """Yield the chosen rows of a unit, those of a group of cells together.

    Parameters
    ----------
    start
        Number of the unit's first cell in its shard.
    chosen
        Which of the unit's cells are perturbed.
    """
    rows = np.flatnonzero(chosen)
    group = (start + rows) // together
    for own in np.split(rows, np.flatnonzero(np.diff(group)) + 1):
        if len(own):
            yield own.tolist()


def chunks(first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of perturbations, counted from the cell's first one, that are batched on their own."""
    for start in range(first, stop, AT_ONCE):
        yield start, min(stop, start + AT_ONCE)
