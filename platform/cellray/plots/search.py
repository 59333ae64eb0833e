"""Pictures of a hyperparameter search: what each trial reached, which options mattered, and what trades off.

Is given plain columns and knows nothing of studies.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellray.plots.canvas import COLOURS, GREY, canvas, short

_COMPLETE, _STOPPED = "complete", "stopped early"
_BAR_INCH = 0.34
_DARK_GREY = "#707070"
_EDGE, _ROOM = 0.03, 0.08  # shares of the axis' height: what is marked at the edge touches neither line nor dots
_WIDE = 3.0
"""Values that lie further apart, compared to how their middle half does, leave most of a picture empty."""


def history_png(trials: pd.DataFrame, objective: str, path: Path, title: str, *, lower_is_better: bool) -> None:
    """Draw what each trial reached, and the best so far.

    Parameters
    ----------
    trials
        Columns `trial` (its number), the objective (NaN where it is not known) and `state`: `complete`, `stopped
        early`, or why there is no value. Each trial is drawn: those without a value, and those so bad that they would
        stretch the axis, as hollow markers at its edge.
    objective
        The column to draw.
    path
        Where the PNG goes.
    title
        Headline.
    lower_is_better
        Which way the best line goes.
    """
    number, value = trials["trial"].to_numpy(), trials[objective].to_numpy(np.float64)
    complete, stopped = (trials["state"] == _COMPLETE).to_numpy(), (trials["state"] == _STOPPED).to_numpy()
    known = (complete | stopped) & np.isfinite(value)
    lost = ~(complete | stopped)
    with canvas(path, 6.4, 4.0) as figure:
        axes = figure.subplots()
        axes.margins(y=_ROOM)
        if complete.any():
            run = np.minimum.accumulate if lower_is_better else np.maximum.accumulate
            best = run(value[complete])
            steps = [*number[complete], number.max()], [*best, best[-1]]
            axes.step(*steps, where="post", color=COLOURS[1], linewidth=1.5, label="best so far")
        off = known & _is_far(value, known, lower_is_better=lower_is_better)
        for chosen, colour, marker, name in (
            (complete, COLOURS[0], "o", _COMPLETE),
            (stopped, _DARK_GREY, "v", _STOPPED),
        ):
            if chosen.any():
                shown = chosen & known & ~off
                axes.scatter(number[shown], value[shown], s=24, color=colour, marker=marker, label=name, zorder=3)
                _at_edge(axes, number[chosen & off], marker, colour, top=lower_is_better)
                _at_edge(axes, number[chosen & ~known], marker, colour)
        if lost.any():
            _at_edge(axes, number[lost], "x", "black", label="failed or interrupted")
        if off.any():
            where = "above" if lower_is_better else "below"
            axes.plot(
                [], [], "o", color="black", markersize=5, fillstyle="none", label=f"{where} the scale: {off.sum():,}"
            )
            _limit(axes, value[known & ~off])
        axes.set(xlabel="trial", ylabel=short(objective))
        beside = max(0.5, 0.02 * float(np.ptp(number)))
        axes.set_xlim(number.min() - beside, number.max() + beside)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(f"{title}: {len(number):,} trials, {int(complete.sum()):,} complete", pad=10)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)


def importance_png(share: Mapping[str, float], path: Path, title: str, objective: str, *, trials: int) -> None:
    """Draw how much of an objective's variance each option explains, the most important one on top.

    Parameters
    ----------
    share
        By option; they sum to 1.
    path
        Where the PNG goes.
    title
        Headline.
    objective
        What is explained.
    trials
        Complete trials from which this was estimated, written into the headline.
    """
    ordered = sorted(share.items(), key=lambda item: item[1])
    with canvas(path, 6.0, 1.5 + _BAR_INCH * len(ordered)) as figure:
        axes = figure.subplots()
        bars = axes.barh([short(name) for name, _ in ordered], [value for _, value in ordered], color=COLOURS[0])
        axes.bar_label(bars, labels=[f"{value:.2f}" for _, value in ordered], padding=3, fontsize="small")
        axes.set(xlabel=f"share of the variance of {short(objective)}", xlim=(0, 1.08))
        axes.set_title(f"{title}: importance of options (fANOVA, {trials:,} trials)", pad=10)


def pareto_png(
    trials: pd.DataFrame,
    objectives: tuple[str, str],
    front: Collection[int],
    path: Path,
    title: str,
    *,
    lower_is_better: tuple[bool, bool],
) -> None:
    """Draw two objectives of each trial, and those trials that none beats in all objectives.

    Parameters
    ----------
    trials
        Columns `trial` and the objectives.
    objectives
        What goes on the two axes.
    front
        Numbers of the trials that none beats, the published one first. With more than two objectives some of them
        may seem beaten in these two.
    path
        Where the PNG goes.
    title
        Headline.
    lower_is_better
        Of each axis; told in its label.
    """
    x, y = objectives
    numbers = list(front)
    on_front = trials["trial"].isin(numbers).to_numpy()
    with canvas(path, 5.6, 4.8) as figure:
        axes = figure.subplots()
        axes.scatter(trials[x][~on_front], trials[y][~on_front], s=24, color=GREY, label="other trials")
        chosen = trials[on_front].sort_values([x, y])
        axes.plot(
            chosen[x],
            chosen[y],
            color=COLOURS[0],
            marker="o",
            markersize=5,
            linewidth=1,
            linestyle=":",
            label="Pareto front",
        )
        first = trials[trials["trial"] == numbers[0]]
        axes.scatter(
            first[x],
            first[y],
            s=110,
            facecolors="none",
            edgecolors=COLOURS[1],
            linewidths=1.8,
            zorder=4,
            label=f"published: trial {numbers[0]:,}",
        )
        for number, at_x, at_y in chosen[["trial", x, y]].itertuples(index=False):
            axes.annotate(f"{number:,}", (at_x, at_y), xytext=(6, 5), textcoords="offset points", fontsize="small")
        wanted = [f"{'lower' if lower else 'higher'} is better" for lower in lower_is_better]
        axes.set(xlabel=f"{short(x)} ({wanted[0]})", ylabel=f"{short(y)} ({wanted[1]})")
        axes.margins(0.08)
        axes.set_title(f"{title}: {len(numbers):,} of {len(trials):,} trials on the front", pad=10)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def _is_far(values: Any, known: Any, *, lower_is_better: bool) -> Any:  # noqa: ANN401
    """Tell which values are so bad that they alone would stretch the axis."""
    if known.sum() < 4:
        return np.zeros(len(values), np.bool_)
    low, middle, high = np.quantile(values[known], [0.25, 0.5, 0.75])
    spread = max(high - low, 1e-3 * abs(middle), 1e-12)
    return values > high + _WIDE * spread if lower_is_better else values < low - _WIDE * spread


def _limit(axes: Any, values: Any) -> None:  # noqa: ANN401
    """Let the axis hold these values, with room for what is drawn at its edges."""
    margin = _ROOM * max(float(np.ptp(values)), 1e-3 * abs(float(values[0])), 1e-12)
    axes.set_ylim(values.min() - margin, values.max() + margin)


def _at_edge(axes: Any, numbers: Any, marker: str, colour: str, *, top: bool = False, label: str | None = None) -> None:  # noqa: ANN401
    """Mark trials that have no place on the axis just inside its edge: hollow, so that nobody reads a value there."""
    height = np.full(len(numbers), 1 - _EDGE if top else _EDGE)
    look = {"color": colour, "marker": marker, "markersize": 5, "fillstyle": "none", "linestyle": ""}
    axes.plot(numbers, height, transform=axes.get_xaxis_transform(), label=label, **look)
