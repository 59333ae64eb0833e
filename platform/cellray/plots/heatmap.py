"""The heatmap of embeddings: cells by label, alike ones beside each other, against dimensions."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.plots.canvas import COLOURS, canvas, short

_MISSING = "(missing)"
_STRONGEST = 98  # percentile of the differences that has the full colour: single extremes would pale all others
_NAMED = 40
_MAX_INCHES = 9.0
Order = NDArray[np.intp]


def heatmap_order(embedding_nd: NDArray[np.float32], labels: pd.Series) -> tuple[Order, Order]:
    """Return the order in which cells and dimensions are drawn.

    Cells come by label: numbers by value, text by name, missing ones last. Within a label of text, and among
    dimensions, those alike are neighbours: the leaves of average linkage by Euclidean distance.

    Parameters
    ----------
    embedding_nd
        Cells x dimensions.
    labels
        One a cell.

    Returns
    -------
    tuple
        Indices of cells, shape (cells,), and of dimensions, shape (dimensions,).
    """
    values = labels.reset_index(drop=True)
    if _numbers(values):
        cells = np.argsort(values.to_numpy(np.float64, na_value=np.nan), kind="stable")
    else:
        names = _names(values)
        groups = [np.flatnonzero(names == name) for name in names.cat.categories]
        cells = np.concatenate([own[_alike(embedding_nd[own])] for own in groups])
    return cells, _alike(embedding_nd.T)


def heatmap_png(embedding_nd: NDArray[np.float32], labels: pd.Series, path: Path, title: str) -> None:
    """Draw embeddings as a heatmap of cells and dimensions, with a strip of the cells' labels.

    Colours are differences from the mean of each dimension over the cells that are drawn, so that a dimension that is
    large in all cells hides nothing.

    Parameters
    ----------
    embedding_nd
        Cells x dimensions; a few thousand cells at most.
    labels
        One a cell: text and flags are groups, numbers are ordered.
    path
        Where the PNG goes.
    title
        Headline; the number of cells is added.
    """
    cells, dimensions = heatmap_order(embedding_nd, labels)
    shown_nd = (embedding_nd - embedding_nd.mean(axis=0))[np.ix_(cells, dimensions)]
    strongest = float(np.percentile(np.abs(shown_nd), _STRONGEST)) or 1.0
    values = labels.reset_index(drop=True).iloc[cells]
    with canvas(path, _MAX_INCHES, min(_MAX_INCHES, 2.5 + len(cells) / 60)) as figure:
        strip, axes = figure.subplots(1, 2, sharey=True, width_ratios=[1, 30])
        _draw_labels(strip, values)
        image = axes.imshow(
            shown_nd, aspect="auto", cmap="RdBu_r", vmin=-strongest, vmax=strongest, interpolation="nearest"
        )
        axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
        axes.set(xlabel=f"{len(dimensions)} dimensions")
        axes.set_title(f"{title} (n = {len(cells):,})", pad=10)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, aspect=30, extend="both")
        bar.set_label("difference from the dimension's mean")
        bar.outline.set_visible(False)


def _draw_labels(axes: Any, values: pd.Series) -> None:  # noqa: ANN401
    """Draw the label of each cell as a colour, and name the groups at their middle."""
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.set(xlabel=short(str(values.name or "label")))
    if _numbers(values):
        axes.imshow(values.to_numpy(np.float64, na_value=np.nan)[:, None], aspect="auto", cmap="viridis")
        ends = values.dropna()
        axes.set_yticks([0, max(len(ends) - 1, 0)], [f"{ends.min():g}", f"{ends.max():g}"] if len(ends) else ["", ""])
        return
    from matplotlib.colors import to_rgb

    code, names = pd.factorize(_names(values))
    colours = np.array([to_rgb(COLOURS[i % len(COLOURS)]) for i in range(len(names))])
    axes.imshow(colours[code][:, None], aspect="auto")
    middles = [float(np.flatnonzero(code == i).mean()) for i in range(len(names))]
    axes.set_yticks(middles, [short(str(name)) for name in names] if len(names) <= _NAMED else [""] * len(names))


def _numbers(values: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(values)) and not pd.api.types.is_bool_dtype(values)


def _names(values: pd.Series) -> pd.Series:
    """Return labels as text, whose order is that of their names, missing ones last."""
    names = values.astype("string")
    kinds = [*sorted(names.dropna().unique()), _MISSING]
    return names.fillna(_MISSING).astype(pd.CategoricalDtype(kinds, ordered=True)).cat.remove_unused_categories()


def _alike(x_nd: NDArray[np.float32]) -> Order:
    """Return the rows so that those alike are neighbours."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import pdist

    if len(x_nd) < 3:
        return np.arange(len(x_nd))
    return np.asarray(leaves_list(linkage(pdist(x_nd), "average")), np.intp)
