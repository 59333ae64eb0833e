"""Rules by which cells are chosen for new corpora: at random, with their group, by a value, so many of a class.

A rule knows obs columns and the random order of cells; it does not know where cells lie or what is done with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray import schema
from cellray.data.corpora.cell_order import COLUMNS, cell_keys, number_of
from cellray.data.corpora.corpus import Corpus
from cellray.data.corpora.ranks import Bound, class_counts, classes_of, rank_bounds
from cellray.data.corpora.select_cells import NOWHERE
from cellray.data.corpora.split import uniform


@dataclass(frozen=True)
class ByShare:
    """Each cell is drawn by itself, by its own place in the random order.

    Attributes
    ----------
    shares
        Probability of each new corpus; what lacks to 1 goes nowhere.
    seed
        Of the order.
    """

    shares: tuple[float, ...]
    seed: int

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns it needs."""
        return COLUMNS

    @property
    def key(self) -> str:
        """Digest of all that decides its answers."""
        return schema.request_digest(rule="share", shares=self.shares, seed=self.seed)

    def __call__(self, cells: pa.Table, source: int) -> NDArray[np.int64]:
        """Return the number of each cell's new corpus, or `NOWHERE`. Shape (cells,)."""
        drawn = uniform(cell_keys(cells, source, self.seed).key)
        found = np.searchsorted(_ends(self.shares), drawn, side="right")
        return np.where(found < len(self.shares), found, NOWHERE)


@dataclass(frozen=True)
class ByValue:
    """Each cell goes where its value of an obs column goes; other values go nowhere.

    Attributes
    ----------
    column
        The obs column.
    target_of
        Value as text (None: missing) to the number of the new corpus.
    """

    column: str
    target_of: Mapping[str | None, int]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns it needs."""
        return (self.column,)

    @property
    def key(self) -> str:
        """Digest of all that decides its answers."""
        table = sorted(([value is None, value or "", number] for value, number in self.target_of.items()), key=str)
        return schema.request_digest(rule="value", column=self.column, target_of=table)

    def __call__(self, cells: pa.Table, source: int) -> NDArray[np.int64]:
        """Return the number of each cell's new corpus, or `NOWHERE`. Shape (cells,)."""
        values, class_n = classes_of(cells[self.column])
        return np.array([self.target_of.get(value, NOWHERE) for value in values] or [NOWHERE], np.int64)[class_n]


@dataclass(frozen=True)
class ByRank:
    """Exact numbers of each class: its first cells in the random order go to one new corpus, the next to another.

    Attributes
    ----------
    column
        Obs column with the class.
    bounds
        For each class (None: missing) the end of each new corpus's stretch of the order, see `rank_bounds`.
    seed
        Of the order.
    """

    column: str
    bounds: Mapping[str | None, Sequence[Bound]]
    seed: int

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns it needs."""
        return (*COLUMNS, self.column)

    @property
    def key(self) -> str:
        """Digest of all that decides its answers."""
        table = sorted(([value is None, value or "", bounds] for value, bounds in self.bounds.items()), key=str)
        return schema.request_digest(rule="rank", column=self.column, bounds=table, seed=self.seed)

    def __call__(self, cells: pa.Table, source: int) -> NDArray[np.int64]:
        """Return the number of each cell's new corpus, or `NOWHERE`. Shape (cells,)."""
        values, class_n = classes_of(cells[self.column])
        keys = cell_keys(cells, source, self.seed)
        chosen = np.full(len(class_n), NOWHERE, np.int64)
        for i, value in enumerate(values):
            own = class_n == i
            for number, bound in enumerate(self.bounds.get(value, ())):
                chosen[own & (chosen == NOWHERE) & keys.below(bound)] = number
        return chosen


def grouped(corpus: Corpus, column: str, shares: Sequence[float], seed: int) -> ByValue:
    """Return the rule by which all cells of a group stay together and the shares of cells come near what was asked for.

    Groups come in an order drawn by the seed and their names; each goes where most cells are still lacking. So where a
    group goes depends on the seed and on all groups' names and sizes. Cells without a value are one group: they might
    be of one donor. Where the shares do not add up to 1, the rest goes nowhere, by whole groups too.
    """
    sizes = class_counts(corpus, column)
    rest = max(0.0, 1.0 - sum(shares))
    lacking = np.array([*shares, rest if rest > 1e-9 else 0.0]) * sum(sizes.values())
    target_of: dict[str | None, int] = {}
    for value in sorted(sizes, key=lambda value: (number_of("group", seed, value is None, value), value or "")):
        number = int(np.argmax(lacking))
        lacking[number] -= sizes[value]
        if number < len(shares):
            target_of[value] = number
    return ByValue(column, target_of)


def stratified(corpus: Corpus, column: str, shares: Sequence[float], seed: int) -> ByRank:
    """Return the rule that gives each new corpus its share of every class, rounded to cells; missing is a class too."""
    ends = _ends(shares)
    ranks = {value: [round(end * n) for end in ends] for value, n in class_counts(corpus, column).items()}
    return ByRank(column, rank_bounds(corpus, column, ranks, seed), seed)


def so_many_of_each(corpus: Corpus, column: str, cells: int, seed: int) -> ByRank:
    """Return the rule that takes `cells` cells of each class, or all it has, drawn at random; none without a class."""
    ranks: dict[str | None, list[int]] = {value: [cells] for value in class_counts(corpus, column) if value is not None}
    return ByRank(column, rank_bounds(corpus, column, ranks, seed), seed)


def _ends(shares: Sequence[float]) -> NDArray[np.float64]:
    """Return where each share's stretch of [0, 1] ends; a sum that is 1 but for rounding is 1. Shape (shares,)."""
    ends = np.cumsum(shares)
    return np.where(np.abs(ends - 1) < 1e-9, 1.0, ends)
