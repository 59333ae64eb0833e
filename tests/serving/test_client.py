"""The client against the server: it returns what the jobs give, in the order of the cells, whatever the pieces."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from cellray.client import AsyncClient, Client, RefusedError
from tests.conftest import GENES
from tests.infer.tiny import cells_of
from tests.serving.conftest import Served, json_cells
from tests.serving.test_embeddings import offline
from tests.serving.test_perturbations import DESIGNS, assert_same, batch


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


@pytest.fixture(scope="module")
def many() -> anndata.AnnData:
    """Return 150 cells, more than a request may hold; the model knows no gene of number 70, and two share a name."""
    adata = cells_of(cells=150, seed=4)
    x = adata.X.tolil()
    x[70, :] = 0
    x[70, 39] = 5  # the vocabulary knows the first thirty genes
    adata.X = x.tocsr()
    adata.obs_names = [f"cell{i}" if i != 71 else "cell3" for i in range(150)]
    return adata


def asked(served: Served, path: str, adata: anndata.AnnData, **more: object) -> list[dict[str, object]]:
    """Ask over plain HTTP and JSON, 50 cells at a time."""
    with served.client() as plain:
        return [
            plain.post(path, json=json_cells(adata[start : start + 50]) | more).raise_for_status().json()
            for start in range(0, adata.n_obs, 50)
        ]


@pytest.mark.parametrize(("pooling", "layer"), [("cell", -1), ("cls", 0)])
def test_embeddings_are_those_of_the_job(
    served: Served, client: Client, cells: anndata.AnnData, tmp_path: Path, pooling: str, layer: int
) -> None:
    found_nd = client.embed(cells, pooling=pooling, layer=layer)  # type: ignore[arg-type]
    np.testing.assert_allclose(found_nd, offline(served, cells, tmp_path, pooling=pooling, layer=layer), atol=2e-6)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_rows_stay_with_their_cells(served: Served, client: Client, many: anndata.AnnData) -> None:
    found = client.embed_with_notes(many)
    answers = asked(served, "/v1/embeddings", many)
    wanted = [row or [np.nan] * 128 for answer in answers for row in answer["embeddings"]]  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.embedding_nd, np.array(wanted, np.float32), atol=2e-6)
    assert np.flatnonzero(np.isnan(found.embedding_nd).any(axis=1)).tolist() == [70]
    assert found.notes["genes_given"].tolist() == [
        note["genes_given"]
        for answer in answers
        for note in answer["notes"]  # type: ignore[attr-defined]
    ]
    assert found.model is not None
    assert found.model.model_dump() == answers[0]["model"]


def test_async_is_the_same(served: Served, client: Client, cells: anndata.AnnData) -> None:
    async def run() -> np.ndarray:
        async with AsyncClient(served.url, compression="zstd", in_flight=2) as other:
            return await other.embed(cells)

    np.testing.assert_allclose(asyncio.run(run()), client.embed(cells), atol=2e-6)


def test_embeddings_of_genes(served: Served, client: Client, cells: anndata.AnnData) -> None:
    few = cells[:4].copy()
    found = client.embed_genes(few, layer=0)
    [answer] = asked(served, "/v1/embeddings", few, pooling="gene", layer=0)
    for row in answer["genes"]:  # type: ignore[attr-defined]
        own = found.loc[row["id"]]
        assert own.index.tolist() == row["genes"]
        np.testing.assert_allclose(own.to_numpy(), np.array(row["embeddings"]), atol=2e-6)
    assert found.attrs["model"] == answer["model"]


def test_predictions_have_a_row_for_each_cell(served: Served, client: Client, many: anndata.AnnData) -> None:
    many = many[60:80].copy()
    many.obs_names = [f"cell{i}" for i in range(20)]
    found = client.predict(many, "cells")
    [answer] = asked(served, "/v1/predictions", many, model="cells")
    wanted = pd.DataFrame(answer["table"]).set_index("cell_id").reindex(many.obs_names)
    assert found.index.tolist() == many.obs_names.tolist()
    assert found.columns.tolist() == wanted.columns.tolist()
    assert found["disease"].isna().tolist() == [i == 10 for i in range(20)]
    assert found["disease"].fillna("").tolist() == wanted["disease"].fillna("").tolist()
    np.testing.assert_allclose(found["age"], wanted["age"], rtol=1e-4)
    assert found.attrs["cells_without_known_genes"] == 1


@pytest.mark.parametrize("ask", DESIGNS, ids=lambda ask: str(ask["kind"]))
@pytest.mark.parametrize("background", [None, True])
def test_effects_are_those_of_the_job(
    served: Served,
    client: Client,
    cells: anndata.AnnData,
    tmp_path: Path,
    ask: dict[str, object],
    background: bool | None,
) -> None:
    few = cells[:5].copy()
    found = client.perturb(few, top=None, background=background, **ask)  # type: ignore[arg-type]
    wanted = batch(served, few, tmp_path, ask)
    assert_same(found.sort_values(["cell_id", "perturbation"], ignore_index=True), wanted)
    assert found.attrs["counts"]["perturbations"] == len(wanted)


def test_jobs_leave_nothing_behind_and_tell_how_far_they_are(
    served: Served, client: Client, cells: anndata.AnnData
) -> None:
    told: list[float] = []
    with served.client() as plain:
        before = {each["id"] for each in plain.get("/v1/jobs").json()}
        client.perturb(cells, background=True, top=2, progress=lambda done, total: told.append(done / total))
        assert told == sorted(told)
        assert told[-1] == 1
        assert {each["id"] for each in plain.get("/v1/jobs").json()} == before  # others' jobs go on


def test_refusals_are_in_the_servers_words(client: Client, cells: anndata.AnnData) -> None:
    few = cells[:3]
    for call, told in (
        (lambda: client.embed(few, "nobody"), "there is no model 'nobody'; there are default, cells"),
        (lambda: client.embed(few, layer=-9), "layer"),
        (lambda: client.predict(few), "fine-tuned"),
        (lambda: client.perturb(few, perturb=GENES[:1], start="sick", goal="rich"), "rich"),
    ):
        with pytest.raises(RefusedError, match=told):
            call()


def test_counts_that_are_none_are_refused(client: Client, cells: anndata.AnnData) -> None:
    normalised = cells[:3].copy()
    normalised.X = normalised.X * 0.37
    with pytest.raises(RefusedError, match="raw counts"):
        client.embed(normalised)


def test_models_are_listed(served: Served, client: Client) -> None:
    found = {info.name: info for info in client.models()}
    assert set(found) == {"default", "cells"}
    assert found["default"].states == ["sick", "well"]
    assert found["default"].limits.cells_per_request == 64
