"""Pictures of cells: lengths of token rows, UMAP of embeddings."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_MAX_LEGEND = 40


def length_histogram_png(length_counts: NDArray[np.int64], path: Path, title: str, bins: int = 100) -> None:
    """Draw how many cells have which number of tokens.

    Parameters
    ----------
    length_counts
        Cells of each length. Shape (longest possible + 1,).
    path
        Where the PNG goes.
    title
        Headline of the picture.
    bins
        Bars, at most.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    width = -(-len(length_counts) // bins)
    starts = np.arange(0, len(length_counts), width)
    with mpl.rc_context({"backend": "agg"}):
        figure = Figure(figsize=(7.5, 4.0), dpi=150, layout="constrained")
        axes = figure.subplots()
        axes.bar(starts, np.add.reduceat(length_counts, starts), width=width, align="edge")
        axes.set(title=title, xlabel="tokens of a cell", ylabel="cells")
        figure.savefig(path, format="png")


def umap_png(
    embedding_nd: NDArray[np.float32], labels: pd.Series, path: Path, title: str, *, neighbors: int = 15, seed: int = 0
) -> None:
    """Draw the UMAP of cell embeddings, coloured by a label.

    Parameters
    ----------
    embedding_nd
        Cells x dimensions.
    labels
        One a cell: text and flags are coloured by category, numbers by value.
    path
        Where the PNG goes.
    title
        Headline of the picture.
    neighbors
        Size of a cell's neighbourhood.
    seed
        Of UMAP's layout.
    """
    import matplotlib as mpl
    import scanpy as sc
    from anndata import AnnData
    from matplotlib.figure import Figure

    column = str(labels.name or "label")
    values = labels.reset_index(drop=True)
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        values = values.astype("string").fillna("(missing)").astype("category")
    values.index = values.index.astype(str)
    adata = AnnData(obs=pd.DataFrame({column: values}), obsm={"X_cellray": embedding_nd})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap and scanpy warn of their own dependencies' changes
        sc.pp.neighbors(adata, use_rep="X_cellray", n_neighbors=min(neighbors, len(adata) - 1), random_state=seed)
        sc.tl.umap(adata, random_state=seed)
        categories = values.nunique()
        with mpl.rc_context({"backend": "agg"}):
            figure = Figure(figsize=(7.5, 5.5), dpi=150, layout="constrained")
            axes = figure.subplots()
            sc.pl.umap(
                adata,
                color=column,
                ax=axes,
                show=False,
                title=title,
                legend_loc="right margin" if categories <= _MAX_LEGEND else "none",
            )
            if legend := axes.get_legend():
                legend.set_title(column)
            figure.savefig(path, format="png")
