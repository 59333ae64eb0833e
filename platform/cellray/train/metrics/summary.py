"""Predictions gathered over workers and folds, and figures averaged over folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.errors import InputError


@dataclass(frozen=True)
class Predictions:
    """What a head gave to some cells.

    Attributes
    ----------
    cells_n
        Numbers of the cells in the corpus. Shape (cells,).
    output_nc
        Probabilities of the classes, or one column of numbers. Cells x classes.
    """

    cells_n: NDArray[np.int64]
    output_nc: NDArray[np.floating]

    @classmethod
    def gather(cls, parts: Sequence[Self]) -> Self:
        """Put predictions of several workers or folds together, by ascending cell number.

        Raises
        ------
        InputError
            A cell stands there twice.
        """
        cells_n = np.concatenate([part.cells_n for part in parts])
        order = np.argsort(cells_n, kind="stable")
        twice = int((np.diff(cells_n[order]) == 0).sum())
        if twice:
            fix = "Gather the test parts of one k-fold, each once."
            raise InputError("predictions", "every cell must be predicted once", f"{twice:,} repetitions", fix)
        return cls(cells_n[order], np.concatenate([part.output_nc for part in parts])[order])


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
