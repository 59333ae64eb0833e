"""Scores of integration: what is mixed and what is apart scores so; formulas by hand; the job beside its baseline."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cellray.errors import InputError
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.integration import IntegrationConfig, score_integration
from cellray.infer.integration_scores import SCORERS, Cells, graph_connectivity, neighbors, silhouette_batch
from cellray.infer.tables import read_made_table
from cellray.vocabulary import GeneVocabulary
from tests.infer.tiny import cells_of, corpus_in, model_in


def made_up(batch_shift: float, label_shift: float, seed: int = 0) -> Cells:
    """Return cells of two labels and two batches in a cloud each, shifted apart."""
    rng = np.random.default_rng(seed)
    label, batch = np.repeat([0, 1], 200), np.tile([0, 1], 200)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    x[:, 0] += label_shift * label
    x[:, 1] += batch_shift * batch
    return Cells(x, np.array(["A", "B"])[label], np.array(["x", "y"])[batch])


def values(cells: Cells, scorer: str = "scikit-learn") -> dict[str, float]:
    return {score.metric: score.value for score in SCORERS[scorer](cells, 0)}


def test_batches_that_mix_and_labels_that_are_apart_score_near_one() -> None:
    good, batched, lost = values(made_up(0, 12)), values(made_up(12, 12)), values(made_up(0, 0))
    assert good["nmi_kmeans"] == good["ari_kmeans"] == good["knn_label_accuracy"] == 1
    assert good["graph_connectivity"] > 0.95  # but for cells that are nobody's neighbour
    assert good["ilisi_unweighted"] > 0.9
    assert good["silhouette_batch"] > 0.95
    assert batched["ilisi_unweighted"] < 0.3
    assert batched["silhouette_batch"] < 0.4
    assert lost["nmi_kmeans"] < 0.1
    assert lost["clisi_unweighted"] < 0.1
    assert all(0 <= value <= 1 for name, value in good.items() if name != "ari_kmeans")


def test_neighbours_and_their_mixing_by_hand() -> None:
    """Four cells on a line at 0, 1, 3, 7: each one's two nearest, itself first."""
    x = np.array([[0], [1], [3], [7]], np.float32)
    index, distance = neighbors(x, 3)
    assert index.tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 2, 1]]
    assert distance.tolist() == [[0, 1, 3], [0, 1, 2], [0, 2, 3], [0, 4, 6]]


def test_connectivity_by_hand() -> None:
    """Of label A, cells 0, 1, 2 reach each other and cell 3 is reached by none; of label B both do: (3/4 + 1) / 2."""
    index = np.array([[0, 1], [1, 2], [2, 0], [3, 0], [4, 5], [5, 4]])
    assert graph_connectivity(index, np.array(list("AAAABB"))) == 0.875


def test_the_silhouette_of_batches_is_within_labels() -> None:
    """At 0 and 2 of one batch, 10 and 12 of the other: 2 to the own, 11 or 9 to the others: 1 - mean(9/11, 7/9)."""
    x = np.array([[0], [2], [10], [12]], np.float32)
    label, batch = np.array(["A"] * 4), np.array(["x", "x", "y", "y"])
    assert silhouette_batch(x, label, batch) == pytest.approx(1 - (9 / 11 + 7 / 9) / 2)
    alone = np.array(["A", "B", "C", "D"])
    assert np.isnan(silhouette_batch(x, alone, batch))  # nothing to mix within any label


@pytest.mark.filterwarnings("ignore")  # its own, and those of jax
@pytest.mark.skipif(importlib.util.find_spec("scib_metrics") is None, reason="scib-metrics is an extra: cellray[scib]")
@pytest.mark.parametrize("batch_shift", [0, 2, 8])
def test_what_both_scorers_have_is_equal(batch_shift: float) -> None:
    cells = made_up(batch_shift, 6) if batch_shift < 6 else made_up(batch_shift, 12)
    ours, theirs = values(cells), values(cells, "scib-metrics")
    for name in ("silhouette_label", "graph_connectivity"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
    assert ours["nmi_kmeans"] == pytest.approx(theirs["nmi_kmeans"], abs=0.05)  # another k-means
    assert ours["ilisi_unweighted"] == pytest.approx(theirs["ilisi"], abs=0.15)  # other weights
    from scib_metrics import silhouette_batch as reference

    told = float(reference(cells.embedding_nd, cells.label_n, cells.batch_n))
    assert ours["silhouette_batch"] == pytest.approx(told, abs=1e-4)
    assert {"bras", "kbet", "isolated_labels", "clisi", "total"} <= theirs.keys()


@pytest.mark.skipif(importlib.util.find_spec("scib_metrics") is not None, reason="scib-metrics is there")
def test_a_scorer_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(InputError, match=r"needs the package scib-metrics; .*--editable '\.\[scib\]'"):
        values(made_up(0, 0), "scib-metrics")


@pytest.fixture
def embedded(vocabulary: GeneVocabulary, tmp_path: Path) -> str:
    adata = cells_of(cells=36)
    adata.obs["donor"] = [None if i == 0 else name for i, name in enumerate(adata.obs["donor"])]
    corpus = corpus_in(tmp_path, vocabulary, adata)
    config = EmbedConfig(corpus=corpus.uri, model=model_in(tmp_path, vocabulary), output=str(tmp_path / "e"), actors=0)
    embed_cells(config)
    return config.output


def test_the_job_scores_embeddings_and_pca(embedded: str, tmp_path: Path) -> None:
    config = IntegrationConfig(embeddings=embedded, batch="donor", label="state", output=str(tmp_path / "scores"))
    manifest = score_integration(config)
    table = read_made_table(config.output)
    assert set(table["embedding"]) == {"cellray", "pca"}
    assert manifest.rows == len(table) == 16
    assert manifest.dropped == {"without a label or a batch": 1}
    assert manifest.notes["cells"] == 35
    assert manifest.notes["batches"] == {"d0": 11, "d1": 12, "d2": 12}
    assert score_integration(config) == manifest  # a finished one is left alone
    fewer = config.model_copy(update={"max_cells": 20, "baseline": False, "output": str(tmp_path / "fewer")})
    assert score_integration(fewer).dropped == {"without a label or a batch": 1, "not drawn (--max-cells)": 15}
    assert set(read_made_table(fewer.output)["embedding"]) == {"cellray"}


def test_columns_that_are_not_there_are_refused(embedded: str, tmp_path: Path) -> None:
    options = {"embeddings": embedded, "output": str(tmp_path / "s"), "batch": "donor", "label": "state"}
    with pytest.raises(InputError, match="--batch: must be an obs column of the corpus; found 'lab'; kept: "):
        score_integration(IntegrationConfig(**(options | {"batch": "lab"})))


def test_a_column_of_one_value_is_refused(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    adata = cells_of()
    adata.obs["donor"] = "d0"
    corpus = corpus_in(tmp_path, vocabulary, adata)
    embed_cells(EmbedConfig(corpus=corpus.uri, model=model_in(tmp_path, vocabulary), output=f"{tmp_path}/e", actors=0))
    config = IntegrationConfig(embeddings=f"{tmp_path}/e", batch="donor", label="state", output=f"{tmp_path}/s")
    with pytest.raises(InputError, match="--batch: must have two values or more; found 'donor' has 'd0' only"):
        score_integration(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("scib_metrics") is None, reason="scib-metrics is an extra: cellray[scib]")
def test_the_job_with_scib_metrics(embedded: str, tmp_path: Path) -> None:
    options = {"embeddings": embedded, "batch": "donor", "label": "state", "output": str(tmp_path / "scib")}
    manifest = score_integration(IntegrationConfig(**options, scorer="scib-metrics"))
    table = read_made_table(options["output"]).set_index(["embedding", "metric"])["value"]
    assert "scib-metrics" in manifest.software
    assert np.isfinite(table["cellray"]["pcr_comparison"])
    labels, batches = (
        table["cellray"][names].mean()
        for names in (
            ["isolated_labels", "nmi_kmeans", "ari_kmeans", "silhouette_label", "clisi"],
            ["bras", "ilisi", "kbet", "graph_connectivity", "pcr_comparison"],
        )
    )
    assert table["cellray"]["total"] == pytest.approx(0.6 * labels + 0.4 * batches)
