"""Real cells that need no download: 700 labelled blood cells that scanpy ships, with their counts restored."""

from pathlib import Path

import numpy as np
from scipy import sparse

LABEL = "bulk_labels"
TOTALS = "n_counts"
OTHER_COLUMNS = ("n_genes", "phase")
"""Of the obs columns that scanpy ships: detected genes of all, and the phase of the cell cycle it told by scores."""
_TOLERANCE = 0.15


def restore_pbmc(path: Path) -> None:
    """Write scanpy's `pbmc68k_reduced` (Zheng et al. 2017) as raw counts.

    The file scanpy ships holds log(1 + counts per 10,000) of 765 genes and each cell's total over all genes; so
    counts are expm1(x) * total / 10,000, rounded.

    Raises
    ------
    ValueError
        The restored numbers are not whole to within 0.15: scanpy ships other data than it did.
    """
    import anndata
    import scanpy as sc

    shipped = sc.datasets.pbmc68k_reduced()
    totals = shipped.obs[TOTALS].to_numpy(np.float64)
    restored = sparse.csr_matrix(shipped.raw.X).astype(np.float64).expm1().multiply(totals[:, None] / 1e4).tocsr()
    whole = restored.copy()
    whole.data = np.rint(whole.data)
    error = float(np.abs(whole.data - restored.data).max())
    if error > _TOLERANCE:
        raise ValueError(
            f"pbmc68k_reduced: restored counts must be whole to within {_TOLERANCE}; found {error:.2f} off"
        )
    whole.eliminate_zeros()
    obs = shipped.obs[[LABEL, TOTALS, *OTHER_COLUMNS]]
    path.parent.mkdir(parents=True, exist_ok=True)
    anndata.AnnData(whole.astype(np.float32), obs=obs, var=shipped.raw.var).write_h5ad(path, compression="gzip")
