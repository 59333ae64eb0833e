"""Pictures of a training: losses and figures of the validation part over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellray.plots.canvas import COLOURS, DASHES, canvas, short

Points = tuple[Sequence[int], Sequence[float]]
"""Steps, and a value at each."""
_MOST_POINTS = 60
"""A line with fewer points shows each."""


def training_png(
    losses: Mapping[str, Points], metrics: Mapping[str, Points], path: Path, title: str, *, best_step: int | None = None
) -> None:
    """Draw losses on the left and, if there are any, other figures on the right.

    Parameters
    ----------
    losses
        By name, as training and validation.
    metrics
        By name, as accuracy and macro_f1: figures between 0 and 1, or of any size.
    path
        Where the PNG goes.
    title
        Headline.
    best_step
        Marked, where the kept checkpoint was made.
    """
    with canvas(path, 10.0 if metrics else 5.6, 4.0) as figure:
        panels = figure.subplots(1, 2 if metrics else 1, squeeze=False)[0]
        _draw(panels[0], losses, "loss", best_step)
        if metrics:
            values = np.array([value for _, series in metrics.values() for value in series], np.float64)
            low, high = np.nanmin(values, initial=0), np.nanmax(values, initial=0)
            _draw(panels[1], metrics, f"validation part{', share' if low >= 0 and high <= 1 else ''}", best_step)
            if low >= 0 and 0.4 < high <= 1:
                panels[1].set_ylim(0, 1.03)
        steps = max((max(series[0], default=0) for series in [*losses.values(), *metrics.values()]), default=0)
        figure.suptitle(f"{title} ({steps:,} steps)", fontsize="medium")


def _draw(axes: Any, series: Mapping[str, Points], label: str, best_step: int | None) -> None:  # noqa: ANN401
    for i, (name, (steps, values)) in enumerate(series.items()):
        marker = "o" if len(steps) <= _MOST_POINTS else ""
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        axes.plot(steps, values, color=colour, linestyle=dash, marker=marker, markersize=3, label=short(name))
    if best_step is not None:
        axes.axvline(best_step, color="black", linestyle=":", linewidth=1, label=f"kept: step {best_step:,}")
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
