"""Means over all perturbations from estimates of all and exact values of some, with bounds.

Gene g has n_g perturbations (cells), an estimate x of each and exact values y of a Poisson sample, drawn with known
probabilities p. With the error e = y - x of a sampled one:

    mean_g = (sum of all x + sum over the sample of e / p) / n_g

is unbiased for any estimate (difference estimator, Särndal et al. 1992, chapter 6); its variance is estimated without
bias by the sum of e^2 (1 - p) / p^2 over n_g^2. Few genes have many sampled perturbations, so what is said of a gene
without any, or with few, rests on a model of the errors: e = b + u_g + v, u and v of zero mean and their own variances,
fitted to the whole sample. Knows no files.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Perturbations with an exact value. Shape (sampled,).

    Attributes
    ----------
    gene
        Index of the gene.
    error
        Exact value less estimate.
    probability
        Of being in the sample.
    """

    gene: NDArray[np.int64]
    error: Array
    probability: Array


def corrected_means(count_g: NDArray[np.int64], sum_g: Array, sample: Sample) -> tuple[Array, Array]:
    """Return the mean of each gene and its variance, both unbiased over samples.

    Parameters
    ----------
    count_g
        Perturbations of each gene, sampled or not, at least 1.
    sum_g
        Of their estimates.
    """
    genes = len(count_g)
    correction_g = np.bincount(sample.gene, sample.error / sample.probability, genes)
    square_s = sample.error**2 * (1 - sample.probability) / sample.probability**2
    return (sum_g + correction_g) / count_g, np.bincount(sample.gene, square_s, genes) / count_g**2


@dataclass(frozen=True)
class ErrorModel:
    """Errors of estimates: `bias` + a gene's own part + a cell's, independent, with variances `between`, `within`.

    Attributes
    ----------
    bias_variance
        Of the bias' estimate.
    """

    bias: float
    bias_variance: float
    between: float
    within: float

    @classmethod
    def fit(cls, sample: Sample, genes: int) -> "ErrorModel":
        """Fit the moments, each sampled error weighted by 1 / probability.

        The part of genes is the mean product of two errors of one gene. Genes with one sampled perturbation have none
        and tell the sum of both variances only; without any pair all is taken to be the genes' own part, which gives
        the widest bounds.
        """
        if not len(sample.gene):
            return cls(0.0, np.inf, np.inf, np.inf)
        weight = 1 / sample.probability
        bias = float(np.average(sample.error, weights=weight))
        left = sample.error - bias
        total = float(np.average(left**2, weights=weight))
        sums_g, squares_g = (np.bincount(sample.gene, (weight * left) ** k, genes) for k in (1, 2))
        weights_g, pairs_g = (np.bincount(sample.gene, weight**k, genes) for k in (1, 2))
        pairs = float((weights_g**2 - pairs_g).sum())
        between = total if pairs <= 1e-9 else float((sums_g**2 - squares_g).sum()) / pairs
        between = min(max(between, 0.0), total)
        of_gene = between * float((weights_g**2).sum()) + (total - between) * float((weight**2).sum())
        return cls(bias, of_gene / float(weight.sum()) ** 2, between, total - between)

    def predict(self, count_g: NDArray[np.int64], sum_g: Array, sample: Sample) -> tuple[Array, Array]:
        """Return the expected mean of each gene and its variance, given the sampled errors of the gene."""
        known_g = np.bincount(sample.gene, minlength=len(count_g))
        error_g = np.bincount(sample.gene, sample.error, len(count_g))
        rest_g = count_g - known_g
        share_g = self.between * known_g / np.maximum(self.between * known_g + self.within, 1e-300)
        own_g = share_g * (error_g / np.maximum(known_g, 1) - self.bias)
        expected_g = (sum_g + error_g + rest_g * (self.bias + own_g)) / count_g
        of_gene_g = self.between * (1 - share_g) + (1 - share_g) ** 2 * self.bias_variance
        return expected_g, (rest_g / count_g) ** 2 * (of_gene_g + self.within / np.maximum(rest_g, 1))

    def variance_of_corrected(self, count_g: NDArray[np.int64], inverse_g: Array) -> Array:
        """Return the variance that the corrected means have by the model.

        Parameters
        ----------
        inverse_g
            Sum over a gene's perturbations of (1 - p) / p.
        """
        return (self.bias**2 + self.between + self.within) * inverse_g / count_g**2


def bounds(mean_g: Array, variance_g: Array, confidence: float) -> tuple[Array, Array]:
    """Return the ends of normal intervals."""
    half_g = float(ndtri((1 + confidence) / 2)) * np.sqrt(variance_g)
    return mean_g - half_g, mean_g + half_g


@dataclass(frozen=True)
class Recall:
    """How many of the k best genes of the whole screen are the k that are expected to be.

    Attributes
    ----------
    value, low, high
        Mean, and central interval, over draws of the genes' means.
    """

    k: int
    value: float
    low: float
    high: float


def recall_of_best(
    expected_g: Array, variance_g: Array, k: int, confidence: float, rng: np.random.Generator, draws: int = 1000
) -> Recall:
    """Estimate the recall of the k genes whose means are expected to be highest, by simulation.

    Each draw takes the mean of every gene from a normal distribution and counts which of the k are among the k highest.
    The interval is that of the draws: it rests on the model of the errors.

    Parameters
    ----------
    expected_g, variance_g
        From `ErrorModel.predict`; exact means have no variance.
    """
    k, deviation_g = min(k, len(expected_g)), np.sqrt(np.minimum(variance_g, 1e300))
    least = np.sort(expected_g - 7 * deviation_g)[::-1][k - 1]
    near_g = expected_g + 7 * deviation_g >= least  # the others never get there
    expected, deviation, found = expected_g[near_g], deviation_g[near_g], np.empty(draws)
    listed = np.argsort(-expected, kind="stable")[:k]
    for draw in range(draws):
        best = np.argpartition(-rng.normal(expected, deviation), k - 1)[:k]
        found[draw] = np.isin(best, listed).sum() / k
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Recall(k, float(found.mean()), float(low), float(high))
