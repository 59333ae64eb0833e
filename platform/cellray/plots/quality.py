"""Pictures of quality control: distributions of a data set with bounds and verdicts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray import schema
from cellray.quality_schema import Bounds, DatasetRecord, QualityRules

_PASSES, _DROPPED, _ELSEWHERE = "#8fb3d1", "#d55e00", "#c8c8c8"
_REASON_COLOURS = ("#7a5c00", "#cc79a7", "#999999", "#d55e00", "#009e73", "#000000", "#aa00ff")
_BINS = 60
_CROWDED = 200  # a range wider than this is labelled at powers of ten only
_NEAR = 10  # cells with that many times the least number of genes are far from it: the line would only waste space


def quality_png(cells: pd.DataFrame, dataset: DatasetRecord, rules: QualityRules, path: Path) -> None:
    """Draw a data set's total counts, mitochondrial content and detected genes, with bounds and verdicts.

    Parameters
    ----------
    cells
        Rows of `cellray.schema.quality_schema`, all of the data set or a sample of them. Empty cells are not drawn.
    dataset
        Its bounds and its numbers of cells.
    rules
        What the cells had to fulfil.
    path
        Where the PNG goes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = cells[cells[schema.N_COUNTS] > 0]
    with mpl.rc_context({"backend": "agg", "axes.spines.top": False, "axes.spines.right": False}):
        scored = bool(drawn[schema.DOUBLET_SCORE].notna().any()) if schema.DOUBLET_SCORE in drawn else False
        figure = Figure(figsize=(18 if scored else 14, 5), dpi=130, layout="constrained")
        totals, mito, scatter, *doublets = figure.subplots(1, 4 if scored else 3)
        name = dataset.name.rsplit("/", 1)[-1]
        shown = "" if len(cells) == dataset.cells else f"; {len(cells):,} of them drawn"
        share = f"{dataset.passed:,} of {dataset.cells:,} cells pass ({dataset.passed / max(dataset.cells, 1):.1%})"
        figure.suptitle(f"{name}: {share}{shown}")
        _draw_totals(totals, drawn, dataset.n_counts)
        column = schema.MITO_FRACTION if rules.mito == "fraction" else schema.MITO_COUNTS
        _draw_mito(mito, drawn, column, dataset.mito)
        _draw_genes(scatter, drawn, rules.min_genes)
        if doublets:
            _draw_doublets(doublets[0], drawn[drawn[schema.DOUBLET_SCORE].notna()])
        figure.savefig(path, format="png")


def _draw_totals(axes: Any, cells: pd.DataFrame, bounds: Bounds | None) -> None:  # noqa: ANN401
    axes.set(xlabel="total count", ylabel="cells", title="Total count")
    _logarithmic(axes.set_xscale, axes.xaxis, cells[schema.N_COUNTS])
    if len(cells):
        low, high = cells[schema.N_COUNTS].min(), cells[schema.N_COUNTS].max()
        edges = np.geomspace(low, max(high, low * 1.01), _bins(cells))
        _histogram(axes, cells, schema.N_COUNTS, _ending_at(edges, bounds), schema.TOTAL_COUNT)
    _draw_bounds(axes, bounds, ",.0f")


def _draw_mito(axes: Any, cells: pd.DataFrame, column: str, bounds: Bounds | None) -> None:  # noqa: ANN401
    axes.set_title("Mitochondrial content")
    known = cells[cells[column].notna()]
    if known.empty:
        axes.text(0.5, 0.5, "no mitochondrial genes known", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.set(xlabel=column.replace("_", "chondrial "), ylabel="cells")
    edges = np.linspace(0, max(float(known[column].max()), 1e-3), _bins(known))
    _histogram(axes, known, column, _ending_at(edges, bounds), schema.MITOCHONDRIAL)
    _draw_bounds(axes, bounds, ".4f" if column == schema.MITO_FRACTION else ",.0f")


def _draw_doublets(axes: Any, cells: pd.DataFrame) -> None:  # noqa: ANN401
    axes.set(xlabel="doublet score", ylabel="cells", title="Doublets (Scrublet)", yscale="symlog")
    edges = np.linspace(0, max(float(cells[schema.DOUBLET_SCORE].max()), 1e-3), _bins(cells))
    _histogram(axes, cells, schema.DOUBLET_SCORE, edges, schema.DOUBLET)
    _legend(axes)


def _bins(cells: pd.DataFrame) -> int:
    """Return how many edges a histogram of so many cells has."""
    return int(min(_BINS, 6 + 2 * np.sqrt(len(cells))))


def _ending_at(edges: NDArray[np.float64], bounds: Bounds | None) -> NDArray[np.float64]:
    """Move the edges next to the bounds onto them, so that no bar lies on both sides of one."""
    for end in (bounds.low, bounds.high) if bounds is not None else ():
        if edges[0] < end < edges[-1]:
            edges[1 + np.abs(edges[1:-1] - end).argmin()] = end
    return np.unique(edges)


def _draw_genes(axes: Any, cells: pd.DataFrame, min_genes: int) -> None:  # noqa: ANN401
    """Scatter total counts and detected genes; what was dropped lies on top, coloured by its reason."""
    axes.set(xlabel="total count", ylabel="detected genes", title=f"Detected genes (least: {min_genes})")
    _logarithmic(axes.set_xscale, axes.xaxis, cells[schema.N_COUNTS])
    genes = cells[schema.N_GENES].clip(lower=0.5)  # so that a cell without genes is on the logarithmic axis
    _logarithmic(axes.set_yscale, axes.yaxis, genes)
    passed = cells[schema.FILTER_PASS].to_numpy(bool)
    kinds = [("passes", passed, _PASSES)]
    for reason, colour in zip(schema.QUALITY_REASONS, _REASON_COLOURS, strict=True):
        kinds.append((reason, (cells[schema.REASON] == reason).to_numpy(bool), colour))
    for label, chosen, colour in (kind for kind in kinds if kind[1].any()):
        axes.scatter(
            cells.loc[chosen, schema.N_COUNTS],
            genes[chosen],
            s=7,
            linewidths=0,
            alpha=0.7,
            color=colour,
            label=f"{label} ({int(chosen.sum()):,})",
            rasterized=True,
        )
    if len(cells) and genes.min() < _NEAR * min_genes:
        axes.axhline(min_genes, color="black", linestyle="--", linewidth=1)
    _legend(axes)


def _logarithmic(set_scale: Callable[[str], None], axis: Any, values: pd.Series) -> None:  # noqa: ANN401
    """Make an axis logarithmic with plain numbers: at 1, 2, 5, 10, ..., or at powers of ten where these would crowd."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    set_scale("log")
    narrow = len(values) == 0 or values.max() < _CROWDED * values.min()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _legend(axes: Any) -> None:  # noqa: ANN401
    """Put the legend, if there is anything to explain, below the axes, where it covers nothing."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, markerscale=2
    )


def _histogram(axes: Any, cells: pd.DataFrame, column: str, edges: NDArray[np.float64], rule: str) -> None:  # noqa: ANN401
    """Stack the cells that pass, those dropped by the rule that is drawn, and those dropped by others."""
    values = cells[column].to_numpy()
    passed = cells[schema.FILTER_PASS].to_numpy(bool)
    here = (cells[schema.REASON] == rule).to_numpy(bool)
    axes.hist(
        [values[passed], values[here], values[~passed & ~here]],
        bins=edges,
        stacked=True,
        color=[_PASSES, _DROPPED, _ELSEWHERE],
        label=["passes", "dropped by this rule", "dropped by another"],
    )
    if axes.get_yscale() == "linear":
        axes.yaxis.get_major_locator().set_params(integer=True)


def _draw_bounds(axes: Any, bounds: Bounds | None, digits: str) -> None:  # noqa: ANN401
    """Mark mean and bounds; a bound below 0 bounds nothing and is not drawn."""
    if bounds is not None:
        axes.axvline(bounds.mean, color="black", linestyle=":", linewidth=1, label=f"mean {bounds.mean:{digits}}")
        for end in (bounds.low, bounds.high):
            if end > 0:
                axes.axvline(end, color="black", linestyle="--", linewidth=1, label=f"bound {end:{digits}}")
    _legend(axes)
