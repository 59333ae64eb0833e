"""Whole numbers that are probably no raw counts: rounded or binarised matrices, told by their distributions.

Each suspicion is a sentence with its evidence. They are warnings: small panels and shallow assays can look like this.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cellray.data.sources.contract import CountBlock

_ENOUGH_CELLS = 50
_MANY_GENES = 200  # detected genes a cell, on average, from which a real cell has some gene with many counts
_EQUAL_TOTALS = 0.15  # coefficient of variation of totals: at most 0.11 seen after rounding, at least 0.3 in raw cells
_LOG_MAX = 15  # log(1 + counts per 10,000) stays below 9.3, log2 of counts per million hardly goes above 15


def suspicions(block: CountBlock, n_counts: NDArray[np.float64]) -> list[str]:
    """Return what speaks against a block of whole numbers being raw counts.

    Parameters
    ----------
    block
        Cells of a matrix that passed `cellray.data.checks.check_block`.
    n_counts
        Their totals. Shape (cells,).
    """
    detected = np.diff(block.indptr)
    if block.n_cells < _ENOUGH_CELLS or detected.mean() < _MANY_GENES:
        return []
    found = [check(block.counts, n_counts, float(detected.mean())) for check in _CHECKS]
    return [sentence for sentence in found if sentence]


def _binarised(counts: NDArray[np.generic], n_counts: NDArray[np.float64], detected: float) -> str:
    del n_counts
    if float(counts.max()) > 1:
        return ""
    return f"looks binarised: no value above 1 in cells with {detected:,.0f} detected genes on average"


def _rounded_logarithms(counts: NDArray[np.generic], n_counts: NDArray[np.float64], detected: float) -> str:
    del n_counts
    largest = float(counts.max())
    if not 1 < largest < _LOG_MAX:
        return ""
    return f"looks like rounded logarithms: no value above {largest:g} in cells with {detected:,.0f} detected genes"


def _rounded_shares(counts: NDArray[np.generic], n_counts: NDArray[np.float64], detected: float) -> str:
    del counts, detected
    variation = float(n_counts.std() / n_counts.mean())
    if variation > _EQUAL_TOTALS:
        return ""
    return f"looks normalised and rounded: cells total {n_counts.mean():,.0f}, give or take {variation:.1%}"


_CHECKS: tuple[Callable[[NDArray[np.generic], NDArray[np.float64], float], str], ...] = (
    _binarised,
    _rounded_logarithms,
    _rounded_shares,
)
