"""A picture of predicted numbers against true ones."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellray.plots.canvas import COLOURS, GREY, canvas

_MOST_POINTS = 3000
"""Of more cells their density is drawn."""


def regression_png(
    predicted_n: NDArray[np.floating], value_n: NDArray[np.floating], path: Path, title: str, *, note: str = ""
) -> None:
    """Draw predicted against true numbers, with the diagonal on which they agree.

    Parameters
    ----------
    predicted_n, value_n
        Cells whose true number is NaN are left out. Shape (cells,).
    path
        Where the PNG goes.
    title
        Headline; the number of cells is added.
    note
        Figures, put below the headline.
    """
    known = ~np.isnan(value_n)
    truth, predicted = value_n[known].astype(np.float64), predicted_n[known].astype(np.float64)
    with canvas(path, 5.6, 5.4) as figure:
        axes = figure.subplots()
        if len(truth):
            low, high = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
            pad = 0.03 * (high - low) or 1.0
            if len(truth) > _MOST_POINTS:
                image = axes.hexbin(truth, predicted, gridsize=50, bins="log", mincnt=1, cmap="Blues", linewidths=0.1)
                figure.colorbar(image, ax=axes, shrink=0.7, label="cells").outline.set_visible(False)
            else:
                axes.scatter(truth, predicted, s=10, linewidths=0, alpha=0.6, color=COLOURS[0])
            axes.plot([low, high], [low, high], color=GREY, linestyle=":", linewidth=1.2)
            axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal")
        axes.set(xlabel="true", ylabel="predicted")
        headline = f"{title} (n = {len(truth):,})"
        axes.set_title(f"{headline}\n{note}" if note else headline, pad=10)
