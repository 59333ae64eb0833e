"""Scores of an embedding of cells from several batches: whether labels stay apart and batches mix.

Two scorers of one form: scib-metrics, the field's reference, where it is installed, and scikit-learn, with the same
formulas where scikit-learn has what they need. Knows arrays, neither files nor models.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.errors import InputError
from cellray.infer.evaluate import knn_label_accuracy

LABELS, BATCHES, TOTAL = "labels", "batches", "total"
"""What a score is about: whether labels are told apart, whether batches are mixed, or both together."""
NEIGHBORS, GRAPH_NEIGHBORS, KBET_NEIGHBORS = 90, 15, 50
"""Nearest neighbours of a cell, itself included: of LISI, of the graph and of kBET, as scib-metrics takes them."""
UNWEIGHTED_NEIGHBORS = 30
"""LISI weighs 90 neighbours to an effective number (perplexity) of 30; without weights 30 are taken."""


@dataclass(frozen=True)
class Cells:
    """What is scored.

    Attributes
    ----------
    embedding_nd
        Cells x dimensions.
    label_n, batch_n
        Each cell's label and batch. Shape (cells,).
    before_nd
        The same cells before integration, as principal components, if there are any.
    """

    embedding_nd: NDArray[np.float32]
    label_n: NDArray[np.str_]
    batch_n: NDArray[np.str_]
    before_nd: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Score:
    """One score; 1 is best and, but for chance, 0 is worst."""

    metric: str
    about: str
    value: float


def scikit_learn_scores(cells: Cells, seed: int = 0) -> list[Score]:
    """Score with scikit-learn.

    `silhouette_*`, `*_kmeans` and `graph_connectivity` follow scib-metrics (Luecken et al. 2022), with scikit-learn's
    k-means. `ilisi_unweighted` and `clisi_unweighted` count the 30 nearest cells alike, where LISI weighs 90 by their
    distance to the same effective number (Korsunsky et al. 2019): they are near it, not equal.

    Parameters
    ----------
    cells
        At least two labels and two batches.
    seed
        Of k-means and of the folds.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples

    x_nd, label_n, batch_n = cells.embedding_nd, cells.label_n, cells.batch_n
    clusters = KMeans(len(np.unique(label_n)), n_init=10, random_state=seed).fit_predict(x_nd)
    index_nk, _ = neighbors(x_nd, UNWEIGHTED_NEIGHBORS)
    return [
        Score("silhouette_label", LABELS, (float(silhouette_samples(x_nd, label_n).mean()) + 1) / 2),
        Score("nmi_kmeans", LABELS, float(normalized_mutual_info_score(label_n, clusters))),
        Score("ari_kmeans", LABELS, float(adjusted_rand_score(label_n, clusters))),
        Score("clisi_unweighted", LABELS, 1 - _mixing(index_nk, label_n)),
        Score("knn_label_accuracy", LABELS, knn_label_accuracy(x_nd, label_n, seed=seed)),
        Score("silhouette_batch", BATCHES, silhouette_batch(x_nd, label_n, batch_n)),
        Score("ilisi_unweighted", BATCHES, _mixing(index_nk, batch_n)),
        Score("graph_connectivity", BATCHES, graph_connectivity(index_nk[:, :GRAPH_NEIGHBORS], label_n)),
    ]


def scib_scores(cells: Cells, seed: int = 0) -> list[Score]:
    """Score with scib-metrics: the metrics of its benchmark, from exact neighbours; `pcr_comparison` needs a baseline.

    `total` is 0.6 of the mean over labels' metrics and 0.4 of that over batches' (Luecken et al. 2022). The seed is
    not used: scib-metrics has its own.

    Raises
    ------
    InputError
        scib-metrics is not installed.
    """
    if importlib.util.find_spec("scib_metrics") is None:
        install = "python -m pip install --constraint constraints.txt --editable '.[scib]'"  # no index has cellray
        fix = f"Install it, in the checkout: {install}; or use --scorer scikit-learn."
        raise InputError("--scorer scib-metrics", "needs the package scib-metrics", "it is not installed", fix)
    import scib_metrics as scib  # type: ignore[import-not-found]
    from scib_metrics.nearest_neighbors import NeighborsResults  # type: ignore[import-not-found]

    x_nd, label_n, batch_n = cells.embedding_nd, cells.label_n, cells.batch_n
    near = NeighborsResults(*neighbors(x_nd, NEIGHBORS))
    few = near.subset_neighbors(min(GRAPH_NEIGHBORS, near.n_neighbors))
    clusters = scib.nmi_ari_cluster_labels_kmeans(x_nd, label_n)
    found: list[tuple[str, str, Any]] = [
        ("isolated_labels", LABELS, scib.isolated_labels(x_nd, label_n, batch_n)),
        ("nmi_kmeans", LABELS, clusters["nmi"]),
        ("ari_kmeans", LABELS, clusters["ari"]),
        ("silhouette_label", LABELS, scib.silhouette_label(x_nd, label_n)),
        ("clisi", LABELS, scib.clisi_knn(near, label_n)),
        ("bras", BATCHES, scib.bras(x_nd, label_n, batch_n)),
        ("ilisi", BATCHES, scib.ilisi_knn(near, batch_n)),
        (
            "kbet",
            BATCHES,
            scib.kbet_per_label(near.subset_neighbors(min(KBET_NEIGHBORS, near.n_neighbors)), batch_n, label_n),
        ),
        ("graph_connectivity", BATCHES, scib.graph_connectivity(few, label_n)),
    ]
    if cells.before_nd is not None:
        compared = scib.pcr_comparison(cells.before_nd, x_nd, batch_n, categorical=True)
        found.append(("pcr_comparison", BATCHES, compared))
    scores = [Score(metric, about, float(value)) for metric, about, value in found]
    labels, batches = (np.mean([s.value for s in scores if s.about == about]) for about in (LABELS, BATCHES))
    return [*scores, Score("total", TOTAL, float(0.6 * labels + 0.4 * batches))]


SCORERS: dict[str, Callable[[Cells, int], list[Score]]] = {
    "scikit-learn": scikit_learn_scores,
    "scib-metrics": scib_scores,
}


def neighbors(x_nd: NDArray[np.float32], number: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each cell's nearest cells, itself first, with their Euclidean distances. Shapes (cells, number)."""
    from sklearn.neighbors import NearestNeighbors

    asked = min(number, len(x_nd)) - 1
    distance_nk, index_nk = NearestNeighbors(n_neighbors=asked).fit(x_nd).kneighbors()  # without the cell itself
    own_n1 = np.arange(len(x_nd))[:, None]
    return np.hstack([own_n1, index_nk]), np.hstack([np.zeros((len(x_nd), 1)), distance_nk])


def silhouette_batch(x_nd: NDArray[np.float32], label_n: NDArray[np.str_], batch_n: NDArray[np.str_]) -> float:
    """Return the mean over labels of 1 - |silhouette of the batches within the label| (Luecken et al. 2022).

    Labels of one batch, and those whose cells are all of different batches, say nothing of mixing and are left out;
    NaN if none is left.
    """
    from sklearn.metrics import silhouette_samples

    means = []
    for label in np.unique(label_n):
        own_n = label_n == label
        if 1 < len(np.unique(batch_n[own_n])) < own_n.sum():
            means.append(float(1 - np.abs(silhouette_samples(x_nd[own_n], batch_n[own_n])).mean()))
    return float(np.mean(means)) if means else float("nan")


def graph_connectivity(index_nk: NDArray[np.int64], label_n: NDArray[np.str_]) -> float:
    """Return the mean over labels of the share of cells in the label's largest component (Luecken et al. 2022).

    Cells are joined to their neighbours of the same label; a component is strongly connected.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    cells, k = index_nk.shape
    graph = csr_matrix((np.ones(index_nk.size), index_nk.ravel(), np.arange(0, cells * k + 1, k)), (cells, cells))
    shares = []
    for label in np.unique(label_n):
        own = np.flatnonzero(label_n == label)
        _, component = connected_components(graph[own][:, own], connection="strong")
        shares.append(np.bincount(component).max() / len(own))
    return float(np.mean(shares))


def _mixing(index_nk: NDArray[np.int64], value_n: NDArray[np.str_]) -> float:
    """Return the median over cells of how many values there are, effectively, among the neighbours: 0 = one, 1 = all.

    The inverse of Simpson's index, 1 / sum p^2, less 1, over the number of values less 1.
    """
    values, code_n = np.unique(value_n, return_inverse=True)
    near_nk = code_n[index_nk]
    simpson_n = sum(np.square((near_nk == code).mean(1)) for code in range(len(values)))
    return float((np.median(1 / simpson_n) - 1) / (len(values) - 1))
