"""Wilcoxon's rank-sum test of many groups at once, its effect size, and the false discovery rate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def placements(value_n: Array, pool_sorted: Array) -> Array:
    """Return how many of a sorted pool lie below each value, ties half: the summands of Mann and Whitney's U."""
    left = np.searchsorted(pool_sorted, value_n, "left")
    return (left + np.searchsorted(pool_sorted, value_n, "right")) / 2


def rank_sum_p(u: Array, n_first: Array, n_second: Array) -> Array:
    """Return two-sided p-values of rank-sum tests.

    The normal approximation of `scipy.stats.ranksums`: ties have mean ranks, without a correction of the variance.
    NaN where a group is empty.

    Parameters
    ----------
    u
        Mann and Whitney's U of the first group: pairs in which it is the greater, ties half.
    n_first, n_second
        Sizes of the groups.
    """
    from scipy.special import ndtr

    pairs = n_first * n_second
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (u - pairs / 2) / np.sqrt(pairs * (n_first + n_second + 1) / 12)
    return np.where(pairs > 0, 2 * ndtr(-np.abs(z)), np.nan)


def false_discovery_rates(p_n: Array) -> Array:
    """Adjust p-values by Benjamini and Hochberg's procedure; NaN stay NaN and do not count."""
    from scipy.stats import false_discovery_control

    known = ~np.isnan(p_n)
    rates = np.full(len(p_n), np.nan)
    if known.any():
        rates[known] = false_discovery_control(p_n[known], method="bh")
    return rates


def normal_quantile(confidence: float) -> float:
    """Return how many standard errors a two-sided interval reaches."""
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


@dataclass(frozen=True)
class TwoSamples:
    """Rank statistics of test against null, for each group. All have shape (groups,).

    Attributes
    ----------
    u
        Mann and Whitney's U of the test values.
    n_test, n_null
        Their numbers.
    variance
        Of U / (n_test x n_null), by DeLong et al. (1988); NaN where a side has fewer than two values.
    """

    u: Array
    n_test: Array
    n_null: Array
    variance: Array

    def rank_biserial(self, confidence: float) -> tuple[Array, Array, Array]:
        """Return the rank-biserial correlation 2 U / (n_test n_null) - 1 with its interval, cut to -1 .. 1."""
        pairs = self.n_test * self.n_null
        effect = np.where(pairs > 0, 2 * self.u / np.maximum(pairs, 1) - 1, np.nan)
        reach = 2 * normal_quantile(confidence) * np.sqrt(self.variance)
        return effect, np.clip(effect - reach, -1, 1), np.clip(effect + reach, -1, 1)


def compare_groups(group_n: NDArray[np.int64], value_n: Array, is_test_n: NDArray[np.bool_], groups: int) -> TwoSamples:
    """Compare test with null values within each group: one sort for all groups.

    Parameters
    ----------
    group_n, value_n, is_test_n
        Group, value and side of each row, in any order.
    groups
        Number of groups.
    """
    side_n = 2 * group_n + is_test_n
    # among both sides less among one's own: how many of the other side lie below
    placement_n = _mean_ranks(group_n, value_n, groups) - _mean_ranks(side_n, value_n, 2 * groups)
    count = np.bincount(side_n, minlength=2 * groups).astype(np.float64)
    total = np.bincount(side_n, placement_n, 2 * groups).astype(np.float64)
    other = count.reshape(-1, 2)[:, ::-1].reshape(-1)  # of each side the size of the other
    share_n = placement_n / np.maximum(other, 1)[side_n]
    mean = total / np.maximum(count * other, 1)
    m2 = np.bincount(side_n, (share_n - mean[side_n]) ** 2, 2 * groups)
    both = ((count > 1) & (other > 1)).reshape(-1, 2).all(axis=1)
    variance = (m2 / np.maximum(count - 1, 1) / np.maximum(count, 1)).reshape(-1, 2).sum(axis=1)
    return TwoSamples(total[1::2], count[1::2], count[::2], np.where(both, variance, np.nan))


def _mean_ranks(group_n: NDArray[np.int64], value_n: Array, groups: int) -> Array:
    """Return each row's rank within its group, from 1, the mean of the ranks where values tie."""
    if not len(group_n):
        return np.empty(0)
    order = np.lexsort((value_n, group_n))
    group, value = group_n[order], value_n[order]
    starts = np.flatnonzero(np.r_[True, (group[1:] != group[:-1]) | (value[1:] != value[:-1])])
    ends = np.r_[starts[1:], len(group)]
    first_g = np.searchsorted(group, np.arange(groups))
    rank = np.repeat((starts + ends + 1) / 2, ends - starts) - first_g[group]
    ranks = np.empty(len(rank))
    ranks[order] = rank
    return ranks
