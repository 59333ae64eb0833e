"""Quality control as rules on numbers: bounds of a data set, the verdict on each cell and its reason.

Works on per-cell tables; knows nothing of files, matrices or Ray. The rules are those of Genecorpus-30M (Theodoris et
al. 2023, Methods), with doublet scores added.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellray.quality_schema import Bounds
from cellray.schema import QUALITY_REASONS

REASONS = QUALITY_REASONS
FILE_FILTER, MALIGNANT, NO_COUNTS, TOTAL, MITO, FEW_GENES, DOUBLET = REASONS

_SLACK = 1e-9
"""Share of the mean by which bounds are wider: where all cells are equal, rounding must not put them outside."""


@dataclass(frozen=True)
class Moments:
    """Number, mean and summed squared deviations of values; parts are merged without reading them again.

    Merged by the formula of Chan, Golub and LeVeque (1983), which does not cancel as sums of squares do.
    """

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> "Moments":
        """Return the moments of an array, by two passes."""
        if not values.size:
            return cls()
        mean = float(values.mean(dtype=np.float64))
        return cls(values.size, mean, float(((values - mean) ** 2).sum(dtype=np.float64)))

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both together."""
        n = self.n + other.n
        if not n:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * other.n / n
        return Moments(n, mean, self.squares + other.squares + step * step * self.n * other.n / n)

    @property
    def sd(self) -> float:
        """Population standard deviation."""
        return float(np.sqrt(self.squares / self.n)) if self.n else 0.0

    def bounds(self, n_sd: float) -> Bounds | None:
        """Return mean -/+ `n_sd` standard deviations; None without values."""
        if not self.n:
            return None
        reach = n_sd * self.sd + _SLACK * abs(self.mean)
        return Bounds(cells=self.n, mean=self.mean, sd=self.sd, low=self.mean - reach, high=self.mean + reach)


def can_exclude(n_cells: int, n_sd: float) -> bool:
    """Tell whether a data set is large enough for any cell to lie outside: the largest z-score is (n - 1) / sqrt(n)."""
    return n_cells > 1 and (n_cells - 1) / n_cells**0.5 > n_sd


@dataclass(frozen=True)
class DatasetBounds:
    """Bounds of one data set; None where nothing is known to bound."""

    n_counts: Bounds | None
    mito: Bounds | None


@dataclass(frozen=True)
class CellMetrics:
    """What is known of each cell of a block; every array has shape (cells,).

    Attributes
    ----------
    n_counts
        Total count over all columns.
    mito
        Mitochondrial fraction or counts, as bounded; NaN where unknown.
    n_genes
        Detected genes.
    file_pass
        Whether the file's own `filter_pass` lets the cell through.
    malignant
        Whether the cell is marked as malignant or immortalised.
    dataset
        Index into the names of the data sets.
    """

    n_counts: NDArray[np.float64]
    mito: NDArray[np.float64]
    n_genes: NDArray[np.integer]
    file_pass: NDArray[np.bool_]
    malignant: NDArray[np.bool_]
    dataset: NDArray[np.integer]


def judge(
    cells: CellMetrics,
    bounds: Mapping[int, DatasetBounds],
    min_genes: int,
    doublet: NDArray[np.bool_] | None = None,
) -> NDArray[np.int8]:
    """Return for each cell the index in `REASONS` of the first reason against it, or -1 if it passes.

    Parameters
    ----------
    cells
        Their metrics.
    bounds
        Of each data set, by its index; both ends belong to what passes.
    min_genes
        Least number of detected genes.
    doublet
        Cells called doublets.
    """
    broken = {
        FILE_FILTER: ~cells.file_pass,
        MALIGNANT: cells.malignant,
        NO_COUNTS: cells.n_counts == 0,
        TOTAL: _outside(cells.n_counts, cells.dataset, {i: b.n_counts for i, b in bounds.items()}),
        MITO: _outside(cells.mito, cells.dataset, {i: b.mito for i, b in bounds.items()}),
        FEW_GENES: cells.n_genes < min_genes,
        DOUBLET: np.zeros(len(cells.n_counts), bool) if doublet is None else doublet,
    }
    verdict = np.full(len(cells.n_counts), -1, np.int8)
    for index in reversed(range(len(REASONS))):
        verdict[broken[REASONS[index]]] = index
    return verdict


def _outside(
    values: NDArray[np.float64], dataset: NDArray[np.integer], bounds: Mapping[int, Bounds | None]
) -> NDArray[np.bool_]:
    """Tell which values lie outside their data set's bounds; an unknown value does not."""
    size = max(bounds, default=0) + 1
    low, high = np.full(size, -np.inf), np.full(size, np.inf)
    for index, found in bounds.items():
        if found is not None:
            low[index], high[index] = found.low, found.high
    return np.asarray((values < low[dataset]) | (values > high[dataset]))
