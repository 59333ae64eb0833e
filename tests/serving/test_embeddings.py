"""Embeddings over HTTP are those of the job on the same cells, in every form of body and answer."""

import asyncio
import json
from pathlib import Path

import anndata
import httpx2
import numpy as np
import pytest

from cellray.api import wire
from cellray.api.schema import EmbeddingRequest
from cellray.api.wire import cells_of
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.results import Embeddings
from tests.conftest import GENES
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


def test_genes_of_a_cell_have_rows(served: Served, cells: anndata.AnnData, tmp_path: Path) -> None:
    with served.client() as client:
        answer = client.post("/v1/embeddings", json=json_cells(cells) | {"pooling": "gene"}).json()
        binary = client.post(
            "/v1/embeddings", json=json_cells(cells) | {"pooling": "gene"}, headers={"accept": wire.ARROW_STREAM}
        )
    corpus = corpus_in(tmp_path, served.vocabulary, cells)
    output = str(tmp_path / "embeddings")
    model = served.config.models["default"].uri
    embed_cells(EmbedConfig(corpus=corpus.uri, model=model, output=output, actors=(0, 0), pooling="gene"))
    embeddings = Embeddings.open(output)
    wanted = embeddings.table()
    assert [gene for cell in answer["genes"] for gene in cell["genes"]] == wanted["gene"].to_pylist()
    found_nd = np.concatenate([np.array(cell["embeddings"], np.float32) for cell in answer["genes"]])
    np.testing.assert_allclose(found_nd, embeddings.matrix(wanted), atol=2e-6)
    table, about = wire.unpack_table(binary.content)
    assert table["gene"].to_pylist() == wanted["gene"].to_pylist()
    assert table["id"].to_pylist() == wanted["cell_id"].to_pylist()
    assert about["model"]["digest"] == answer["model"]["digest"]


def test_binary_is_json(served: Served, cells: anndata.AnnData) -> None:
    body = json_cells(cells)
    asked = cells_of(EmbeddingRequest.model_validate_json(json.dumps(body)))
    headers = {"content-type": wire.CELLS, "accept": wire.ARROW_STREAM}
    with served.client() as client:
        plain = client.post("/v1/embeddings", json=body | {"layer": 0}).json()
        packed = wire.pack_cells(asked, {"layer": 0})
        answer = client.post("/v1/embeddings", content=packed, headers=headers)
        for encoding in ("zstd", "gzip"):
            again = client.post(
                "/v1/embeddings",
                content=wire.compress(packed, encoding),
                headers=headers | {"content-encoding": encoding},
            )
            assert again.content == answer.content
    ids, embedding_nd, about = wire.unpack_embeddings(answer.content)
    assert answer.headers["content-type"] == wire.ARROW_STREAM
    assert ids == cells.obs_names.tolist()
    np.testing.assert_allclose(embedding_nd, np.array(plain["embeddings"], np.float32), atol=2e-6)
    assert about == {name: plain[name] for name in ("model", "notes", "pooling", "layer")}


def test_a_file_is_read_as_a_body(served: Served, cells: anndata.AnnData, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    headers = {"content-type": wire.H5AD}
    with served.client() as client:
        body = (tmp_path / "cells.h5ad").read_bytes()
        answer = client.post("/v1/embeddings?pooling=cls&layer=0&model=default", content=body, headers=headers)
        plain = client.post("/v1/embeddings", json=json_cells(cells) | {"pooling": "cls", "layer": 0}).json()
        wrong = client.post("/v1/embeddings?matrix=layers/no", content=body, headers=headers)
        broken = client.post("/v1/embeddings", content=body[:-2000], headers=headers)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    np.testing.assert_allclose(np.array(found["embeddings"]), np.array(plain["embeddings"]), atol=2e-6)
    assert found["notes"] == plain["notes"]
    for refused in (wrong, broken):
        assert refused.status_code == 422
        assert "cellray-upload" not in refused.text
    assert "layers/no" in wrong.json()["error"]["message"]


def test_notes_say_what_became_of_cells(served: Served) -> None:
    genes = [*GENES[:20], *GENES[35:40]]
    rows = [
        {"id": "long", "counts": [1] * 25},
        {"id": "none", "indices": [24], "counts": [9]},
        {"id": "zeros", "indices": [0, 1], "counts": [0, 2]},
        {"id": "empty", "genes": [], "counts": []},
    ]
    with served.client() as client:
        answer = client.post("/v1/embeddings", json={"genes": genes, "cells": rows}).json()
    told = [
        (note["id"], note["genes_given"], note["genes_mapped"], note["tokens"], note["truncated"])
        for note in answer["notes"]
    ]
    assert told == [
        ("long", 25, 20, 16, True),
        ("none", 1, 0, 0, False),
        ("zeros", 1, 1, 3, False),
        ("empty", 0, 0, 0, False),
    ]
    assert [row is None for row in answer["embeddings"]] == [False, True, False, True]


def test_many_requests_at_once_get_their_own_answers(served: Served, cells: anndata.AnnData) -> None:
    body = json_cells(cells)

    async def ask() -> list[dict[str, object]]:
        async with httpx2.AsyncClient(base_url=served.url, timeout=60) as client:
            asked = [body | {"cells": [row, body["cells"][0]]} for row in body["cells"]]  # type: ignore[index]
            return [
                answer.json()
                for answer in await asyncio.gather(*(client.post("/v1/embeddings", json=a) for a in asked))
            ]

    with served.client() as client:
        alone = client.post("/v1/embeddings", json=body).json()["embeddings"]
    for number, answer in enumerate(asyncio.run(ask())):
        wanted = np.array([alone[number], alone[0]])
        np.testing.assert_allclose(np.array(answer["embeddings"]), wanted, atol=2e-6)
