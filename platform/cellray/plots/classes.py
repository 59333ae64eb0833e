"""Pictures of classes: the confusion matrix, the cells of each class in each part."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.plots.canvas import COLOURS, canvas, few_digits, short

_WITH_SHARES = 14
"""Up to so many classes both the share and the count are written into a field."""
_DARK = 0.55
_WIDE = 100  # a range wider than this is drawn on a logarithmic axis


def confusion_png(confusion_cc: NDArray[np.int64], classes: Sequence[str], path: Path, title: str) -> None:
    """Draw a confusion matrix: colours are shares of the true class (rows), numbers are counts.

    Parameters
    ----------
    confusion_cc
        Counts by true (rows) and given class (columns). Classes x classes.
    classes
        Names.
    path
        Where the PNG goes.
    title
        Headline; the number of cells is added.
    """
    c = len(classes)
    support = confusion_cc.sum(axis=1)
    share_cc = confusion_cc / np.maximum(support, 1)[:, None]
    field = 0.62 if c <= _WITH_SHARES else 0.36
    room = 0.085 * max(len(short(name)) for name in classes) + 0.9
    side = max(field * c, 2.2)
    with canvas(path, side + room + 1.2, side + room * 0.85 + 0.6, dpi=150 if c <= _WITH_SHARES else 130) as figure:
        axes = figure.subplots()
        image = axes.imshow(share_cc, vmin=0, vmax=1, cmap="Blues")
        _write_counts(axes, confusion_cc, share_cc)
        names = [short(name) for name in classes]
        axes.set_xticks(range(c), names, rotation=45 if c <= _WITH_SHARES else 90, fontsize="small")
        if c <= _WITH_SHARES:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        rows = [f"{name} ({few_digits(n)})" for name, n in zip(names, support, strict=True)]
        axes.set_yticks(range(c), rows, fontsize="small")
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(c + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(c + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="both", length=0)
        axes.set(xlabel="predicted", ylabel="true (n)")
        axes.set_title(f"{title} (n = {int(support.sum()):,})", pad=10)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, aspect=25, shrink=0.8)
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)


def _write_counts(axes: Any, confusion_cc: NDArray[np.int64], share_cc: NDArray[np.float64]) -> None:  # noqa: ANN401
    roomy = len(confusion_cc) <= _WITH_SHARES
    for row, column in np.argwhere(confusion_cc > 0):
        share, count = share_cc[row, column], few_digits(confusion_cc[row, column])
        axes.text(
            column,
            row,
            f"{_percent(share)}\n{count}" if roomy else count,
            ha="center",
            va="center",
            fontsize=8 if roomy else 6.5,
            color="white" if share > _DARK else "black",
        )


def _percent(share: float) -> str:
    return "<1%" if share < 0.005 else f"{share:.0%}"  # what is there must not read as nothing


def support_png(
    counts: Mapping[str, NDArray[np.int64]], classes: Sequence[str], path: Path, title: str, *, unit: str = "cells"
) -> None:
    """Draw how many cells of each class are in each part.

    Parameters
    ----------
    counts
        For each part the cells of each class. Shape (classes,).
    classes
        Names.
    path
        Where the PNG goes.
    title
        Headline; the number of cells is added.
    unit
        What is counted.
    """
    from matplotlib.ticker import FuncFormatter

    c, height = len(classes), 0.8 / max(len(counts), 1)
    total = sum(int(n.sum()) for n in counts.values())
    largest = max((int(n.max(initial=0)) for n in counts.values()), default=1)
    least = min((int(n[n > 0].min()) for n in counts.values() if (n > 0).any()), default=1)
    wide = largest > _WIDE * least
    order = np.argsort(-sum(counts.values(), np.zeros(c, np.int64)), kind="stable")
    bar = 0.17 if c <= _WITH_SHARES else 0.11
    with canvas(path, 7.5, 1.6 + (bar * len(counts) + 0.12) * c) as figure:
        axes = figure.subplots()
        for i, (part, n) in enumerate(counts.items()):
            place = np.arange(c) + (i - (len(counts) - 1) / 2) * height
            bars = axes.barh(place, n[order], height, label=f"{part} ({int(n.sum()):,})", color=COLOURS[i])
            axes.bar_label(
                bars, [few_digits(k) for k in n[order]], padding=2, fontsize=6.5 if c <= _WITH_SHARES else 5.5
            )
        axes.set_yticks(range(c), [short(classes[k]) for k in order], fontsize="small")
        axes.set(ylim=(c - 0.4, -0.6), xlabel=f"{unit}, logarithmic" if wide else unit)
        axes.set_xscale("symlog" if wide else "linear")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlim(0, max(largest, 1) * (2.5 if wide else 1.12))
        axes.tick_params(axis="y", length=0)
        figure.suptitle(f"{title} (n = {total:,})", fontsize="medium")
        figure.legend(loc="outside lower center", ncols=len(counts))
