"""What embeddings are worth: how well a cell's neighbours tell its label, beside a plain baseline."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def knn_label_accuracy(
    embedding_nd: NDArray[np.floating], labels: NDArray[np.str_], neighbors: int = 15, folds: int = 5, seed: int = 0
) -> float:
    """Return the share of held-out cells whose label the majority of their nearest training cells has.

    Stratified folds, Euclidean distance, as the UMAP sees the cells. Labels with fewer cells than folds are left out.

    Parameters
    ----------
    embedding_nd
        Cells x dimensions.
    labels
        One a cell.

    Raises
    ------
    ValueError
        Fewer than two labels have enough cells.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    names, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, names[counts >= folds])
    if len(np.unique(labels[kept])) < 2:
        found = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True))
        raise ValueError(f"k-NN accuracy needs two labels with at least {folds} cells each; found {found}")
    model = KNeighborsClassifier(neighbors)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(model, embedding_nd[kept], labels[kept], cv=splits).mean())


def pca_of_log_counts(h5ad: Path, matrix: str = "X", dimensions: int = 50, seed: int = 0) -> NDArray[np.float32]:
    """Return the principal components of log(1 + counts per 10,000): the usual baseline. Shape (cells, dimensions)."""
    import anndata
    import scanpy as sc

    adata = anndata.read_h5ad(h5ad)
    if matrix != "X":
        adata = (
            adata.raw.to_adata() if matrix == "raw" else anndata.AnnData(adata.layers[matrix.removeprefix("layers/")])
        )
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=min(dimensions, *(n - 1 for n in adata.shape)), random_state=seed)
    return np.asarray(adata.obsm["X_pca"], np.float32)
