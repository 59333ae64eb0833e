"""Embedding with a registered model: the same numbers as with its directory, and the version is on record."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellray.errors import InputError
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.results import Embeddings
from cellray.model.checkpoint import ModelDirectory
from cellray.tracking import start_run
from cellray.tracking.register import register_model
from cellray.vocabulary import GeneVocabulary
from tests.data.corpora import tokenized


def vectors(uri: str) -> np.ndarray:
    """Cells x width, in the order of the corpus."""
    embeddings = Embeddings.open(uri)
    return embeddings.matrix(embeddings.table())


@pytest.mark.usefixtures("ray_session")
def test_embeddings_by_alias_equal_those_by_directory(
    server: str,
    make_h5ad: Callable[..., Path],
    make_model: Callable[..., str],
    vocabulary_v2: GeneVocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
    corpus = tokenized([make_h5ad(cells=30)], vocabulary_v2, tmp_path / "corpus")
    directory = make_model("model", seed=3)
    register_model(start_run(server, "embedding", "run", {}, {}), directory, "embedder", "best")
    config = EmbedConfig(corpus=corpus.uri, model=directory, output=str(tmp_path / "a"), actors=(0, 0))
    plain = embed_cells(config)
    change = {"model": "models:/embedder@best", "output": str(tmp_path / "b"), "tracking_uri": server}
    named = embed_cells(config.model_copy(update=change))
    assert named.model == "models:/embedder/1"
    assert named.model_digest == plain.model_digest == ModelDirectory.open(directory).digest
    assert named.request == plain.request
    assert plain.model == directory
    np.testing.assert_array_equal(vectors(str(tmp_path / "a")), vectors(str(tmp_path / "b")))
    with pytest.raises(InputError, match="found aliases 'best', versions '1'"):
        embed_cells(config.model_copy(update={**change, "model": "models:/embedder@worst"}))
