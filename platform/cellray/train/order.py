"""Which cells make up which training step: a function of the corpus, the seed and the epoch, and of nothing else.

Spans of cells are put in a new order every epoch and pooled; a pool's cells are cut into batches of similar length. Any
step can be found without walking through those before it, so training goes on from any step, with any number of
workers, on exactly the cells that come next. Knows no files; lengths are given to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cellray.data.corpora.split import held_out

POOL_CELLS = 32_768
"""Cells among which batches of similar length are formed, about: what a worker holds in memory, twice."""


@dataclass(frozen=True)
class Span:
    """Rows `start .. stop` of a shard; `first` is the number of its first cell in the corpus."""

    uri: str
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        """Return the number of cells, held out ones included."""
        return self.stop - self.start


Selection = Callable[[Span], NDArray[np.bool_]]
"""Tells which cells of a span are meant. Shape (cells of the span,)."""


@dataclass(frozen=True)
class RandomPart:
    """The cells that are held out by chance, or all others; see `cellray.data.corpora.split.held_out`."""

    fraction: float
    seed: int
    held: bool

    def __call__(self, span: Span) -> NDArray[np.bool_]:
        """Tell which cells of a span these are. Shape (cells of the span,)."""
        return np.asarray(held_out(span.first, len(span), self.fraction, self.seed) == self.held)


@dataclass(frozen=True)
class AssignedPart:
    """The cells that an array assigns to a part."""

    part_n: NDArray[np.int8]
    part: int

    def __call__(self, span: Span) -> NDArray[np.bool_]:
        """Tell which cells of a span these are. Shape (cells of the span,)."""
        return np.asarray(self.part_n[span.first : span.first + len(span)] == self.part)


@dataclass(frozen=True)
class Pool:
    """Some spans of one epoch, and the steps that their cells make up.

    Attributes
    ----------
    spans
        In the order in which their cells are numbered within the pool.
    cells
        Training cells in them.
    first_step, steps
        The pool's steps, counted within the epoch.
    """

    number: int
    spans: tuple[Span, ...]
    cells: int
    first_step: int
    steps: int


class TrainingOrder:
    """The order of the training cells.

    Parameters
    ----------
    spans
        All cells of the corpus, once.
    batch_cells
        Cells of a step over all workers. A batch has at most so many, and at least half of it.
    selection
        Chooses the cells to train on.
    seed
        Of every epoch's order.
    """

    def __init__(self, spans: Sequence[Span], batch_cells: int, selection: Selection, seed: int) -> None:
        self._spans, self._batch, self.selection, self._seed = tuple(spans), batch_cells, selection, seed
        self._training = np.array([int(selection(span).sum()) for span in self._spans], np.int64)
        self.pools = lru_cache(maxsize=2)(self._pools)

    @property
    def cells(self) -> int:
        """Training cells."""
        return int(self._training.sum())

    def spans_of(self, selection: Selection) -> list[Span]:
        """Return the spans that hold cells of a selection."""
        return [span for span in self._spans if selection(span).any()]

    def _pools(self, epoch: int) -> tuple[Pool, ...]:
        """Return the pools of an epoch."""
        order = np.random.default_rng([self._seed, epoch]).permutation(np.flatnonzero(self._training))
        groups: list[list[int]] = []
        size = POOL_CELLS
        for index in order:
            if size >= max(POOL_CELLS, self._batch):
                groups.append([])
                size = 0
            groups[-1].append(int(index))
            size += int(self._training[index])
        if size < self._batch and len(groups) > 1:  # too few cells for a batch of their own
            last = groups.pop()
            groups[-1].extend(last)
        pools, first = [], 0
        for number, group in enumerate(groups):
            cells = int(self._training[group].sum())
            steps = -(-cells // self._batch)
            pools.append(Pool(number, tuple(self._spans[i] for i in group), cells, first, steps))
            first += steps
        return tuple(pools)

    def steps(self, epoch: int) -> int:
        """Return the number of steps in which each training cell is seen once."""
        last = self.pools(epoch)[-1]
        return last.first_step + last.steps

    def locate(self, step: int) -> tuple[int, int]:
        """Return the epoch a step falls in and its number within that epoch."""
        epoch = 0
        while step >= (steps := self.steps(epoch)):
            step -= steps
            epoch += 1
        return epoch, step

    def batches(self, epoch: int, pool: Pool, length_n: NDArray[np.integer]) -> list[NDArray[np.int64]]:
        """Cut a pool into its steps.

        Parameters
        ----------
        length_n
            Tokens of each training cell of the pool. Shape (pool.cells,).

        Returns
        -------
        list[NDArray[np.int64]]
            For each step the numbers of its cells within the pool. Cells of a step have similar lengths, steps come in
            random order. (Geneformer groups by length: Theodoris et al. 2023, Methods.)
        """
        rng = np.random.default_rng([self._seed, epoch, pool.number])
        shuffled = rng.permutation(pool.cells)  # so that cells of equal length meet others every epoch
        by_length = shuffled[np.argsort(length_n[shuffled], kind="stable")]
        cut = np.array_split(by_length, pool.steps)
        return [cut[i] for i in rng.permutation(pool.steps)]
