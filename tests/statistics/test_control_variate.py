"""Corrected means are unbiased whatever the estimate; the model of the errors finds what it was made from."""

from itertools import product

import numpy as np
import pytest

from cellray.statistics.control_variate import ErrorModel, Sample, bounds, corrected_means, recall_of_best


def test_corrected_means_are_unbiased_over_all_samples() -> None:
    rng = np.random.default_rng(0)
    gene = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    exact, estimate, p = rng.normal(size=9), 100 * rng.random(9), rng.uniform(0.1, 0.9, 9)
    count, total = np.bincount(gene), np.bincount(gene, estimate)
    mean, square, spread = np.zeros(3), np.zeros(3), np.zeros(3)
    for drawn in product([False, True], repeat=9):
        taken = np.array(drawn)
        chance = np.where(taken, p, 1 - p).prod()
        value, variance = corrected_means(count, total, Sample(gene[taken], (exact - estimate)[taken], p[taken]))
        mean, square, spread = mean + chance * value, square + chance * value**2, spread + chance * variance
    assert mean == pytest.approx(np.bincount(gene, exact) / count, abs=1e-9)
    assert spread == pytest.approx(square - mean**2, rel=1e-9)


def simulated(genes: int, cells: int, p: float, seed: int) -> tuple[np.ndarray, np.ndarray, Sample]:
    """Return counts, the true mean error of each gene, and a sample of errors with bias 2, variances 9 and 1."""
    rng = np.random.default_rng(seed)
    error_gc = 2 + 3 * rng.normal(size=(genes, 1)) + rng.normal(size=(genes, cells))
    gene, cell = np.nonzero(rng.random((genes, cells)) < p)
    sample = Sample(gene, error_gc[gene, cell], np.full(len(gene), p))
    return np.full(genes, cells), error_gc.mean(1), sample


def test_the_model_finds_bias_and_variances_and_its_bounds_hold() -> None:
    count, truth, sample = simulated(2000, 30, 0.05, 1)
    model = ErrorModel.fit(sample, 2000)
    assert model.bias == pytest.approx(2, abs=4 * model.bias_variance**0.5)
    assert model.between == pytest.approx(9, rel=0.15)
    assert model.within == pytest.approx(1, rel=0.3)
    expected, variance = model.predict(count, np.zeros(2000), sample)
    low, high = bounds(expected, variance, 0.95)
    never = np.bincount(sample.gene, minlength=2000) == 0
    for some in (never, ~never):
        assert some.sum() > 300
        assert np.mean(((truth >= low) & (truth <= high))[some]) == pytest.approx(0.95, abs=0.03)
    assert variance[~never].mean() < 0.3 * variance[never].mean()


def test_genes_that_are_known_wholly_have_no_bounds_and_no_sample_gives_no_bound() -> None:
    sample = Sample(np.array([0, 0, 1]), np.array([1.0, 2.0, 0.0]), np.array([1.0, 1.0, 0.5]))
    model = ErrorModel.fit(sample, 3)
    expected, variance = model.predict(np.array([2, 4, 1]), np.array([6.0, 8.0, 1.0]), sample)
    assert (expected[0], variance[0]) == (4.5, 0.0)
    assert (variance[1:] > 0).all()
    none = Sample(np.empty(0, np.int64), np.empty(0), np.empty(0))
    assert np.isinf(ErrorModel.fit(none, 3).between)


def test_recall_by_hand() -> None:
    rng = np.random.default_rng(0)
    sure = recall_of_best(np.array([1.0, 5.0, 3.0, 4.0]), np.zeros(4), 2, 0.95, rng)
    assert (sure.value, sure.low, sure.high) == (1.0, 1.0, 1.0)
    even = recall_of_best(np.array([4.0, 5.0, 4 - 1e-9, 1.0]), np.array([0, 0, 1e-2, 0]), 2, 0.95, rng)
    assert even.value == pytest.approx(0.75, abs=0.03)
    assert (even.low, even.high) == (0.5, 1.0)
    unlikely = recall_of_best(np.array([4.0, 5.0, 3.0]), np.array([0, 0, 1.0]), 1, 0.95, rng)
    assert unlikely.value == pytest.approx(0.977, abs=0.015)  # two standard deviations
    assert recall_of_best(np.array([4.0, 5.0]), np.zeros(2), 9, 0.95, rng).k == 2
