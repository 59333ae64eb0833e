"""Replicas are killed and models replaced under load: nobody notices, or hardly anybody."""

import logging
import time
from collections.abc import Callable

import anndata
import httpx2
import numpy as np
import pytest

from tests.conftest import GENES
from tests.infer.tiny import AGE, DISEASE, model_in
from tests.serving.conftest import Served, json_cells, register, serving
from tests.serving.load import Load
from tests.serving.test_perturbations import finished

logger = logging.getLogger(__name__)


def replicas(deployment: str) -> list[str]:
    """Names of a deployment's actors that live."""
    from ray.util import list_named_actors

    prefix = f"SERVE_REPLICA::cellray#{deployment}#"
    return sorted(actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["name"].startswith(prefix))


def kill(deployment: str) -> None:
    import ray

    for name in replicas(deployment)[:1]:
        ray.kill(ray.get_actor(name, namespace="serve"))


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def same_as(wanted: np.ndarray) -> Callable[[httpx2.Response], bool]:
    return lambda answer: bool(np.allclose(np.array(answer.json()["embeddings"]), wanted, atol=5e-6))


def embeddings(served: Served, body: object) -> np.ndarray:
    with served.client() as client:
        return np.array(client.post("/v1/embeddings", json=body).json()["embeddings"])


def test_a_lost_replica_costs_nothing(served: Served, cells: anndata.AnnData) -> None:
    body = json_cells(cells)
    ask = json_cells(cells[:3].copy()) | {"perturb": GENES[:12], "pairs": True, "kind": "overexpress", "top": 4}
    right = same_as(embeddings(served, body))
    before = replicas("model-default")
    with served.client() as client:
        wanted = client.post("/v1/perturbations", json=ask | {"background": False}).json()
        with Load(served.url, "/v1/embeddings", body, right, clients=2) as load:
            job = client.post("/v1/perturbations", json=ask | {"background": True}).json()["id"]
            time.sleep(0.5)
            kill("model-default")
            until(lambda: replicas("model-default") != before)
            status = finished(client, job)
            until(lambda: load.seen["right"] > 2)
        assert status["state"] == "done", status
        found = client.get(f"/v1/jobs/{job}/result").json()
    assert found["table"]["genes"] == wanted["table"]["genes"]
    np.testing.assert_allclose(found["table"]["similarity"], wanted["table"]["similarity"], atol=5e-6)
    assert not load.wrong
    assert load.seen["right"] > 2


def test_a_moved_alias_is_followed_without_a_lost_request(
    served: Served, cells: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory
) -> None:
    digests: list[str] = []

    def right(answer: httpx2.Response) -> bool:
        digests.append(answer.json()["model"]["digest"])
        return len(answer.json()["table"]["cell_id"]) == cells.n_obs

    new = model_in(tmp_path_factory.mktemp("new"), served.vocabulary, DISEASE, AGE, pooling="attention")
    with (
        served.client() as client,
        Load(served.url, "/v1/predictions", json_cells(cells) | {"model": "cells"}, right) as load,
    ):
        until(lambda: len(set(digests)) == 1)
        register(served.folder, new)
        follows(client, "models:/cells/2")
        until(lambda: len(set(digests)) == 2)
        register(served.folder, str(served.folder / "cells" / "tuned"))
        follows(client, "models:/cells/1")
    assert not load.wrong
    assert len(set(digests)) == 2


def follows(client: httpx2.Client, version: str) -> None:
    def uri() -> str:
        models = {each["name"]: each for each in client.get("/v1/models").json()["models"]}
        return str(models["cells"]["uri"])

    until(lambda: uri() == version)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_replica_killed_again_and_again(served: Served, cells: anndata.AnnData) -> None:
    """Every 20 s for 3 minutes, under load: at least 99 % of the requests are answered right."""
    body = json_cells(cells)
    right = same_as(embeddings(served, body))
    with Load(served.url, "/v1/embeddings", body, right, clients=4, patience=5, pause_s=0.02) as load:
        for _ in range(9):
            time.sleep(20)
            kill("model-default")
    logger.info("answers: %s, wrong: %s", dict(load.seen), load.wrong[:5])
    assert load.share_right >= 0.99
    assert load.seen["right"] > 500


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_deployment_is_updated_under_load(served: Served, cells: anndata.AnnData) -> None:
    """All replicas are replaced, those that speak HTTP too: no request fails."""
    body = json_cells(cells)
    right = same_as(embeddings(served, body))
    before = replicas("model-default")
    changed = {name: options.model_copy(update={"max_wait_ms": 2.0}) for name, options in served.config.models.items()}
    with Load(served.url, "/v1/embeddings", body, right, clients=4, pause_s=0.02) as load:
        time.sleep(1)
        serving(served.config.model_copy(update={"models": changed})).__enter__()
        time.sleep(5)
    logger.info("answers: %s, wrong: %s", dict(load.seen), load.wrong[:5])
    assert not load.wrong
    assert replicas("model-default") != before
