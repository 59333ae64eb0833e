"""Figures of a regression; what is undefined (a constant, fewer than two cells) is NaN, never a warning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.errors import InputError
from cellray.train.metrics.nan_json import finite_or_null

REGRESSION_FIGURES = ("r2", "pearson", "spearman", "mae", "rmse")
"""Names of the figures in `RegressionMetrics.values`."""


@dataclass(frozen=True)
class RegressionMetrics:
    """Figures of one test part.

    Attributes
    ----------
    n, unlabelled
        Cells that were scored, and those left out for want of a value.
    values
        r2, pearson, spearman; mae and rmse in the unit of the values.
    """

    n: int
    unlabelled: int
    values: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file; what is undefined is null."""
        return {"n": self.n, "unlabelled": self.unlabelled, "metrics": finite_or_null(self.values)}


def regression_metrics(predicted_n: NDArray[np.floating], value_n: NDArray[np.floating]) -> RegressionMetrics:
    """Score numbers against true ones.

    Parameters
    ----------
    predicted_n
        In the unit of the values. Shape (cells,).
    value_n
        NaN for cells without one, which are left out and counted. Shape (cells,).

    Raises
    ------
    InputError
        A prediction is not finite.
    """
    labelled = ~np.isnan(value_n)
    if not np.isfinite(predicted_n[labelled]).all():
        found = f"{int((~np.isfinite(predicted_n[labelled])).sum()):,} that are not"
        raise InputError("predictions", "every number must be finite", found, "Did the training diverge?")
    predicted, truth = predicted_n[labelled].astype(np.float64), value_n[labelled].astype(np.float64)
    n = len(truth)
    error = predicted - truth
    varies = n > 1 and np.ptp(truth) > 0
    values = {
        "r2": 1 - float((error**2).sum() / ((truth - truth.mean()) ** 2).sum()) if varies else float("nan"),
        **_correlations(predicted, truth, defined=bool(varies and np.ptp(predicted) > 0)),
        "mae": float(np.abs(error).mean()) if n else float("nan"),
        "rmse": float(np.sqrt((error**2).mean())) if n else float("nan"),
    }
    return RegressionMetrics(n, int((~labelled).sum()), values)


def _correlations(predicted: NDArray[np.float64], truth: NDArray[np.float64], *, defined: bool) -> dict[str, float]:
    if not defined:
        return {"pearson": float("nan"), "spearman": float("nan")}
    from scipy import stats

    spearman = np.corrcoef(stats.rankdata(predicted), stats.rankdata(truth))[0, 1]
    return {"pearson": float(np.corrcoef(predicted, truth)[0, 1]), "spearman": float(spearman)}
