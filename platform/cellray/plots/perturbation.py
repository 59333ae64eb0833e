"""Pictures of perturbation screens: ranked shifts, volcano, gene effects, pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.plots.canvas import COLOURS, GREY, canvas, short

Array = NDArray[np.float64]
TOWARDS, AWAY = COLOURS[1], COLOURS[0]
_SMALL = 7
_TINY = 1e-3
"""Effects below are drawn in a power of ten that the label tells."""


def ranked_shifts_png(
    shift_g: Array,
    names: Sequence[str],
    significant_g: NDArray[np.bool_],
    path: Path,
    title: str,
    *,
    label: str,
    interval_g2: Array | None = None,
    reference: float = 0.0,
    named: int = 12,
    verdicts: tuple[str, str] = ("FDR ≥ 0.05", "FDR < 0.05"),
    interval_label: str = "",
    single: str = "one value",
    counts: Sequence[str] = (),
    counted: str = "",
) -> None:
    """Draw the effects of all perturbations in order; the extremes of both ends are named.

    Parameters
    ----------
    shift_g, names, significant_g
        Effect, name and verdict of each perturbation.
    path, title
        Where the PNG goes, and its headline.
    label
        What the effect is.
    interval_g2
        Confidence intervals; NaN where there is none.
    reference
        Effect of a perturbation that does nothing.
    named
        Names at each end.
    verdicts
        What `significant_g` says where it is false, where it is true.
    interval_label, single
        What the intervals are, and what a perturbation without one has.
    counts, counted
        How many cells (and donors) each perturbation was measured in, written behind its name, and what the counts are.
    """
    order = np.argsort(-shift_g, kind="stable")
    sig, n = significant_g[order], len(order)
    base, unit, label = _scale(shift_g, reference, label)
    y, reference = (shift_g[order] - base) / unit, (reference - base) / unit
    lines = [f"{short(names[i], 18)}{f' ({counts[i]})' if counts else ''}" for i in order]
    intervals = None if interval_g2 is None else (interval_g2[order] - base) / unit
    few = 2 * named >= n
    ends = [(np.arange(n), "")] if few else [(np.arange(named), "highest"), (np.arange(n - named, n), "lowest")]
    with canvas(path, 9.2, 4.8, dpi=200) as figure:
        axes, *sides = figure.subplots(1, 1 + len(ends), width_ratios=[1.7, *[1] * len(ends)])
        axes.axhline(reference, color="black", linewidth=0.7)
        axes.plot(np.arange(1, n + 1), y, color=GREY, linewidth=1, zorder=1)
        for chosen, colour, text in ((~sig, GREY, verdicts[0]), (sig, TOWARDS, verdicts[1])):
            if chosen.any():
                where = np.flatnonzero(chosen) + 1
                axes.scatter(where, y[chosen], s=9, color=colour, linewidths=0, label=f"{text} ({chosen.sum():,})")
        axes.set(xlabel="perturbations by rank", ylabel=label, xlim=(1 - 0.02 * n, n * 1.02))
        axes.legend(loc="best", markerscale=1.8)
        axes.set_title("all perturbations", fontsize="small")
        for side, (rows, text) in zip(sides, ends, strict=True):
            head = " ".join(filter(None, [text, f"({counted})" if counts else ""]))
            _named(side, rows, y, [lines[i] for i in rows], sig, reference, head, intervals)
            bars = "" if intervals is None or not interval_label else _bars(intervals[rows], interval_label, single)
            side.set_xlabel("\n".join(filter(None, [label.replace(" [", "\n["), bars])), fontsize="small")
        figure.suptitle(f"{title} (n = {n:,})", fontsize="medium")


def _scale(shift_g: Array, reference: float, label: str) -> tuple[float, float, str]:
    """Return what tiny effects are drawn relative to and in units of, and the label that says so.

    Written by the axis itself, the power of ten would stand over the label.
    """
    most = float(np.abs(shift_g - reference).max(initial=0))
    if not 0 < most < _TINY:
        return 0.0, 1.0, label
    power = int(np.floor(np.log10(most)))
    less = f" $-$ {reference:g}" if reference else ""
    return reference, 10.0**power, f"{label}{less} [$10^{{{power}}}$]"


def _bars(interval: Array, label: str, single: str) -> str:
    """Say what the bars of some perturbations are, and why some or all of them have none."""
    missing = int(np.isnan(interval).any(axis=1).sum())
    if missing == len(interval):
        return f"no bars: {single} each"
    return f"bars: {label}" + (f"; {missing} of {single}" if missing else "")


def _named(
    axes: Any,  # noqa: ANN401
    rows: NDArray[np.int64],
    y: Array,
    names: list[str],
    sig: NDArray[np.bool_],
    reference: float,
    text: str,
    interval: Array | None,
) -> None:
    """Draw some perturbations a line each, with their intervals."""
    place = np.arange(len(rows))
    if interval is not None:
        known = ~np.isnan(interval[rows]).any(axis=1)
        low, high = interval[rows][known].T
        axes.hlines(place[known], low, high, color=GREY, linewidth=1.2, zorder=1)
    axes.scatter(y[rows], place, s=16, c=[TOWARDS if hit else "#606060" for hit in sig[rows]], linewidths=0, zorder=2)
    left, right = axes.get_xlim()
    if left <= reference <= right:
        axes.axvline(reference, color="black", linewidth=0.7)
    axes.set_yticks(place, names, fontsize=_SMALL + 0.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=_SMALL)
    axes.locator_params(axis="x", nbins=4)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.set_title(text, fontsize="small")


def volcano_png(
    effect_g: Array,
    fdr_g: Array,
    names: Sequence[str],
    path: Path,
    title: str,
    *,
    label: str,
    fdr_label: str = "FDR",
    named: int = 12,
    alpha: float = 0.05,
) -> None:
    """Draw effects against -log10 FDR; the strongest significant perturbations are named.

    Parameters
    ----------
    effect_g, fdr_g, names
        Effect, false discovery rate and name of each perturbation; those without a rate are left out and counted.
    path, title, label
        Where the PNG goes, its headline, what the effect is.
    fdr_label
        Which test's rate it is.
    named
        Most names.
    alpha
        Significance.
    """
    known = ~np.isnan(fdr_g) & ~np.isnan(effect_g)
    x, rate = effect_g[known], fdr_g[known]
    shown = [name for name, there in zip(names, known, strict=True) if there]
    least = rate[rate > 0].min(initial=1.0)
    y = -np.log10(np.maximum(rate, least / 10))  # a rate that is 0 in float64 stands just above the others
    with canvas(path, 6.4, 5.2, dpi=200) as figure:
        axes = figure.subplots()
        hit = rate < alpha
        groups = (
            (~hit, GREY, "not significant"),
            (hit & (x > 0), TOWARDS, "increase"),
            (hit & (x <= 0), AWAY, "decrease"),
        )
        for chosen, colour, text in groups:
            if chosen.any():
                style = {"s": 10, "color": colour, "linewidths": 0, "alpha": 0.8}
                axes.scatter(x[chosen], y[chosen], label=f"{text} ({chosen.sum():,})", **style)
        axes.axhline(-np.log10(alpha), color="black", linestyle=":", linewidth=0.9)
        axes.axvline(0, color="black", linewidth=0.6)
        reach = 1.15 * max(float(np.abs(x).max(initial=0)), 1e-12)
        top = max(1.12 * float(y.max(initial=0)), 1.25 * -np.log10(alpha))
        axes.set(xlabel=label, ylabel=f"$-\\log_{{10}}$ {fdr_label}", xlim=(-reach, reach), ylim=(-0.02 * top, top))
        strong = np.argsort(-np.where(hit, y / top + np.abs(x) / reach, -1))[: min(named, int(hit.sum()))]
        _spread_names(axes, x, y, [short(name, 18) for name in shown], strong, reach, top)
        if len(x):
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, markerscale=1.8)
        left = f"; {int((~known).sum()):,} untested" if not known.all() else ""
        axes.set_title(f"{title} (n = {int(known.sum()):,}{left})", pad=10)


def _spread_names(
    axes: Any,  # noqa: ANN401
    x: Array,
    y: Array,
    names: list[str],
    chosen: NDArray[np.int64],
    reach: float,
    top: float,
) -> None:
    """Write names beside their points, those of a side below each other so that none hide one another."""
    for side in (x > 0, x <= 0):
        rows = [i for i in chosen[np.argsort(-y[chosen], kind="stable")] if side[i]]
        lowest = np.inf
        for i in rows:
            height = min(float(y[i]), lowest - 0.042 * top)
            lowest = height
            outward = 1 if x[i] > 0 else -1
            end = x[i] + outward * 0.035 * reach
            room = outward * (reach - abs(end)) > 0
            anchor = (
                ("left" if outward > 0 else "right")
                if abs(end) < 0.72 * reach and room
                else ("right" if outward > 0 else "left")
            )
            end = end if anchor == ("left" if outward > 0 else "right") else x[i] - outward * 0.035 * reach
            axes.annotate(
                names[i], (x[i], y[i]), (end, height), fontsize=_SMALL, ha=anchor, va="center",
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
            )  # fmt: skip


def gene_effects_png(
    similarity_pa: Array, perturbed: Sequence[str], affected: Sequence[str], path: Path, title: str
) -> None:
    """Draw how much perturbations (rows) move the embeddings of other genes (columns): 1 - cosine similarity.

    Parameters
    ----------
    similarity_pa
        Mean cosine similarity; NaN where the two never met in a cell. Perturbed x affected.
    perturbed, affected
        Names.
    path, title
        Where the PNG goes, and its headline.
    """
    from matplotlib import colormaps

    moved_pa = 1 - similarity_pa
    rows, columns = moved_pa.shape
    colours = colormaps["viridis"].with_extremes(bad="#eeeeee")
    with canvas(path, 2.6 + 0.21 * columns, 1.9 + max(0.21 * rows, 0.5), dpi=200) as figure:
        axes = figure.subplots()
        known = moved_pa[~np.isnan(moved_pa)]
        top = float(np.quantile(known, 0.99)) if known.size else 1.0  # lest one field leaves the others without colour
        image = axes.imshow(
            np.ma.masked_invalid(moved_pa), cmap=colours, vmin=0, vmax=top, aspect="auto", interpolation="none"
        )
        axes.set_xticks(range(columns), [short(name, 18) for name in affected], rotation=90, fontsize=_SMALL)
        axes.set_yticks(range(rows), [short(name, 24) for name in perturbed], fontsize=_SMALL)
        axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="affected gene", ylabel="perturbed")
        axes.set_title(title, pad=8)
        bar = figure.colorbar(
            image, ax=axes, fraction=0.03, pad=0.015, extend="max" if known.max(initial=0) > top else "neither"
        )
        bar.set_label("1 $-$ cosine similarity (grey: never in one cell)", fontsize=_SMALL + 0.5)
        bar.ax.tick_params(labelsize=_SMALL)
        bar.outline.set_visible(False)


def pairs_png(
    summed_p: Array,
    combined_p: Array,
    names: Sequence[str],
    significant_p: NDArray[np.bool_],
    path: Path,
    title: str,
    *,
    label: str,
    interval_p2: Array | None = None,
    named: int = 10,
) -> None:
    """Draw the combined effect of pairs against the sum of their genes' effects; off the diagonal they interact.

    Parameters
    ----------
    summed_p, combined_p, names, significant_p
        Both effects of each pair, its name, and whether they differ significantly.
    path, title, label
        Where the PNG goes, its headline, what the effect is.
    interval_p2
        Confidence intervals of combined minus summed; NaN where there is none.
    named
        Most names: the significant pairs furthest from the diagonal; three if there are none.
    """
    both = np.concatenate([summed_p, combined_p])
    low, high = float(both.min()), float(both.max())
    margin = 0.12 * max(high - low, 1e-9)
    frame = (low - margin, high + margin)
    with canvas(path, 5.8, 5.6, dpi=200) as figure:
        axes = figure.subplots()
        axes.plot(frame, frame, color="black", linewidth=0.8, linestyle="--", label="combined = sum")
        if interval_p2 is not None:
            known = ~np.isnan(interval_p2).any(axis=1)
            ends = summed_p[known, None] + interval_p2[known]
            axes.vlines(summed_p[known], ends[:, 0], ends[:, 1], color=GREY, linewidth=0.9, zorder=1)
        groups = (
            (~significant_p, "#808080", "additive or unsure"),
            (significant_p, TOWARDS, "interaction, FDR < 0.05"),
        )
        for chosen, colour, text in groups:
            if chosen.any():
                points = (summed_p[chosen], combined_p[chosen])
                axes.scatter(*points, s=16, color=colour, linewidths=0, zorder=2, label=f"{text} ({chosen.sum():,})")
        far = np.argsort(-np.abs(combined_p - summed_p), kind="stable")
        for i in [i for i in far if significant_p[i]][:named] or far[:3]:
            above = combined_p[i] >= summed_p[i]
            sides = {"ha": "right", "va": "bottom"} if above else {"ha": "left", "va": "top"}
            place = {"xytext": (0, 5 if above else -5), "textcoords": "offset points"}
            axes.annotate(short(names[i], 24), (summed_p[i], combined_p[i]), fontsize=_SMALL, **place, **sides)
        axes.set(
            xlabel=f"sum of individual effects\n({label})", ylabel=f"combined effect\n({label})", xlim=frame, ylim=frame
        )
        axes.set_aspect("equal")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
        axes.set_title(f"{title} (n = {len(summed_p):,} pairs)", pad=10)
