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
_WIDE = 3.0
"""Values that lie further apart, compared to how their middle half does, leave most of a picture empty."""


def history_png(trials: pd.DataFrame, objective: str, path: Path, title: str, *, lower_is_better: bool) -> None:
    """Draw what each trial reached, and the best so far.

    Parameters
    ----------
    trials
        Columns `trial` (its number), the objective (NaN where nothing was reached) and `state`: `complete`, `stopped
        early`, or why there is no value.
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
    with canvas(path, 6.4, 4.0) as figure:
        axes = figure.subplots()
        if complete.any():
            run = np.minimum.accumulate if lower_is_better else np.maximum.accumulate
            best = run(value[complete])
            axes.step(number[complete], best, where="post", color=COLOURS[1], linewidth=1.5, label="best so far")
        for chosen, colour, marker, name in (
            (complete, COLOURS[0], "o", _COMPLETE),
            (stopped, GREY, "v", _STOPPED),
        ):
            if chosen.any():
                axes.scatter(number[chosen], value[chosen], s=24, color=colour, marker=marker, label=name, zorder=3)
        lost = ~(complete | stopped)
        if lost.any():
            axes.plot(
                number[lost],
                np.zeros(int(lost.sum())),
                color="black",
                marker="x",
                linestyle="",
                markersize=5,
                clip_on=False,
                transform=axes.get_xaxis_transform(),
                label="failed or cut off",
            )
        axes.set(xlabel="trial", ylabel=short(objective))
        axes.xaxis.get_major_locator().set_params(integer=True)
        _focus(axes, value[complete | stopped], lower_is_better=lower_is_better)
        axes.set_title(f"{title}: {len(number):,} trials, {int(complete.sum()):,} complete", pad=10)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)


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


def _focus(axes: Any, values: Any, *, lower_is_better: bool) -> None:  # noqa: ANN401
    """Cut the worst values off where they alone would stretch the axis, and say how many."""
    if len(values) < 4:
        return
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    spread = max(high - low, 1e-3 * abs(middle), 1e-12)
    edge = high + _WIDE * spread if lower_is_better else low - _WIDE * spread
    cut = int((values > edge).sum() if lower_is_better else (values < edge).sum())
    if cut:
        inside = values[values <= edge] if lower_is_better else values[values >= edge]
        margin = 0.05 * max(float(np.ptp(inside)), spread)
        axes.set_ylim(inside.min() - margin, inside.max() + margin)
        where = ("above", 0.98, "top") if lower_is_better else ("below", 0.04, "bottom")
        axes.text(
            0.99, where[1], f"{cut:,} {where[0]}", transform=axes.transAxes, ha="right", va=where[2], fontsize="small"
        )
