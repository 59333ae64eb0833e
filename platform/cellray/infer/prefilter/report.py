"""From estimates and exact values to a gene table with bounds, and a report of how good the estimates are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.infer.prefilter.choice import CHOSEN, SAMPLED, Means
from cellray.statistics.control_variate import (
    ErrorModel,
    Recall,
    Sample,
    bounds,
    corrected_means,
    recall_of_best,
)

Rows = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]
"""Of some exact rows: token id, exact value, estimate, whether the gene was chosen, inclusion probability."""
BOUND = "bound"
"""How a gene's value is known of which no perturbation was evaluated: not but for its bounds."""


@dataclass(frozen=True)
class Evaluated:
    """What is known of a screen, by token id v.

    Attributes
    ----------
    means
        Of the estimates, with the number of cells.
    rows
        All exact rows.
    inverse_v
        Sum over a gene's perturbations of (1 - p) / p.
    highest
        Whether a high mean is promising.
    """

    means: Means
    rows: Rows
    inverse_v: NDArray[np.float64]
    highest: bool

    @classmethod
    def of(cls, means: Means, pieces: Iterable[Rows], inverse_v: NDArray[np.float64], *, highest: bool) -> "Evaluated":
        """Gather the rows of all parts."""
        nothing: Rows = (np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0, bool), np.empty(0))
        token, exact, estimate, chosen, probability = (
            np.concatenate(each) for each in zip(nothing, *pieces, strict=True)
        )
        finite = np.isfinite(exact)  # a zero vector has no direction
        kept: Any = tuple(column[finite] for column in (token, exact, estimate, chosen, probability))
        return cls(means, kept, inverse_v, highest)


@dataclass(frozen=True)
class _Genes:
    """The numbers of each gene that a cell expresses, in the order of the token ids `there`."""

    there: NDArray[np.int64]
    count: NDArray[np.int64]
    total: NDArray[np.float64]
    known: NDArray[np.int64]
    whole: NDArray[np.bool_]
    exact: NDArray[np.float64]
    sample: Sample
    model: ErrorModel
    expected: NDArray[np.float64]
    variance: NDArray[np.float64]
    inverse: NDArray[np.float64]

    @classmethod
    def of(cls, found: Evaluated) -> "_Genes":
        there = np.flatnonzero(found.means.count_v)
        count, total = found.means.count_v[there], found.means.sum_v[there]
        token_r, exact_r, estimate_r, chosen_r, probability_r = found.rows
        gene_r, drawn = np.searchsorted(there, token_r), ~chosen_r
        known = np.bincount(gene_r, minlength=len(there))
        whole = np.bincount(gene_r[chosen_r], minlength=len(there)) > 0
        exact = np.bincount(gene_r, exact_r, len(there)) / np.maximum(known, 1)
        sample = Sample(gene_r[drawn], (exact_r - estimate_r)[drawn], probability_r[drawn])
        model = ErrorModel.fit(sample, len(there))
        expected, variance = model.predict(count, total, sample)
        expected, variance = np.where(whole, exact, expected), np.where(whole, 0.0, variance)
        inverse = np.where(whole, 0.0, found.inverse_v[there])
        return cls(there, count, total, known, whole, exact, sample, model, expected, variance, inverse)

    def values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return means and their variances: exact, or corrected by the sample; NaN where nothing was evaluated."""
        value, spread = corrected_means(self.count, self.total, self.sample)
        spread = np.maximum(spread, self.model.variance_of_corrected(self.count, self.inverse))
        value, spread = np.where(self.whole, self.exact, value), np.where(self.whole, 0.0, spread)
        return np.where(self.known > 0, value, np.nan), np.where(self.known > 0, spread, np.nan)


def gene_table(
    found: Evaluated, names: Mapping[int, str], confidence: float, k: int, seed: int, least: int = 1
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a row for each gene, the most promising first, and the report.

    Parameters
    ----------
    names
        Ensembl ID of each token id.
    k
        How many of the best genes the recall is about.
    least
        Only genes of so many cells are looked at for it.

    Returns
    -------
    tuple[pd.DataFrame, dict[str, Any]]
        Columns: `How`: `chosen` = all cells exact, `sampled`, or `bound` = none. `Value`: the exact mean, or the
        estimates' mean corrected by the sample (unbiased), or nothing. `Value_low`, `Value_high`: its interval.
        `Expected`, `Bound_low`, `Bound_high`: where the exact mean lies by the model of the errors
        (`ErrorModel.predict`); for a gene with few sampled cells these are much narrower.
    """
    genes = _Genes.of(found)
    value, spread = genes.values()
    low, high = bounds(value, spread, confidence)
    bound_low, bound_high = bounds(genes.expected, genes.variance, confidence)
    columns = {
        "Ensembl_ID": [names[token] for token in genes.there.tolist()],
        "N_Detections": genes.count,
        "N_Exact": genes.known,
        "How": np.select([genes.whole, genes.known > 0], [CHOSEN, SAMPLED], BOUND),
        "Estimate": genes.total / genes.count,
        "Value": value,
        "Value_low": low,
        "Value_high": high,
        "Expected": genes.expected,
        "Bound_low": bound_low,
        "Bound_high": bound_high,
    }
    best_first = np.lexsort((genes.there, -genes.expected if found.highest else genes.expected))
    table = pd.DataFrame(columns).iloc[best_first].reset_index(drop=True)
    recall = _recall(genes, found.highest, confidence, k, seed, least)
    return table, _report(found, genes, table, confidence, recall)


def _recall(genes: _Genes, highest: bool, confidence: float, k: int, seed: int, least: int) -> Recall | None:
    sign, frequent = 1.0 if highest else -1.0, genes.count >= least
    if not frequent.any():
        return None
    rng = np.random.default_rng(seed)
    return recall_of_best(sign * genes.expected[frequent], genes.variance[frequent], k, confidence, rng)


def _report(
    found: Evaluated, genes: _Genes, table: pd.DataFrame, confidence: float, recall: Recall | None
) -> dict[str, Any]:
    """Return how good the estimates are."""
    drawn, model = ~found.rows[3], genes.model
    report = {
        "genes": {how: int((table["How"] == how).sum()) for how in (CHOSEN, SAMPLED, BOUND)},
        "confidence": confidence,
        "rank correlation of estimates": _agreement(found.rows[2][drawn], found.rows[1][drawn], confidence),
        "errors of estimates": {
            "bias": model.bias,
            "sd between genes": model.between**0.5,
            "sd within genes": model.within**0.5,
        },
        "recall": recall
        and {
            "of the best": recall.k,
            "estimate": recall.value,
            "low": recall.low,
            "high": recall.high,
            "how": "of the table's first genes: 1,000 draws of all means, exact or normal by the model of the errors",
        },
        "mean over all perturbations": _overall(genes, confidence),
    }
    plain: dict[str, Any] = _without_nan(report)
    return plain


def summary(report: Mapping[str, Any]) -> list[str]:
    """Return the report in lines for people."""
    genes, passes = report["genes"], report["forward passes"]
    agreement, recall = report["rank correlation of estimates"], report["recall"]
    lines = [
        f"genes: {genes[CHOSEN]:,} exact in all their cells, {genes[SAMPLED]:,} sampled, {genes[BOUND]:,} with bounds",
        f"{passes['estimates'] + passes['exact']:,} forward passes, {passes['times fewer']:.1f} x fewer than all",
    ]
    if agreement["spearman"] is not None:
        interval = f"{agreement['low']:.3f} to {agreement['high']:.3f}"
        lines.append(f"rank correlation of estimates with exact values: {agreement['spearman']:.3f} ({interval})")
    if recall:
        interval = f"{recall['low']:.2f} to {recall['high']:.2f}"
        lines.append(f"recall of the best {recall['of the best']}, estimated: {recall['estimate']:.2f} ({interval})")
    return lines


def _agreement(estimate_r: NDArray[np.float64], exact_r: NDArray[np.float64], confidence: float) -> dict[str, Any]:
    """Return Spearman's correlation over the random sample with its interval (Bonett and Wright 2000)."""
    from scipy.stats import spearmanr

    rows = len(exact_r)
    if rows < 4 or np.ptp(exact_r) == 0 or np.ptp(estimate_r) == 0:
        return {"rows": rows, "spearman": None, "low": None, "high": None}
    rho = float(spearmanr(estimate_r, exact_r).statistic)
    centre = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    ends = bounds(np.array([centre]), np.array([(1 + rho**2 / 2) / (rows - 3)]), confidence)
    low, high = (float(np.tanh(end[0])) for end in ends)
    return {"rows": rows, "spearman": rho, "low": low, "high": high}


def _overall(genes: _Genes, confidence: float) -> dict[str, float]:
    """Return the mean over all perturbations of the screen, estimates corrected by the sample."""
    known = float((genes.exact * genes.known)[genes.whole].sum())
    total = np.array([known + genes.total[~genes.whole].sum()])
    mean, variance = corrected_means(genes.count.sum()[None], total, _as_one_gene(genes.sample))
    low, high = bounds(mean, variance, confidence)
    return {"value": float(mean[0]), "low": float(low[0]), "high": float(high[0])}


def _as_one_gene(sample: Sample) -> Sample:
    return Sample(np.zeros_like(sample.gene), sample.error, sample.probability)


def _without_nan(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Replace numbers that JSON does not know by None."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
