"""Requests that were damaged in every way: none kills a replica, none is answered with a 5xx."""

import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from cellray.api import wire
from cellray.api.schema import EmbeddingRequest
from cellray.api.wire import cells_of
from tests.conftest import GENES
from tests.serving.conftest import Served, json_cells
from tests.serving.test_faults import replicas

logger = logging.getLogger(__name__)

_VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, -(2**70), 0.5, 1e308, -0.0, "", "a", "\x00", "all", "😀" * 50),
    *([], [[]], {}, {"a": 1}, [None], "models:/x@y", "../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1/"),
    *([1] * 300, GENES[:3], "ENSG00000000001", float("nan"), float("inf")),
]
_PATHS = ("/v1/embeddings", "/v1/predictions", "/v1/perturbations")
_TYPES = (wire.JSON, wire.JSON, wire.JSON, wire.CELLS, "text/plain", "", "application/json; charset=utf-16")


def bases(cells: anndata.AnnData) -> list[dict[str, Any]]:
    own = json_cells(cells[:3].copy())
    sparse = {"cells": [{"id": "a", "genes": GENES[:4], "counts": [1, 2, 3, 4]}], "pooling": "cls", "layer": 0}
    screen = {"kind": "inhibit", "quartiles": 2, "perturb": GENES[:3], "anchor": GENES[4:5], "top": 3, "goal": "well"}
    return [own, own | {"model": "cells"}, sparse, own | screen, own | {"perturb": "all", "background": False}]


def mutated(value: Any, rng: random.Random) -> Any:  # noqa: ANN401, PLR0911
    """Change one place somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        way = rng.random()
        if way < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if way < 0.2:
            return value | {rng.choice(["", "x", "model", "genes", "indices", key * 2]): rng.choice(_VALUES)}
        return value | {key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place, way = rng.randrange(len(value)), rng.random()
        if way < 0.1:
            return value[:place] + value[place + 1 :]
        if way < 0.2:
            return value[: place + 1] + value[place:]
        return [*value[:place], mutated(value[place], rng), *value[place + 1 :]]
    return rng.choice(_VALUES)


def damaged(body: bytes, rng: random.Random) -> bytes:
    """Change bytes, cut or repeat a piece."""
    made = bytearray(body)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(len(made)) if made else 0
        way = rng.random()
        if way < 0.6 and made:
            made[place] = rng.randrange(256)
        elif way < 0.8:
            del made[place : place + rng.randrange(1, 50)]
        else:
            made[place:place] = made[place : place + 20]
    return bytes(made)


def asked(base: list[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
    """Return a request that is damaged somewhere."""
    value = rng.choice(base)
    way = rng.random()
    headers = {"content-type": wire.JSON}
    if way < 0.55:
        for _ in range(rng.choice([1, 1, 2, 3])):
            value = mutated(value, rng)
        body = json.dumps(value).encode("utf-8", "surrogatepass")
    elif way < 0.7:
        body = damaged(json.dumps(value).encode(), rng)
    elif way < 0.9:
        plain = EmbeddingRequest.model_validate_json(json.dumps({"genes": value.get("genes"), "cells": value["cells"]}))
        others = {name: each for name, each in value.items() if name not in ("genes", "cells")}
        changed = mutated(others, rng) if others and rng.random() < 0.5 else others
        body = wire.pack_cells(cells_of(plain), changed if isinstance(changed, dict) else others)
        body = damaged(body, rng) if rng.random() < 0.7 else body
        headers["content-type"] = wire.CELLS
    else:
        body = json.dumps(value).encode()
        name = rng.choice(["content-type", "accept", "content-encoding", "x-request-id", "expect", "range"])
        headers[name] = rng.choice([*_TYPES, "zstd", "gzip", "*/*;q=0", "a" * 2000])
    params = (
        {} if rng.random() < 0.9 else {rng.choice(["model", "layer", "x"]): rng.choice(["default", "-1", "", "%00"])}
    )
    return {"url": rng.choice(_PATHS), "content": body, "headers": headers, "params": params}


def send(served: Served, cells: anndata.AnnData, number: int, seed: int) -> Counter[int]:
    rng, base, seen = random.Random(seed), bases(cells), Counter[int]()  # noqa: S311
    with served.client() as client:
        for _ in range(number):
            request = asked(base, rng)
            answer = client.post(**request)
            seen[answer.status_code] += 1
            assert answer.status_code < 500, (request, answer.text)
            if answer.status_code == 202:
                client.delete(f"/v1/jobs/{answer.json()['id']}")
            if answer.status_code >= 400:
                assert answer.json()["error"]["message"], request
    return seen


def check(served: Served, cells: anndata.AnnData, number: int) -> None:
    before = [replicas(name) for name in ("model-default", "model-cells", "ingress", "jobs")]
    seen = send(served, cells, number, seed=number)
    logger.info("answers: %s", dict(seen))
    assert len(seen) >= 4
    assert [replicas(name) for name in ("model-default", "model-cells", "ingress", "jobs")] == before
    with served.client() as client:
        assert client.get("/readyz").status_code == 200


def test_damaged_requests(served: Served, cells: anndata.AnnData) -> None:
    check(served, cells, 300)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_many_damaged_requests(served: Served, cells: anndata.AnnData) -> None:
    check(served, cells, 5000)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_damaged_files(served: Served, cells: anndata.AnnData, tmp_path: Path) -> None:
    """200 uploads with changed bytes: each is refused, or its embeddings are those of the sound file."""
    few = cells[:6].copy()
    few.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    sound, rng, seen = (tmp_path / "cells.h5ad").read_bytes(), random.Random(7), Counter[int]()  # noqa: S311
    with served.client() as client:
        wanted = client.post("/v1/embeddings", json=json_cells(few)).json()["embeddings"]
        for _ in range(200):
            body = damaged(sound, rng)
            answer = client.post("/v1/embeddings", content=body, headers={"content-type": wire.H5AD})
            seen[answer.status_code] += 1
            assert answer.status_code < 500, answer.text
            if answer.status_code == 200:
                found = np.array(answer.json()["embeddings"], float)
                if not np.allclose(found, wanted, atol=5e-6):
                    seen[-1] += 1  # a changed count is a sound file of other cells
    logger.info("answers: %s", dict(seen))
    assert seen[200] + seen[422] + seen[413] == 200
