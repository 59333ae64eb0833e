"""What is too much, makes no sense or comes too fast is refused, with what would be right; nobody is forgotten."""

import asyncio
import json
import socket
import time
from collections import Counter
from urllib.parse import urlsplit

import anndata
import httpx2
import numpy as np
import pytest

from cellray.api import wire
from cellray.api.schema import ErrorBody
from tests.conftest import GENES
from tests.serving.conftest import Served, json_cells

BINARY = {"content-type": wire.CELLS}
ONE = {"cells": [{"id": "a", "genes": GENES[:3], "counts": [1, 2, 3]}]}


def refused(answer: httpx2.Response, status: int, code: str) -> ErrorBody:
    assert answer.status_code == status, answer.text
    body = ErrorBody.model_validate_json(answer.content)
    assert body.error.code == code
    assert body.error.request_id == answer.headers["x-request-id"]
    return body


def test_limits_are_named(served: Served) -> None:
    many = {"cells": [ONE["cells"][0] | {"id": str(i)} for i in range(65)]}  # type: ignore[operator]
    wide = {"genes": [f"G{i}" for i in range(201)], "cells": [{"id": "a", "counts": [1] * 201}]}
    cells = wire.CellTable(["a"], [f"G{i}" for i in range(201)], *_csr(201))
    with served.client() as client:
        for body, limit, value in ((many, "cells_per_request", 64), (wide, "genes_per_cell", 200)):
            found = refused(client.post("/v1/embeddings", json=body), 422, "limit_exceeded").error
            assert found.limit is not None
            assert (found.limit.name, found.limit.value) == (limit, value)
        refused(
            client.post("/v1/embeddings", content=wire.pack_cells(cells, {}), headers=BINARY), 422, "limit_exceeded"
        )
        large = refused(client.post("/v1/embeddings", content=b" " * 2_000_001), 413, "limit_exceeded").error
        assert large.limit is not None
        assert (large.limit.name, large.limit.value) == ("body_mb", 2)
        chunks = (b" " * 500_000 for _ in range(5))
        refused(client.post("/v1/embeddings", content=chunks), 413, "limit_exceeded")
        bomb = wire.compress(bytes(200_000_000), "zstd")
        assert len(bomb) < 2_000_000
        refused(
            client.post("/v1/embeddings", content=bomb, headers={"content-encoding": "zstd"}), 413, "limit_exceeded"
        )


def _csr(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array([0, n]), np.arange(n, dtype=np.int32), np.ones(n, np.float32)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"content": b"{"}, 422, "invalid_request"),
        ({"content": b""}, 422, "invalid_request"),
        ({"content": b"\xff\xfe"}, 422, "invalid_request"),
        ({"content": b"[" * 100_000}, 422, "invalid_request"),
        ({"json": ONE | {"model": "nope"}}, 404, "unknown_model"),
        ({"json": ONE | {"layer": -9}}, 422, "invalid_request"),
        ({"json": ONE | {"extra": 1}}, 422, "invalid_request"),
        ({"json": {"cells": [{"id": "a", "genes": GENES[:1], "counts": [0.5]}]}}, 422, "invalid_request"),
        ({"json": {"cells": [{"id": "a", "genes": GENES[:1], "counts": [-1]}]}}, 422, "invalid_request"),
        ({"content": b'{"cells":[{"id":"a","genes":["ENSG00000000001"],"counts":[1e999]}]}'}, 422, "invalid_request"),
        ({"json": {"cells": [{"id": "a", "genes": ["unheard", "of"], "counts": [1, 2]}]}}, 422, "invalid_request"),
        ({"json": ONE, "headers": {"content-type": "text/csv"}}, 415, "unsupported_media_type"),
        ({"json": ONE, "headers": {"accept": "image/png"}}, 406, "not_acceptable"),
        ({"json": ONE, "headers": {"content-encoding": "br"}}, 415, "unsupported_encoding"),
        ({"json": ONE, "headers": {"accept": "application/json;q=0, image/png"}}, 406, "not_acceptable"),
        ({"content": b"no stream", "headers": BINARY}, 422, "invalid_request"),
        ({"content": b"no file", "headers": {"content-type": wire.H5AD}}, 422, "invalid_request"),
        ({"json": ONE, "params": {"model": "cells"}}, 422, "invalid_request"),
    ],
)
def test_each_slip_has_its_answer(served: Served, change: dict[str, object], status: int, code: str) -> None:
    with served.client() as client:
        refused(client.post("/v1/embeddings", **change), status, code)  # type: ignore[arg-type]


def test_unknown_places_have_bodies_too(served: Served) -> None:
    with served.client() as client:
        refused(client.get("/v1/nothing"), 404, "not_found")
        refused(client.get("/v1/embeddings"), 405, "method_not_allowed")
        assert client.get("/v1/embeddings").headers["allow"] == "POST"
        assert (client.head("/healthz").status_code, client.head("/v1/embeddings").status_code) == (200, 405)
        refused(client.get("/v1/jobs/none"), 404, "not_found")


def test_models_and_health_are_told(served: Served) -> None:
    with served.client() as client:
        models = {each["name"]: each for each in client.get("/v1/models").json()["models"]}
        assert client.get("/healthz").json()["status"] == "ok"
        assert client.get("/readyz").json()["models"] == {"default": True, "cells": True}
        described = client.get("/openapi.json").json()
    assert models["default"]["states"] == ["sick", "well"]
    assert [head["name"] for head in models["cells"]["heads"]] == ["disease", "age"]
    assert models["default"]["vocabulary_digest"] == served.vocabulary.digest
    assert models["default"]["limits"]["cells_per_request"] == 64
    assert str(served.folder) not in json.dumps(models)
    for place, name in (("embeddings", "EmbeddingRequest"), ("perturbations", "PerturbationRequest")):
        body = described["paths"][f"/v1/{place}"]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"]["$ref"].endswith(name)
        assert described["components"]["schemas"][name]["examples"]
        given = {each["name"]: each for each in described["paths"][f"/v1/{place}"]["post"]["parameters"]}
        assert {"model", "matrix", "gene_ids", "pooling", "layer"} <= set(given)
        assert not {"cells", "genes"} & set(given)
    assert described["paths"]["/healthz"]["get"]["security"] == []
    assert "HTTPValidationError" not in json.dumps(described["paths"])


def test_a_body_that_does_not_come_is_given_up(served: Served) -> None:
    url = urlsplit(served.url)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{{"
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.1 408")
    assert "body_timeout" in answer


def test_no_weight_is_no_wish(served: Served) -> None:
    with served.client() as client:
        accept = f"application/json, {wire.ARROW_STREAM};q=0"
        answer = client.post("/v1/embeddings", json=ONE, headers={"accept": accept})
    assert answer.headers["content-type"] == "application/json"


def test_numbers_are_told(served: Served, cells: anndata.AnnData) -> None:
    def numbers(client: httpx2.Client) -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    with served.client() as client:
        before = numbers(client)
        answer = client.post("/v1/embeddings", json=json_cells(cells)).json()
        client.post("/v1/embeddings", content=b"{")
        after = numbers(client)
    for name, by in (
        ('cellray_requests_total{route="/v1/embeddings",status="200"}', 1),
        ('cellray_requests_total{route="/v1/embeddings",status="422"}', 1),
        ('cellray_cells_total{model="default"}', cells.n_obs),
        ('cellray_tokens_total{model="default"}', sum(note["tokens"] for note in answer["notes"])),
    ):
        assert after[name] - before.get(name, 0) == by
    assert after['cellray_model_ready{model="default"}'] == 1
    assert after['cellray_queue_cells{model="default"}'] == 0


def test_who_hangs_up_leaves_the_queue(served: Served, cells: anndata.AnnData) -> None:
    """Long screens are asked and, once they wait, given up; then the replica has nothing to do."""
    ask = json_cells(cells) | {"perturb": GENES[:10], "pairs": True, "kind": "overexpress", "background": False}
    idle = 'cellray_queue_cells{model="default"} 0.0'

    async def give_up() -> int:
        async with httpx2.AsyncClient(base_url=served.url, timeout=120) as client:
            asked = [asyncio.create_task(client.post("/v1/perturbations", json=ask)) for _ in range(12)]
            while idle in (await client.get("/metrics")).text and not all(each.done() for each in asked):
                pass
            given_up = sum(each.cancel() for each in asked)
            await asyncio.wait(asked)
        return given_up

    assert any(asyncio.run(give_up()) for _ in range(20))  # a fast server may have answered all before it was looked at
    with served.client() as client:
        for _ in range(600):
            numbers = client.get("/metrics").text
            if idle in numbers:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(numbers)


def test_more_than_the_queue_takes_is_refused_at_once(served: Served, cells: anndata.AnnData) -> None:
    """Each request holds 60 cells for long, 256 may wait: of many at once some are refused, others are answered."""
    rows = json_cells(cells)["cells"]
    body = {"genes": GENES, "cells": [row | {"id": f"{row['id']}-{i}"} for i in range(3) for row in rows]}  # type: ignore[attr-defined]
    slow = body | {"perturb": GENES[:20], "kind": "overexpress", "background": False}
    seen: Counter[int] = Counter()

    async def ask() -> None:
        async with httpx2.AsyncClient(base_url=served.url, timeout=150) as client:
            for answer in await asyncio.gather(
                *(client.post("/v1/perturbations?model=default", json=slow) for _ in range(12))
            ):
                seen[answer.status_code] += 1
                if answer.status_code == 429:
                    found = refused(answer, 429, "queue_full").error
                    assert found.limit is not None
                    assert found.limit.name == "max_queued_cells"
                    assert int(answer.headers["retry-after"]) >= 1

    asyncio.run(ask())
    assert set(seen) == {200, 429}
    assert seen[200] >= 4
