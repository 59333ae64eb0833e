"""How far probabilities can be believed: reliability table, expected calibration error, Brier score."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Calibration:
    """Cells by how sure the model was of the class it gave.

    Attributes
    ----------
    edges
        Of the bins of confidence; a bin holds its upper edge. Shape (bins + 1,).
    count_b
        Cells in each bin. Shape (bins,).
    confidence_b, accuracy_b
        Mean confidence and share of right answers of a bin, NaN where it is empty. Shape (bins,).
    """

    edges: NDArray[np.float64]
    count_b: NDArray[np.int64]
    confidence_b: NDArray[np.float64]
    accuracy_b: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error: |accuracy - confidence| averaged over cells (Guo et al. 2017, equation 3)."""
        filled = self.count_b > 0
        if not filled.any():
            return float("nan")
        gap = np.abs(self.accuracy_b - self.confidence_b)[filled]
        return float(np.average(gap, weights=self.count_b[filled]))

    def table(self) -> pd.DataFrame:
        """Return a row for each bin."""
        return pd.DataFrame(
            {
                "above": self.edges[:-1],
                "up_to": self.edges[1:],
                "n": self.count_b,
                "confidence": self.confidence_b,
                "accuracy": self.accuracy_b,
            }
        )


def calibration(confidence_n: NDArray[np.float64], right_n: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Put cells in bins of equal width by their confidence.

    Parameters
    ----------
    confidence_n
        Probability of the class that was given, the largest of its row. Shape (cells,).
    right_n
        Whether it was the true one. Shape (cells,).
    bins
        Between 0 and 1.
    """
    edges = np.linspace(0, 1, bins + 1)
    bin_n = np.clip(np.searchsorted(edges, confidence_n, side="left") - 1, 0, bins - 1)
    count_b = np.bincount(bin_n, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin is NaN, as it should be
        confidence_b = np.bincount(bin_n, confidence_n, bins) / count_b
        accuracy_b = np.bincount(bin_n, right_n, bins) / count_b
    return Calibration(edges, count_b, confidence_b, accuracy_b)


def brier_score(p_nc: NDArray[np.float64], code_n: NDArray[np.int64]) -> float:
    """Return the mean squared distance to the true class's unit vector, 0 .. 2 (Brier 1950); NaN without cells."""
    if not len(code_n):
        return float("nan")
    squares = (p_nc**2).sum(axis=1) - 2 * p_nc[np.arange(len(code_n)), code_n] + 1
    return float(squares.mean())
