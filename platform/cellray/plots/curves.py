"""Pictures of probabilities: ROC and precision-recall curves, calibration."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.plots.canvas import COLOURS, DASHES, GREY, canvas, few_digits, short

_MOST_COLOURED = 12
"""Up to so many classes each has a colour; of more the worst ones have, and the others are grey."""
_WORST = 6
_WIDE = 50  # a range wider than this is drawn on a logarithmic axis
_Z = 1.96

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def roc_png(
    probability_nc: NDArray[np.floating], code_n: NDArray[np.integer], classes: Sequence[str], path: Path, title: str
) -> None:
    """Draw the ROC curve of each class against the rest; classes without cells are left out and counted.

    Parameters
    ----------
    probability_nc
        Cells x classes.
    code_n
        True classes; cells with -1 are left out. Shape (cells,).
    classes
        Names.
    path
        Where the PNG goes.
    title
        Headline; the number of cells is added.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    def curve(own: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[Curve, float]:
        false_rate, true_rate, _ = roc_curve(own, score)
        return (false_rate, true_rate), float(roc_auc_score(own, score))

    with canvas(path, 7.8, 4.8) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        _draw(axes, curve, probability_nc, code_n, classes, f"{title}: ROC", "AUC")
        axes.set(xlabel="false positive rate", ylabel="true positive rate")


def precision_recall_png(
    probability_nc: NDArray[np.floating], code_n: NDArray[np.integer], classes: Sequence[str], path: Path, title: str
) -> None:
    """Draw the precision-recall curve of each class against the rest; parameters as in `roc_png`."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    def curve(own: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[Curve, float]:
        precision, recall, _ = precision_recall_curve(own, score, drop_intermediate=True)
        precision[-1] = precision[-2]  # scikit-learn ends with (0, 1), which no threshold reaches
        return (recall, precision), float(average_precision_score(own, score))

    with canvas(path, 7.8, 4.8) as figure:
        axes = figure.subplots()
        _draw(axes, curve, probability_nc, code_n, classes, f"{title}: precision and recall", "AP", step=True)
        axes.set(xlabel="recall", ylabel="precision")


def _draw(
    axes: Any,  # noqa: ANN401  # of matplotlib
    curve: Callable[[NDArray[np.bool_], NDArray[np.floating]], tuple[Curve, float]],
    probability_nc: NDArray[np.floating],
    code_n: NDArray[np.integer],
    classes: Sequence[str],
    title: str,
    area: str,
    *,
    step: bool = False,
) -> None:
    labelled = np.asarray(code_n) >= 0
    p_nc, code = probability_nc[labelled], np.asarray(code_n)[labelled]
    support = np.bincount(code, minlength=len(classes))
    defined = [c for c, n in enumerate(support) if 0 < n < len(code)]
    found = {c: curve(code == c, p_nc[:, c]) for c in defined}
    by_area = sorted(found, key=lambda c: found[c][1])
    coloured = by_area if len(found) <= _MOST_COLOURED else by_area[:_WORST]
    style: dict[str, Any] = {"drawstyle": "steps-post" if step else "default"}
    for c in set(found) - set(coloured):
        axes.plot(*found[c][0], color=GREY, linewidth=0.8, alpha=0.7, **style)
    for place, c in enumerate(sorted(coloured)):
        name = f"{short(classes[c], 24)} (n = {support[c]:,}): {found[c][1]:.3f}"
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
        axes.plot(*found[c][0], color=colour, linestyle=dash, linewidth=1.6, label=name, **style)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    mean = f"mean {area} {np.mean([each for _, each in found.values()]):.3f}" if found else "no curve is defined"
    left = f", {len(classes) - len(found)} classes without cells left out" if len(found) < len(classes) else ""
    axes.set_title(f"{title} (n = {len(code):,}; {mean}{left})", pad=10)
    if coloured:
        heading = f"{area}" if len(coloured) == len(found) else f"{area}: lowest {len(coloured)} of {len(found)}"
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title=heading, alignment="left")


def calibration_png(
    confidence_b: NDArray[np.float64],
    accuracy_b: NDArray[np.float64],
    count_b: NDArray[np.int64],
    path: Path,
    title: str,
    *,
    error: float,
    unit: str = "cells",
) -> None:
    """Draw how often the model was right when it was how sure, and how sure it was how often.

    Parameters
    ----------
    confidence_b, accuracy_b
        Means of the bins, NaN where empty. Shape (bins,).
    count_b
        Cells of the bins, which have equal widths between 0 and 1. Shape (bins,).
    path
        Where the PNG goes.
    title
        Headline; the number of cells is added.
    error
        Expected calibration error, written into the headline.
    unit
        What was classified.
    """
    from matplotlib.ticker import FuncFormatter

    bins, total = len(count_b), int(count_b.sum())
    filled = count_b > 0
    with canvas(path, 5.0, 5.8) as figure:
        above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        above.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="perfect")
        above.errorbar(
            confidence_b[filled],
            accuracy_b[filled],
            yerr=_wilson(accuracy_b[filled], count_b[filled]),
            color=COLOURS[0],
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1.2,
            clip_on=False,
            label="this model, 95 % interval",
        )
        above.set(xlim=(0, 1), ylim=(0, 1.03), ylabel="share that was right")
        above.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # a curve may go anywhere within
        below.bar((np.arange(bins) + 0.5) / bins, count_b, width=0.94 / bins, color=COLOURS[0])
        wide = count_b.max(initial=0) > _WIDE * count_b[filled].min(initial=total)
        below.set(xlabel="probability of the predicted class", ylabel=f"{unit},\nlogarithmic" if wide else unit)
        below.set_yscale("symlog" if wide else "linear")
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: few_digits(value)))
        headline = f"{title}: calibration"
        figure.suptitle(f"{headline}\nn = {total:,}, expected calibration error {error:.3f}", fontsize="medium")


def _wilson(share_b: NDArray[np.float64], n_b: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how far the 95 % interval of a share reaches down and up (Wilson 1927). Shape (2, bins).

    Unlike the standard error it does not vanish where all or none of a few cells were right.
    """
    centre = (share_b + _Z**2 / (2 * n_b)) / (1 + _Z**2 / n_b)
    half = _Z / (1 + _Z**2 / n_b) * np.sqrt(share_b * (1 - share_b) / n_b + _Z**2 / (4 * n_b**2))
    return np.clip(np.stack([share_b - (centre - half), centre + half - share_b]), 0, None)
