"""The strongest perturbations of each cell, strongest first. Tables in, tables out; no torch."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cellray.schema import CELL_ID
from cellray.shift_schema import PERTURBATION, SIMILARITY, shift_column


def strongest(table: pa.Table, ids: Sequence[str], goal: str | None, top: int | None) -> pa.Table:
    """Sort a table of shifts by cell and strength, and keep the strongest of each cell.

    Parameters
    ----------
    table
        See `cellray.shift_schema.shift_schema`.
    ids
        Of the cells, in the order they are to have.
    goal
        State by whose shift strength is judged, whichever way it goes; None: by 1 - similarity.
    top
        Rows of each cell; None: all.
    """
    place = {name: i for i, name in reversed(list(enumerate(ids)))}
    cell_r = np.array([place[name] for name in table[CELL_ID].to_pylist()], np.int64)
    if goal is None:
        strength_r = 1 - table[SIMILARITY].to_numpy().astype(np.float64)
    else:
        strength_r = np.abs(table[shift_column(goal)].to_numpy().astype(np.float64))
    strength_r = np.nan_to_num(strength_r, nan=-1.0)  # a copy of which no gene is left to compare
    order = np.lexsort((table[PERTURBATION].to_numpy(), -strength_r, cell_r))
    if top is not None:
        sorted_r = cell_r[order]
        first_r = np.searchsorted(sorted_r, sorted_r, side="left")
        order = order[np.arange(len(order)) - first_r < top]
    return table.take(pa.array(order))
