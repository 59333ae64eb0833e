"""Tests over donors: cells of one donor are not independent, donors are.

Each donor counts once, with the mean of its cells. A gene with fewer donors than asked for gets no test.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.errors import InputError
from cellray.statistics.moments import GroupMoments
from cellray.statistics.rank_sums import false_discovery_rates, normal_quantile
from cellray.statistics.stream import Options, ShiftStream

Array = NDArray[np.float64]

FEWEST = 3
"""Below three donors a spread over donors means nothing."""
SIGNED_RANK_FROM = 20
"""From so many donors on the exact signed-rank test can reach 2e-6: below, no gene of thousands could pass the FDR."""
T_TEST, SIGNED_RANK = "t", "wilcoxon"


def require_donors(stream: ShiftStream, options: Options) -> None:
    """Check that a screen whose donors are known has enough of them.

    Raises
    ------
    InputError
        It has fewer than a test over donors needs.
    """
    if stream.donors and len(stream.donors) < options.min_donors:
        rule = f"tests over donors need {options.min_donors} donors or more"
        fix = "Leave out --donor, or screen cells of more donors."
        raise InputError(stream.name, rule, f"{len(stream.donors)}", fix)


def centred(mean_gd: Array) -> Array:
    """Return how far each gene lies from the average gene of the same donor; NaN where the donor lacks the gene."""
    known_gd = ~np.isnan(mean_gd)
    average_d = np.where(known_gd, mean_gd, 0).sum(axis=0) / np.maximum(known_gd.sum(axis=0), 1)
    return np.asarray(mean_gd - average_d)


def signed_rank_p(x_gd: Array) -> Array:
    """Return two-sided p-values of Wilcoxon's signed-rank test of each row; NaN values are left out.

    Exact up to 50 donors, else, or where differences tie or are 0, by the normal approximation (as scipy's).
    """
    from scipy import stats

    test: Any = stats.wilcoxon  # its types know no table of samples
    count_g = (~np.isnan(x_gd)).sum(axis=1)
    packed_gd = np.take_along_axis(x_gd, np.argsort(np.isnan(x_gd), axis=1, kind="stable"), axis=1)
    size_gd = np.sort(np.abs(packed_gd), axis=1)
    plain_g = ((np.diff(size_gd, axis=1) != 0).all(axis=1)) & ~(size_gd == 0).any(axis=1)
    p = np.full(len(x_gd), np.nan)
    for n in np.unique(count_g[count_g > 0]):
        for exact in (True, False):
            rows = (count_g == n) & (plain_g == exact) & (packed_gd[:, :n] != 0).any(axis=1)
            if rows.any():
                method = "exact" if exact and n <= 50 else "asymptotic"
                p[rows] = test(packed_gd[rows, :n], axis=1, method=method).pvalue
    return p


@dataclass(frozen=True)
class MeanOver:
    """Means of independent numbers, as donors (or, if one must, cells), for each gene. All have shape (genes,)."""

    count: NDArray[np.int64]
    mean: Array
    deviation: Array

    @classmethod
    def of(cls, x_gd: Array) -> "MeanOver":
        """Count, mean and standard deviation (n - 1) of each row; NaN values are left out."""
        known_gd = ~np.isnan(x_gd)
        count = known_gd.sum(axis=1)
        mean = np.where(known_gd, x_gd, 0).sum(axis=1) / np.maximum(count, 1)
        squares = np.where(known_gd, (x_gd - mean[:, None]) ** 2, 0).sum(axis=1)
        deviation = np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)
        return cls(count, np.where(count > 0, mean, np.nan), deviation)

    def t_p(self) -> Array:
        """Return two-sided p-values of Student's one-sample test; NaN where all donors are equal."""
        from scipy.special import stdtr

        spread = np.where(self.deviation > 0, self.deviation, np.nan)
        t = self.mean / (spread / np.sqrt(np.maximum(self.count, 1)))
        return np.asarray(2 * stdtr(np.maximum(self.count - 1, 1), -np.abs(t)))

    def interval(self, confidence: float) -> tuple[Array, Array]:
        """Return Student's interval of the mean."""
        from scipy.special import stdtrit

        reach = stdtrit(np.maximum(self.count - 1, 1), (1 + confidence) / 2) * self.deviation
        reach = reach / np.sqrt(np.maximum(self.count, 1))
        return self.mean - reach, self.mean + reach

    def standardised(self, confidence: float) -> tuple[Array, Array, Array]:
        """Return the standardised mean with Hedges' correction and its large-sample interval.

        g = J mean / deviation, J = 1 - 3 / (4 (n - 1) - 1), variance J² (1/n + d²/2n): Borenstein et al. (2009), 4.
        """
        spread = np.where(self.deviation > 0, self.deviation, np.nan)
        n = np.maximum(self.count, 2)
        d = self.mean / spread
        correction = 1 - 3 / (4 * (n - 1) - 1)
        reach = normal_quantile(confidence) * correction * np.sqrt(1 / n + d**2 / (2 * n))
        return correction * d, correction * d - reach, correction * d + reach


def p_over_donors(x_gd: Array, options: Options) -> tuple[Array, NDArray[np.object_]]:
    """Test whether the values of each gene, one a donor, lie around 0.

    Returns
    -------
    tuple
        p-values, NaN with too few donors, and the name of the test done, None for none.
    """
    over = MeanOver.of(x_gd)
    enough = over.count >= max(options.min_donors, 2)
    if options.donor_test == "auto":
        ranked = enough & (over.count >= SIGNED_RANK_FROM)
    else:
        ranked = enough & (options.donor_test == SIGNED_RANK)
    p = np.where(enough & ~ranked, over.t_p(), np.nan)
    p[ranked] = signed_rank_p(x_gd[ranked])
    name = np.array([None, T_TEST, SIGNED_RANK], object)[enough.astype(int) + ranked]
    return p, name


def donor_table(prefix: str, mean_gd: Array, difference_gd: Array, options: Options) -> pd.DataFrame:
    """Return the donor-level columns.

    Parameters
    ----------
    prefix
        Of what is averaged: `Donor_{prefix}` and its interval.
    mean_gd
        Mean of each gene's cells of each donor; NaN where it has none. Genes x donors.
    difference_gd
        What is tested against 0 and standardised, as `mean_gd` less its expectation. Genes x donors.
    """
    mean, difference = MeanOver.of(mean_gd), MeanOver.of(difference_gd)
    enough = difference.count >= options.min_donors
    low, high = mean.interval(options.confidence)
    effect = difference.standardised(options.confidence)
    p, name = p_over_donors(difference_gd, options)
    return pd.DataFrame(
        {
            "N_Donors": difference.count,
            f"Donor_{prefix}": mean.mean,
            f"Donor_{prefix}_ci_low": np.where(enough, low, np.nan),
            f"Donor_{prefix}_ci_high": np.where(enough, high, np.nan),
            "Donor_effect": np.where(enough, effect[0], np.nan),
            "Donor_effect_ci_low": np.where(enough, effect[1], np.nan),
            "Donor_effect_ci_high": np.where(enough, effect[2], np.nan),
            "Donor_test": pd.array(name, dtype="string"),
            "Donor_pval": p,
            "Donor_FDR": false_discovery_rates(p),
        }
    )


NO_DONOR = "shifts of cells without a donor, left out of these columns"


def donor_groups(gene_n: NDArray[np.int64], donor_n: NDArray[np.int64], donors: int) -> NDArray[np.int64]:
    """Return each row's group in moments of shape (genes, donors + 1); the last column has the rows of no donor."""
    return gene_n * (donors + 1) + np.where(donor_n < 0, donors, donor_n)


def donor_means(moments: GroupMoments) -> Array:
    """Return the means of the true donors. Genes x donors."""
    return moments.means()[..., :-1]


def donor_notes(options: Options, tested: str, moments: GroupMoments) -> dict[str, object]:
    """Describe the donor-level columns for the manifest; `moments` are what they were made of."""
    return {
        NO_DONOR: int(moments.count[..., -1].sum()),
        "unit": "the mean of a donor's cells",
        "tested": tested,
        "test": f"{options.donor_test} (auto: t below {SIGNED_RANK_FROM} donors of the gene, else signed-rank)",
        "least number of donors": options.min_donors,
        "effect": "standardised mean over donors, Hedges' correction; interval by its large-sample variance",
        "confidence": options.confidence,
    }
