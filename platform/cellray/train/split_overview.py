"""A split in few lines, for a terminal: cells of each part, and of each class in each part, over all folds.

The whole table is `Folds.describe`, which the report holds.
"""

import numpy as np
import pandas as pd

from cellray.train.folds import PARTS, Folds

_MOST_CLASSES = 40


def overview(folds: Folds) -> list[str]:
    """Return a line for all cells and one a class; where folds differ, the least and the most of them."""
    parts = [part for part in range(len(PARTS)) if any(len(folds.rows(fold, part)) for fold in range(len(folds)))]
    sizes = ", ".join(
        f"{PARTS[part]} {_range([len(folds.rows(fold, part)) for fold in range(len(folds))])}" for part in parts
    )
    each = f"{len(folds)} folds, {folds.unit} of each: " if len(folds) > 1 else f"{folds.unit}: "
    left_out = f"; {folds.ungrouped:,} without a group are left out" if folds.ungrouped else ""
    return [f"{each}{sizes}{left_out}", *(line for head in folds.classes for line in _classes(folds, head, parts))]


def _classes(folds: Folds, head: str, parts: list[int]) -> list[str]:
    """Return a table of a head's classes and their cells in each part."""
    counts = {part: np.array([folds.counts(fold, part, head) for fold in range(len(folds))]) for part in parts}
    names = folds.classes[head]
    table = pd.DataFrame(
        {PARTS[part]: [_range(n_kc[:, c].tolist()) for c in range(len(names))] for part, n_kc in counts.items()},
        index=pd.Index(names, name=head),
    )
    lines: list[str] = table.head(_MOST_CLASSES).reset_index().to_string(index=False).split("\n")
    more = len(names) - _MOST_CLASSES
    return [*lines, f"and {more:,} classes more"] if more > 0 else lines


def _range(numbers: list[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{most:,}" if least == most else f"{least:,}-{most:,}"
