"""Matched controls: each shift is compared with shifts of random genes from the same range of ranks.

What a gene does to a cell's embedding depends first of all on where it stood in the row. So the pool is cut into bins
of rank quantiles (inserted genes are a bin of their own) and a gene's cells are placed each within its own bin: a
rank-sum test stratified by rank. With one bin it is the ordinary one.
"""

import numpy as np
from numpy.typing import NDArray

from cellray.statistics.moments import GroupMoments
from cellray.statistics.rank_sums import placements
from cellray.statistics.sampling import BottomSample
from cellray.statistics.stream import ShiftBatch

Array = NDArray[np.float64]


def rank_bin(quantile_n: Array, bins: int) -> NDArray[np.int64]:
    """Return the bin of each rank quantile: 0 .. bins - 1, and `bins` for genes that were inserted."""
    binned = np.clip((quantile_n * bins).astype(np.int64), 0, bins - 1)
    return np.where(quantile_n < 0, bins, binned)


class MatchedPool:
    """A pool of shifts for each bin of rank quantiles.

    Parameters
    ----------
    bins
        Bins of ranks, besides the one of inserted genes.
    size
        Most shifts in all ordinary bins together.
    """

    def __init__(self, bins: int, size: int) -> None:
        self.bins = bins
        self._samples = [BottomSample(max(1, size // bins), 1) for _ in range(bins + 1)]
        self._pools: list[Array] | None = None

    def add(self, key_n: NDArray[np.uint64], batch: ShiftBatch, value_n: Array) -> None:
        """Offer rows to the pools of their bins."""
        bin_n = rank_bin(batch.quantile, self.bins)
        for i, sample in enumerate(self._samples):
            rows = bin_n == i
            sample.add(key_n[rows], value_n[rows, None])

    @property
    def pools(self) -> list[Array]:
        """The finished pools, sorted, a bin each."""
        if self._pools is None:
            self._pools = [sample.sorted_columns()[0] for sample in self._samples]
        return self._pools

    def shares(self, batch: ShiftBatch, value_n: Array) -> Array:
        """Return which share of its bin's pool lies below each value, ties half. 1/2 is expected."""
        bin_n = rank_bin(batch.quantile, self.bins)
        shares = np.empty(len(value_n))
        for i, pool in enumerate(self.pools):
            rows = bin_n == i
            if rows.any():
                shares[rows] = placements(value_n[rows], pool) / len(pool)
        return shares

    def p_values(self, shares: GroupMoments, count_gb: NDArray[np.int64]) -> Array:
        """Return two-sided p-values of the stratified rank-sum test, by the normal approximation.

        The shares of n of a bin's cells among m of its pool sum to n / 2 with variance n (n + m + 1) / 12 m.

        Parameters
        ----------
        shares
            Moments of each gene's shares.
        count_gb
            Each gene's cells in each bin. Genes x (bins + 1).
        """
        from scipy.special import ndtr

        size_b = np.array([max(1, len(pool)) for pool in self.pools])
        variance = (count_gb * (count_gb + size_b + 1) / (12 * size_b)).sum(axis=1)
        excess = shares.count * (shares.mean - 0.5)
        z = excess / np.sqrt(np.where(variance > 0, variance, np.nan))
        return np.asarray(2 * ndtr(-np.abs(z)))
