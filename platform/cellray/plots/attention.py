"""Pictures of attention: how each head looks, mean weights between genes, the strongest pairs by layer and head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.plots.canvas import canvas, short

Array = NDArray[np.float64]


def _named(axes: Any, rows: Sequence[str], columns: Sequence[str], *, tilted: bool) -> None:  # noqa: ANN401
    axes.set_xticks(range(len(columns)), [short(name, 18) for name in columns], fontsize=7, rotation=90 * tilted)
    axes.set_yticks(range(len(rows)), [short(name, 40) for name in rows], fontsize=7)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def attention_heads_png(
    measures: dict[str, Array],
    times_even_lb: Array | None,
    layers: Sequence[int],
    heads: Sequence[int],
    path: Path,
    title: str,
) -> None:
    """Draw measures of each head, one field a measure, and below by layer where the weight goes by rank of the key.

    Parameters
    ----------
    measures
        Name to values. Layers x heads.
    times_even_lb
        Weight on genes by relative rank, over that of even weights; NaN: a step without genes. Layers x steps. None:
        not known, and not drawn.
    layers, heads
        Their numbers.
    path
        Where the PNG goes.
    title
        Headline.
    """
    n, below = len(measures), 0 if times_even_lb is None else 2.6
    with canvas(path, max(2.6 * n, 7), 2.2 + max(1.6, 0.22 * len(layers)) + below) as figure:
        ratios = [max(2.2, 0.3 * len(layers)), *([below] if below else [])]
        parts = np.ravel(figure.subfigures(len(ratios), 1, height_ratios=ratios))
        for axes, (name, value_lh) in zip(np.ravel(parts[0].subplots(1, n)), measures.items(), strict=True):
            _measure(parts[0], axes, name, value_lh)
            _named(axes, [str(layer) for layer in layers], [str(head) for head in heads], tilted=False)
        parts[0].axes[0].set_ylabel("layer (0 = lowest)", fontsize=8)
        if times_even_lb is not None:
            _ranks(parts[1], times_even_lb, layers)
        figure.suptitle(title, fontsize="medium")


def _measure(figure: Any, axes: Any, name: str, value_lh: Array) -> None:  # noqa: ANN401
    image = axes.imshow(value_lh, cmap="viridis", aspect="auto", origin="lower")
    axes.set_title(name, fontsize=9)
    axes.set_xlabel("head", fontsize=8)
    bar = figure.colorbar(image, ax=axes, fraction=0.08, pad=0.03)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _ranks(figure: Any, times_even_lb: Array, layers: Sequence[int]) -> None:  # noqa: ANN401
    from matplotlib import colormaps

    axes, steps = figure.subplots(), times_even_lb.shape[1]
    middle = (np.arange(steps) + 0.5) / steps
    for i, (layer, times_b) in enumerate(zip(layers, times_even_lb, strict=True)):
        colour = colormaps["viridis"](0.9 * i / max(1, len(layers) - 1))
        axes.plot(middle, times_b, color=colour, label=f"layer {layer}", marker=".", markersize=4)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="relative rank of the key's gene (0 = highest in its cell)", ylim=(0, None))
    axes.set_ylabel("weight, times that of even weights", fontsize=8)
    figure.legend(loc="outside right center", fontsize=7, ncols=1 + len(layers) // 13)


def attention_matrix_png(mean_qk: Array, queries: Sequence[str], keys: Sequence[str], path: Path, title: str) -> None:
    """Draw mean weights between genes; pairs without a number stay white.

    Parameters
    ----------
    mean_qk
        Query (rows) x key (columns); NaN: not known.
    queries, keys
        Names.
    path
        Where the PNG goes.
    title
        Headline.
    """
    high, wide = (max(least, 0.2 * len(side)) for least, side in ((1.2, queries), (3.6, keys)))
    with canvas(path, wide + 2.6, high + 1.8) as figure:
        axes = figure.subplots()
        image = axes.imshow(mean_qk, cmap="magma_r", vmin=0, aspect="equal" if len(queries) == len(keys) else "auto")
        _named(axes, queries, keys, tilted=True)
        axes.set(xlabel="key (attended to)", ylabel="query (attends)")
        axes.set_title(title)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, aspect=25, shrink=0.8)
        bar.set_label("mean attention weight")
        bar.outline.set_visible(False)


def attention_pairs_png(mean_pm: Array, pairs: Sequence[str], maps: Sequence[str], path: Path, title: str) -> None:
    """Draw mean weights of pairs of genes in each layer and head.

    Parameters
    ----------
    mean_pm
        Pairs x (layer, head).
    pairs, maps
        Names of rows and columns.
    path
        Where the PNG goes.
    title
        Headline.
    """
    with canvas(path, 4.2 + max(2.5, 0.13 * len(maps)), 1.8 + 0.2 * len(pairs)) as figure:
        axes = figure.subplots()
        image = axes.imshow(mean_pm, cmap="magma_r", vmin=0, aspect="auto")
        _named(axes, pairs, maps, tilted=True)
        axes.tick_params(axis="x", labelsize=7 if len(maps) <= 64 else 4)
        axes.set(xlabel="layer.head", ylabel="query → key")
        axes.set_title(title)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, aspect=25, shrink=0.8)
        bar.set_label("mean attention weight")
        bar.outline.set_visible(False)
