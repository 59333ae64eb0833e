"""Genes in context: sums of unit vectors give the mean cosine over all pairs of cells, as the pairs themselves do."""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from cellray.errors import InputError
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.gene_contexts import ContextSums, GeneContextConfig, context_cosines, gene_contexts
from cellray.infer.results import Embeddings
from cellray.infer.tables import read_made_table
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES
from tests.infer.tiny import corpus_in, model_in


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_cosines_by_hand() -> None:
    """Context 0: (1, 0) and (0, 2), at right angles; context 1: (3, 0) twice, alike."""
    sums = ContextSums.zero(1, 2, 2)
    sums.add(
        np.array([0, 0, 0, 0]), np.array([0, 1, 0, 1]), np.array([[1, 0], [3, 0], [0, 2], [3, 0]], dtype=np.float32)
    )
    assert sums.cells_gc.tolist() == [[2, 2]]
    assert context_cosines(sums.sum_gcd[0], sums.cells_gc[0]) == pytest.approx(np.array([[0, 0.5], [0.5, 1]]))


@pytest.fixture
def embedded(vocabulary: GeneVocabulary, tmp_path: Path) -> str:
    corpus = corpus_in(tmp_path, vocabulary)
    model = model_in(tmp_path, vocabulary)
    config = EmbedConfig(corpus=corpus.uri, model=model, output=str(tmp_path / "e"), pooling="gene", actors=0)
    embed_cells(config)
    return config.output


def test_the_table_is_that_of_all_pairs(embedded: str, tmp_path: Path) -> None:
    config = GeneContextConfig(embeddings=embedded, context="state", output=str(tmp_path / "t"), min_cells=2)
    manifest = gene_contexts(config)
    table = read_made_table(config.output).set_index("Ensembl_ID")
    frame = Embeddings.open(embedded).table().to_pandas()
    for gene, rows in table.iterrows():
        of = {name: list(own["embedding"]) for name, own in frame[frame["gene"] == gene].groupby("state")}
        of = {name: own for name, own in of.items() if len(own) >= 2}
        within = np.mean([np.mean([cosine(a, b) for a, b in combinations(own, 2)]) for own in of.values()])
        between = {
            pair: np.mean([cosine(a, b) for a, b in product(of[pair[0]], of[pair[1]])]) for pair in combinations(of, 2)
        }
        assert rows["Within"] == pytest.approx(within, abs=1e-6)
        assert rows["Between"] == pytest.approx(np.mean(list(between.values())), abs=1e-6)
        assert rows["Context_specificity"] == pytest.approx(rows["Within"] - rows["Between"])
        apart = {name: np.sum([v for pair, v in between.items() if name in pair]) for name in of}
        if len(of) > 2:
            assert rows["Most_distinct"] == min(apart, key=lambda name: apart[name])
        assert (rows["N_Contexts"], rows["N_Cells"]) == (len(of), sum(map(len, of.values())))
    assert table["Context_specificity"].is_monotonic_decreasing
    assert len(table) + manifest.dropped["genes met in fewer than two contexts"] == 30  # genes of the vocabulary
    assert gene_contexts(config) == manifest


def test_some_genes_and_what_is_refused(embedded: str, tmp_path: Path) -> None:
    options = {"embeddings": embedded, "context": "state", "min_cells": 2}
    config = GeneContextConfig(**options, genes=tuple(GENES[:2]), output=str(tmp_path / "two"))
    manifest = gene_contexts(config)
    assert set(read_made_table(config.output)["Ensembl_ID"]) <= set(GENES[:2])
    rows = Embeddings.open(embedded).table()["gene"].to_pylist()
    assert manifest.dropped["rows of genes not asked for"] == sum(gene not in GENES[:2] for gene in rows)
    for changed, message in (
        ({"genes": ("ENSG99",)}, "--genes: must be in the vocabulary; found 'ENSG99'"),
        ({"context": "age"}, "--context must name an obs column the corpus kept; found 'age'"),
        ({"min_cells": 100}, "some gene must be in 100 cells of two contexts or more"),
    ):
        with pytest.raises(InputError, match=message):
            gene_contexts(GeneContextConfig(**(options | changed), output=str(tmp_path / message[:9])))


def test_embeddings_of_cells_are_refused(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    corpus = corpus_in(tmp_path, vocabulary)
    config = EmbedConfig(corpus=corpus.uri, model=model_in(tmp_path, vocabulary), output=str(tmp_path / "e"), actors=0)
    embed_cells(config)
    with pytest.raises(InputError, match="needs embeddings of genes; found --pooling cell"):
        gene_contexts(GeneContextConfig(embeddings=config.output, context="state", output=str(tmp_path / "t")))
