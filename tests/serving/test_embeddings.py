"""Embeddings over HTTP are those of the job on the same cells, in every form of body and answer."""

from pathlib import Path

import anndata
import numpy as np
import pytest

from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.results import Embeddings
from tests.infer.tiny import corpus_in
from tests.serving.conftest import Served, json_cells


def offline(served: Served, cells: anndata.AnnData, folder: Path, **options: object) -> np.ndarray:
    corpus = corpus_in(folder, served.vocabulary, cells)
    model = served.config.models["default"].uri
    output = str(folder / "embeddings")
    embed_cells(EmbedConfig(corpus=corpus.uri, model=model, output=output, actors=(0, 0), **options))  # type: ignore[arg-type]
    embeddings = Embeddings.open(output)
    return embeddings.matrix(embeddings.table())


@pytest.mark.parametrize(("pooling", "layer"), [("cell", -1), ("cls", 0), ("cell", -2)])
def test_embeddings_are_those_of_the_job(
    served: Served, cells: anndata.AnnData, tmp_path: Path, pooling: str, layer: int
) -> None:
    with served.client() as client:
        answer = client.post("/v1/embeddings", json=json_cells(cells) | {"pooling": pooling, "layer": layer})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    wanted_nd = offline(served, cells, tmp_path, pooling=pooling, layer=layer)
    np.testing.assert_allclose(np.array(found["embeddings"], np.float32), wanted_nd, atol=2e-6)
    assert [note["id"] for note in found["notes"]] == cells.obs_names.tolist()
    assert (found["pooling"], found["layer"]) == (pooling, layer)
