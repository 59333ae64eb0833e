"""Figures averaged over folds."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd


def over_folds(values: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """Return a row for each figure: its mean, standard deviation and number over the folds where it is defined.

    The standard deviation is that of a sample (n - 1), NaN for a single fold.

    Parameters
    ----------
    values
        Figures by name, one mapping a fold.
    """
    table = pd.DataFrame([dict(each) for each in values]).astype(np.float64)
    rows = {"mean": table.mean(), "std": table.std(ddof=1), "n": table.count()}
    return pd.DataFrame(rows).rename_axis("metric").reset_index()
