"""A small HTTP server that speaks the server's schema and can be told to fail: what embeds here is plain arithmetic."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response

from cellray.api import wire
from cellray.api.schema import (
    CellNote,
    EmbeddingRequest,
    JobStatus,
    LimitsInfo,
    ModelInfo,
    ModelsResponse,
    ModelStamp,
    PerturbationRequest,
)

KNOWN = "G"
"""Genes whose id begins so are known to the stand-in's model."""
NO_CELL = {"cells": [{"id": "", "genes": [], "counts": []}]}

Fault = Callable[[], Awaitable[Response | None]]


@dataclass
class Standin:
    """What the stand-in was asked, and what shall go wrong.

    Attributes
    ----------
    faults
        For each coming request with a body, in order: an answer instead of the right one, or None.
    limits
        What GET /v1/models tells.
    refuses_above
        Cells a request may really hold; None: no limit.
    together
        So many requests with a body must be there before the first of them is answered.
    counts
        What answers about perturbations count besides the cells.
    digests
        Versions of the model, one for each request with a body; the last one stays.
    """

    url: str = ""
    faults: list[Fault | None] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    refuses_above: int | None = None
    digests: list[str] = field(default_factory=lambda: ["d1"])
    job_steps: list[JobStatus] = field(default_factory=list)
    bodies: list[wire.CellTable] = field(default_factory=list)
    parameters: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    busy: int = 0
    most_busy: int = 0
    together: int = 0
    delay_s: float = 0.0

    def info(self) -> ModelInfo:
        limits = {
            "body_mb": 64.0,
            "cells_per_request": 1024,
            "genes_per_cell": 65_536,
            "perturbation_tokens": 1000,
            "job_tokens": 10_000,
            "request_timeout_s": 30.0,
        }
        return ModelInfo(
            name="default",
            uri="somewhere",
            digest="d1",
            vocabulary_digest="v",
            layers=2,
            width=3,
            input_size=16,
            genes=30,
            poolings=["cell"],
            heads=[],
            states=[],
            limits=LimitsInfo(**(limits | self.limits)),  # type: ignore[arg-type]
        )


def error(status: int, code: str = "busy", headers: dict[str, str] | None = None, **more: object) -> Response:
    body = json.dumps({"error": {"code": code, "message": f"it is {code}", "later": 1, **more}})
    return Response(body, status, headers, media_type=wire.JSON)


def failing(status: int, headers: dict[str, str] | None = None, **more: Any) -> Fault:  # noqa: ANN401
    async def fault() -> Response:
        return error(status, headers=headers, **more)

    return fault


def embedding_of(cells: wire.CellTable) -> np.ndarray:
    """Return the sum of counts, the number of genes and the largest count of each cell; NaN if it knows none."""
    rows = []
    for start, stop in zip(cells.indptr[:-1], cells.indptr[1:], strict=True):
        counts = [
            count
            for count, column in zip(cells.counts[start:stop], cells.columns[start:stop], strict=True)
            if cells.genes[column].startswith(KNOWN)
        ]
        rows.append([sum(counts), len(counts), max(counts)] if counts else 3 * [np.nan])
    return np.array(rows, np.float32)


def about(state: Standin, cells: wire.CellTable, embedding_nd: np.ndarray) -> dict[str, Any]:
    digest = state.digests.pop(0) if len(state.digests) > 1 else state.digests[0]
    stamp = ModelStamp(name="default", uri="somewhere", digest=digest, vocabulary_digest="v")
    notes = [
        CellNote(id=name, genes_given=9, genes_mapped=0 if np.isnan(row[0]) else int(row[1]), tokens=5, truncated=False)
        for name, row in zip(cells.ids, embedding_nd, strict=True)
    ]
    return {"model": stamp.model_dump(), "notes": [note.model_dump() for note in notes], "later": "a new field"}


def effects(state: Standin) -> Response:
    cells = state.bodies[-1]
    table = pa.table({"cell_id": pa.array(cells.ids), "similarity": pa.array([0.5] * len(cells), pa.float32())})
    body = wire.pack_table(
        table, {**about(state, cells, embedding_of(cells)), "counts": {"perturbations": len(cells)} | state.counts}
    )
    return Response(body, media_type=wire.ARROW_STREAM)


def add_jobs(app: FastAPI, state: Standin) -> None:
    @app.get("/v1/jobs/{job_id}")
    async def job(job_id: str) -> JobStatus:
        return state.job_steps.pop(0) if len(state.job_steps) > 1 else state.job_steps[0]

    @app.get("/v1/jobs/{job_id}/result")
    async def result(job_id: str) -> Response:
        return effects(state)

    @app.delete("/v1/jobs/{job_id}")
    async def cancel(job_id: str) -> JobStatus:
        return JobStatus(id=job_id, state="cancelled", progress=0, done=0, total=1)


class Watch:
    """Notes what is asked, and how much of it at a time."""

    def __init__(self, app: Any, state: Standin) -> None:  # noqa: ANN401
        self._app, self._state = app, state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        state = self._state
        state.requests.append((scope["method"], scope["path"]))
        state.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        state.at.append(time.monotonic())
        state.busy += 1
        state.most_busy = max(state.most_busy, state.busy)
        try:
            if scope["method"] == "POST":
                await self._until(lambda: state.most_busy >= state.together)
            await asyncio.sleep(state.delay_s)
            await self._app(scope, receive, send)
        finally:
            state.busy -= 1

    @staticmethod
    async def _until(true: Callable[[], bool], seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.005)


def make_app(state: Standin) -> FastAPI:
    app = FastAPI()
    app.add_middleware(Watch, state=state)
    add_jobs(app, state)

    async def taken(request: Request) -> tuple[wire.CellTable, dict[str, Any]] | Response:
        body = await request.body()
        fault = state.faults.pop(0) if state.faults else None
        instead = None if fault is None else await fault()
        if instead is not None:
            return instead
        if request.headers["content-type"] != wire.CELLS:
            return error(415, "unsupported_media_type")
        encoding = request.headers.get("content-encoding")
        if encoding:
            body = wire.decompress(body, encoding, 1 << 30) or b""
        cells, parameters = wire.unpack_cells(body)
        if state.refuses_above is not None and len(cells) > state.refuses_above:
            limit = {"name": "cells_per_request", "value": float(state.refuses_above)}
            return error(422, "limit_exceeded", limit=limit)
        state.bodies.append(cells)
        state.parameters.append(parameters)
        return cells, parameters

    @app.get("/v1/models")
    async def models() -> Response:
        body = ModelsResponse(models=[state.info()]).model_dump()
        body["models"][0]["later"] = "a new field"
        return Response(json.dumps(body), media_type=wire.JSON)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        found = await taken(request)
        if isinstance(found, Response):
            return found
        cells, parameters = found
        EmbeddingRequest.model_validate({**parameters, **NO_CELL})
        embedding_nd = embedding_of(cells)
        body = wire.pack_embeddings(cells.ids, embedding_nd, about(state, cells, embedding_nd))
        return Response(body, media_type=wire.ARROW_STREAM)

    @app.post("/v1/perturbations")
    async def perturbations(request: Request) -> Response:
        found = await taken(request)
        if isinstance(found, Response):
            return found
        PerturbationRequest.model_validate({**found[1], **NO_CELL})
        if state.job_steps:
            return Response(state.job_steps.pop(0).model_dump_json(), 202, media_type=wire.JSON)
        return effects(state)

    return app


@contextmanager
def standin(**tls: str) -> Iterator[Standin]:
    """Run a stand-in on loopback until the block is left."""
    state = Standin()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        state.url = f"{'https' if tls else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(
            uvicorn.Config(make_app(state), log_config=None, lifespan="off", **tls)  # type: ignore[arg-type]
        )
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield state
        finally:
            server.should_exit = True
            thread.join(60)  # before its socket is closed
