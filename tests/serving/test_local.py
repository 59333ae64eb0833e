"""The HTTP side by itself: what its endpoints refuse and tell, whatever model stands behind it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from ray.exceptions import ActorDiedError

from cellray.api import wire
from serving.access import Asked, Caller, OpenGate
from serving.answers import Embedded, Tabled
from serving.key_gate import KeyFile, KeyGate
from serving.keys import Key, append_key, digest_of, new_key
from tests.serving.local import CELLS, Local
from tests.serving.test_background import measured, plan_of


def table(genes: int) -> wire.CellTable:
    """Two cells that share no gene, with half of them each."""
    half = genes // 2
    columns, indptr = np.arange(2 * half, dtype=np.int32), np.array([0, half, 2 * half])
    return wire.CellTable(["a", "b"], [f"G{i}" for i in range(genes)], indptr, columns, np.ones(2 * half))


def as_json(cells: wire.CellTable, *, shared: bool) -> dict[str, Any]:
    half = len(cells.counts) // 2
    if shared:
        rows = [{"id": str(i), "indices": list(range(i * half, (i + 1) * half)), "counts": [1] * half} for i in (0, 1)]
        return {"model": "m", "genes": list(cells.genes), "cells": rows}
    own = (list(cells.genes[:half]), list(cells.genes[half:]))
    return {"model": "m", "cells": [{"id": str(i), "genes": own[i], "counts": [1] * half} for i in (0, 1)]}


def test_names_of_genes_are_limited_in_each_form() -> None:
    """Four names are too many, in whatever way they come; two are not."""
    small, large = table(2), table(4)

    async def ask() -> None:
        async with Local({"genes_per_request": 3}) as client:
            url, binary = "/v1/embeddings", {"content-type": wire.CELLS}
            refused = [
                await client.post(url, json=as_json(large, shared=False)),
                await client.post(url, json=as_json(large, shared=True)),
                await client.post(url, content=wire.pack_cells(large, {"model": "m"}), headers=binary),
            ]
            for answer in refused:
                error = answer.json()["error"]
                assert (answer.status_code, error["limit"]) == (422, {"name": "genes_per_request", "value": 3.0}), error
                assert "found 4" in error["message"]
            assert (await client.post(url, json=as_json(small, shared=False))).status_code == 200
            packed = wire.pack_cells(small, {"model": "m"})
            assert (await client.post(url, content=packed, headers=binary)).status_code == 200

    asyncio.run(ask())


def test_models_tell_all_limits_that_clients_need() -> None:
    async def ask() -> dict[str, float]:
        async with Local({"genes_per_request": 3}, {"max_queued_cells": 5}) as client:
            [model] = (await client.get("/v1/models")).json()["models"]
            return dict(model["limits"])

    assert asyncio.run(ask()) == {
        "body_mb": 64,
        "json_mb": 16,
        "response_mb": 256,
        "cells_per_request": 1024,
        "genes_per_cell": 65_536,
        "genes_per_request": 3,
        "counts_per_request": 8_000_000,
        "max_queued_cells": 5,
        "perturbation_tokens": 200_000,
        "job_tokens": 2_000_000_000,
        "jobs_per_key": 16,
        "job_ttl_s": 3600,
        "request_timeout_s": 120,
    }


def test_a_wrong_parameter_is_an_error_like_any_other() -> None:
    async def ask() -> httpx2.Response:
        async with Local() as client:
            return await client.post("/v1/cells?draw=-1", content=b"", headers={"content-type": wire.H5AD})

    answer = asyncio.run(ask())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "invalid_request")
    assert error["message"] == "draw: Input should be greater than or equal to 0"


def test_more_cells_than_may_wait_are_refused_at_once() -> None:
    """Of eight requests of two cells, where five cells may wait."""

    async def ask() -> None:
        local, gate = Local(options={"max_queued_cells": 5}), asyncio.Event()
        embed = local.model.embed

        async def slow(*asked: Any) -> Embedded:  # noqa: ANN401
            await gate.wait()
            return await embed(*asked)

        local.model.embed = slow  # type: ignore[method-assign]
        async with local as client:
            body = as_json(table(2), shared=True)
            asked = [asyncio.create_task(client.post("/v1/embeddings", json=body)) for _ in range(8)]
            while sum(each.done() for each in asked) < 6:
                await asyncio.sleep(0.001)
            gate.set()
            answers = await asyncio.gather(*asked)
        assert sorted(answer.status_code for answer in answers) == 2 * [200] + 6 * [429]
        for answer in answers:
            if answer.status_code == 429:
                error = answer.json()["error"]
                assert (error["code"], error["limit"]) == ("queue_full", {"name": "max_queued_cells", "value": 5.0})
                assert int(answer.headers["retry-after"]) >= 1

    asyncio.run(ask())


def gate_of(folder: Path, **scopes: list[str]) -> tuple[KeyGate, dict[str, dict[str, str]]]:
    """Return a gate of keys with these scopes, and the header that each of them sends."""
    keys = {name: new_key() for name in scopes}
    for name, key in keys.items():
        made = Key.model_validate({"sha256": digest_of(key), "scopes": scopes[name]})
        append_key(folder / "keys.toml", name, made)
    headers = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
    return KeyGate(KeyFile(str(folder / "keys.toml")), 6000, None), headers


def test_an_admin_sees_everybodys_jobs_and_ends_them(tmp_path: Path) -> None:
    gate, of = gate_of(tmp_path, ana=["perturb"], bo=["perturb"], boss=["admin"])

    async def ask() -> None:
        async with Local(gate=gate) as client:
            body = CELLS | {"background": True}
            begun = [await client.post("/v1/perturbations", json=body, headers=of[who]) for who in ("ana", "bo")]
            ids = [each.json()["id"] for each in begun]
            everybodys = (await client.get("/v1/jobs", headers=of["boss"])).json()
            assert [(each["id"], each["key"]) for each in everybodys] == [(ids[0], "ana"), (ids[1], "bo")]
            [own] = (await client.get("/v1/jobs", headers=of["ana"])).json()
            assert (own["id"], own["key"]) == (ids[0], None)
            assert abs(datetime.now(UTC) - datetime.fromisoformat(own["created"])) < timedelta(minutes=1)
            place = f"/v1/jobs/{ids[1]}"
            assert (await client.delete(place, headers=of["ana"])).status_code == 404
            assert (await client.get(f"{place}/result", headers=of["boss"])).status_code == 403
            assert (await client.get(place, headers=of["boss"])).json()["key"] == "bo"
            assert (await client.post("/v1/perturbations", json=body, headers=of["boss"])).status_code == 403
            while (await client.get(place, headers=of["bo"])).json()["state"] != "done":
                await asyncio.sleep(0.001)
            assert (await client.delete(place, headers=of["boss"])).status_code == 200
            assert (await client.get(place, headers=of["bo"])).status_code == 404

    asyncio.run(ask())


def test_head_is_get_without_the_body() -> None:
    """Of every endpoint: those that take no GET say so, and none fails."""

    async def ask() -> None:
        async with Local() as client:
            described = (await client.get("/openapi.json")).json()["paths"]
            places = [*described, "/", "/page/app.js", "/page/none", "/v1/nothing", "/openapi.json"]
            assert len(places) > 15
            for place in (each.replace("{job_id}", "none") for each in places):
                head, get = await client.head(place), await client.get(place)
                assert (head.status_code, head.content) == (get.status_code, b""), place
                assert head.status_code in (200, 404, 405), place
                for name in ("content-type", "content-length", "allow", "x-content-type-options"):
                    assert place == "/metrics" or head.headers.get(name) == get.headers.get(name), (place, name)
            assert (await client.head("/v1/embeddings")).headers["allow"] == "POST"

    asyncio.run(ask())


def test_a_request_sent_again_begins_no_second_job(tmp_path: Path) -> None:
    gate, of = gate_of(tmp_path, ana=["perturb"], bo=["perturb"])

    async def ask() -> None:
        local = Local(gate=gate)
        async with local as client:

            async def post(who: str, key: str | None, **more: Any) -> httpx2.Response:  # noqa: ANN401
                headers = of[who] | ({} if key is None else {"idempotency-key": key})
                return await client.post("/v1/perturbations", json=CELLS | {"background": True} | more, headers=headers)

            first, again = await post("ana", "k1"), await post("ana", "k1")
            assert (first.status_code, again.status_code) == (202, 202)
            assert again.json()["id"] == first.json()["id"]
            assert again.headers["location"] == first.headers["location"]
            assert local.model.planned == 1  # nothing is planned for a repeat
            other = await post("ana", "k1", top=3)
            assert (other.status_code, other.json()["error"]["code"]) == (422, "key_reused")
            counts = CELLS["cells"][0] | {"counts": [1, 2, 4]}
            assert (await post("ana", "k1", cells=[counts])).status_code == 422
            both = await asyncio.gather(post("ana", "k2"), post("ana", "k2"))
            seen = [answer.json()["id"] for answer in (first, *both, await post("bo", "k1"), await post("ana", None))]
            assert seen[1] == seen[2]
            assert len(set(seen)) == 4
            while (await client.get(f"/v1/jobs/{seen[0]}", headers=of["ana"])).json()["state"] != "done":
                await asyncio.sleep(0.001)
            assert (await post("ana", "k1")).json()["state"] == "done"
            await client.delete(f"/v1/jobs/{seen[0]}", headers=of["ana"])
            assert (await post("ana", "k1")).json()["id"] not in seen  # the key is forgotten with its job
            assert (await post("ana", 256 * "k")).status_code == 422

    asyncio.run(ask())


class Lost:
    """Stands where the jobs' actor did."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def died(*given: object) -> None:
            raise ActorDiedError

        return died


def test_a_lost_actor_of_jobs_is_no_error_of_the_server() -> None:
    async def ask() -> list[httpx2.Response]:
        async with Local(jobs=Lost()) as client:
            begun = client.post("/v1/perturbations", json=CELLS | {"background": True})
            return [await client.get("/v1/jobs"), await client.delete("/v1/jobs/7"), await begun]

    for answer in asyncio.run(ask()):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
        assert int(answer.headers["retry-after"]) >= 1


async def at_once(*asked: object) -> Tabled:
    """Six perturbations of a cell, without a job."""
    plan = plan_of(1, 3)
    found = await measured(plan)
    return Tabled(found.stamp, plan.notes, found.table, found.counts, plan.tokens)


def test_what_needs_no_job_is_answered_without_those_who_keep_them() -> None:
    async def ask() -> int:
        local = Local(jobs=Lost())
        async with local as client:
            local.model.perturb = at_once  # type: ignore[method-assign]
            return (await client.post("/v1/perturbations", json=CELLS, headers={"idempotency-key": "k"})).status_code

    assert asyncio.run(ask()) == 200


def test_rows_that_top_cuts_are_counted() -> None:
    """Six perturbations of a cell, in an answer at once and in that of a job."""

    async def ask() -> None:
        local = Local()
        async with local as client:
            local.model.perturb = at_once  # type: ignore[method-assign]
            for top, more in ((4, {"rows left out": 2}), (6, {}), (None, {})):
                asked = CELLS | {"top": top}
                answer = (await client.post("/v1/perturbations", json=asked)).json()
                assert answer["counts"] == {"perturbations": 6} | more
                assert len(answer["table"]["cell_id"]) == 6 - sum(more.values())
            accept = {"accept": wire.ARROW_STREAM}
            binary = await client.post("/v1/perturbations", json=CELLS | {"top": 1}, headers=accept)
            assert wire.unpack_table(binary.content)[1]["counts"] == {"perturbations": 6, "rows left out": 5}

    asyncio.run(ask())


def test_the_audit_names_what_was_asked_and_refused() -> None:
    told: list[tuple[str, str, int]] = []

    class Ear(OpenGate):
        def record(self, caller: Caller | None, asked: Asked) -> None:
            told.append((asked.method, asked.path, asked.status))

    async def run() -> None:
        server = Local(gate=Ear())
        async with server as client:
            await client.get("/v1/nowhere")
            await client.head("/v1/models")
            server.service.flight.draining = True
            await client.post("/v1/embeddings", json=CELLS)
            await client.get("/v1/jobs/abc")

    asyncio.run(run())
    assert told == [
        ("GET", "other", 404),
        ("HEAD", "/v1/models", 200),
        ("POST", "/v1/embeddings", 503),
        ("GET", "/v1/jobs/{job_id}", 503),
    ]
