"""The endpoints: each takes a body, asks a model and gives the answer's form; what they share is `Service`'s."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import Response

from cellray import __version__
from cellray.api.schema import (
    CellsRequest,
    EmbeddingRequest,
    EmbeddingResponse,
    HealthResponse,
    JobStatus,
    ModelsResponse,
    PerturbationRequest,
    PerturbationResponse,
    PredictionRequest,
    PredictionResponse,
)
from cellray.api.wire import ARROW_STREAM, JSON, CellTable
from serving import tables
from serving.access import AccessError, Caller, Scope
from serving.answers import ScreenPlan
from serving.bodies import media_type, parse, read_body, wants_binary
from serving.cell_routes import add_cells
from serving.draining import Guard
from serving.faults import HttpError, too_large
from serving.heads import Heads
from serving.metrics import CONTENT_TYPE
from serving.openapi import OF_KEYS, body_of, describe, errors
from serving.page import add_page
from serving.repeating import HEADER, LONGEST, Repeat, repeat_of
from serving.security import SecurityHeaders
from serving.service import Service
from serving.watching import NOTES, watch

RequestT = TypeVar("RequestT", bound=CellsRequest)

_FLOAT_BYTES, _TEXT_BYTES = 4, 20
"""Of a number in an answer: in binary, in JSON."""
_KEY = "any text for this request alone: sent again with the same key, it begins no second job"
_ROW_BYTES = 80
"""Of an effect in a table, about."""


def make_app(service: Service) -> FastAPI:
    """Return the HTTP side of a server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        polling = asyncio.create_task(service.poll())
        yield
        polling.cancel()
        with suppress(asyncio.CancelledError):
            await polling
        service.gate.close()

    app = FastAPI(title="cellray", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, flight=service.flight)
    watch(app, service)
    app.add_middleware(SecurityHeaders, tls=service.config.tls_certificate is not None)
    app.add_middleware(Heads)
    _add_health(app, service)
    _add_models(app, service)
    _add_jobs(app, service)
    add_cells(app, service, _allow(service, "embed"))
    add_page(app)
    describe(app)
    return app


def _allow(service: Service, *scopes: Scope) -> Callable[[Request], Awaitable[Caller]]:
    """Return the dependency that lets callers of any of some scopes in, before the body is read; none: any key."""

    async def allow(request: Request) -> Caller:
        client = request.client.host if request.client else ""
        try:
            caller = service.gate.admit(request.headers, scopes, client)
        except AccessError as error:
            request.scope[NOTES]["caller"] = error.caller
            raise
        request.scope[NOTES]["caller"] = caller
        return caller

    return allow


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["server"])
    async def healthz() -> HealthResponse:
        """Tell that the process answers."""
        return HealthResponse(status="ok")

    @app.get("/readyz", tags=["server"], response_model=HealthResponse, responses={503: {"model": HealthResponse}})
    async def readyz() -> Response:
        """Tell whether all models answer."""
        answer = HealthResponse(status=service.state(), models=service.ready())
        return Response(answer.model_dump_json(), 200 if answer.status == "ok" else 503, media_type=JSON)

    @app.get("/metrics", tags=["server"], responses=errors(*OF_KEYS), dependencies=[Depends(_allow(service, "admin"))])
    async def metrics() -> Response:
        """Numbers of this process for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_models(app: FastAPI, service: Service) -> None:
    embed, perturb = _allow(service, "embed"), _allow(service, "perturb")

    @app.get("/v1/models", tags=["models"], responses=errors(*OF_KEYS), dependencies=[Depends(_allow(service))])
    async def models() -> ModelsResponse:
        """List the models, what they can be asked, and the limits."""
        return ModelsResponse(models=service.infos())

    @app.post(
        "/v1/embeddings", tags=["models"], dependencies=[Depends(embed)], **body_of(EmbeddingRequest, EmbeddingResponse)
    )
    async def embeddings(request: Request) -> Response:
        """Embed cells."""

        async def answer(cells: CellTable, asked: EmbeddingRequest, binary: bool) -> bytes:
            _check_answer(service, cells, asked, binary=binary)
            found = await service.ask(asked.model, "embed", cells, asked.pooling, asked.layer)
            service.metrics.computed(asked.model, len(cells), found.tokens)
            return await asyncio.to_thread(tables.embedding_body, found, asked.pooling, asked.layer, binary=binary)

        return await _answered(service, request, EmbeddingRequest, answer)

    @app.post(
        "/v1/predictions",
        tags=["models"],
        dependencies=[Depends(embed)],
        **body_of(PredictionRequest, PredictionResponse),
    )
    async def predictions(request: Request) -> Response:
        """Ask a fine-tuned model what it tells of cells."""

        async def answer(cells: CellTable, asked: PredictionRequest, binary: bool) -> bytes:
            found = await service.ask(asked.model, "predict", cells)
            service.metrics.computed(asked.model, len(cells), found.tokens)
            return await asyncio.to_thread(tables.prediction_body, found, binary=binary)

        return await _answered(service, request, PredictionRequest, answer)

    @app.post(
        "/v1/perturbations", tags=["models"], **body_of(PerturbationRequest, PerturbationResponse, {202: JobStatus})
    )
    async def perturbations(
        request: Request,
        caller: Annotated[Caller, Depends(perturb)],
        key: Annotated[str | None, Header(alias=HEADER, min_length=1, max_length=LONGEST, description=_KEY)] = None,
    ) -> Response:
        """Perturb genes of cells: the effects at once, or a job (202) if that takes long."""

        async def answer(cells: CellTable, asked: PerturbationRequest, binary: bool) -> bytes | Response:
            asked = asked.model_copy(update={"genes": None})
            repeat = None
            if key is not None and asked.background is not False:  # else there is no job that could be begun twice
                repeat = await asyncio.to_thread(repeat_of, key, cells, asked)
            known = None
            if repeat is not None and asked.background:  # what may need no job does not depend on who keeps them
                known = await service.ask_jobs("repeated", caller.name, repeat)
            if known is not None:
                return _begun(known)
            return await _perturbed(service, caller, cells, asked, repeat, binary=binary)

        return await _answered(service, request, PerturbationRequest, answer)


async def _perturbed(
    service: Service,
    caller: Caller,
    cells: CellTable,
    asked: PerturbationRequest,
    repeat: Repeat | None,
    *,
    binary: bool,
) -> bytes | Response:
    """Answer with effects, or with a job."""
    limits = service.config.limits
    if len(set(cells.ids)) < len(cells.ids):
        raise HttpError(422, "invalid_request", "cells: ids must differ, since effects are told by them")
    at_once = 0 if asked.background else limits.perturbation_tokens
    found = await service.ask(asked.model, "perturb", cells, asked, at_once, limits.job_tokens)
    if isinstance(found, ScreenPlan):
        if asked.background is False:
            limit = limits.perturbation_tokens
            raise too_large("perturbation_tokens", limit, f"{found.tokens:,} tokens, and background is false")
        rows = found.perturbations if asked.top is None else min(found.perturbations, asked.top * len(cells))
        if (size := rows * _ROW_BYTES / 1e6) > limits.response_mb:
            raise too_large("response_mb", limits.response_mb, f"about {size:,.0f} MB of effects; ask for `top` ones")
        return _begun(await service.ask_jobs("submit", found, caller.name, repeat))
    service.metrics.computed(asked.model, len(cells), found.tokens)
    ask = asked.model_dump(include={"goal", "top"})
    found = await asyncio.to_thread(tables.ranked, found, ask)
    return await asyncio.to_thread(tables.perturbation_body, found, binary=binary)


def _begun(status: JobStatus) -> Response:
    """Return the answer that a job was begun."""
    return Response(status.model_dump_json(), 202, {"location": f"/v1/jobs/{status.id}"}, JSON)


def _add_jobs(app: FastAPI, service: Service) -> None:
    Owner = Annotated[Caller, Depends(_allow(service, "perturb"))]  # noqa: N806  # a type
    Looker = Annotated[Caller, Depends(_allow(service, "perturb", "admin"))]  # noqa: N806

    def whose(caller: Caller) -> str | None:
        return None if caller.is_admin else caller.name

    @app.get("/v1/jobs", tags=["jobs"], responses=errors(*OF_KEYS, 503, 504))
    async def jobs(caller: Looker) -> list[JobStatus]:
        """List the caller's jobs, the oldest first; with the scope admin everybody's, with the names of their keys."""
        found: list[JobStatus] = await service.ask_jobs("all", whose(caller))
        return found

    @app.get("/v1/jobs/{job_id}", tags=["jobs"], responses=errors(*OF_KEYS, 404, 422, 503, 504))
    async def job(job_id: str, caller: Looker) -> JobStatus:
        """Tell how far a job is: one's own, with the scope admin anybody's."""
        found: JobStatus = await service.ask_jobs("status", job_id, whose(caller))
        return found

    @app.get(
        "/v1/jobs/{job_id}/result",
        tags=["jobs"],
        response_model=PerturbationResponse,
        responses=errors(*OF_KEYS, 404, 406, 409, 410, 422, 503, 504),
    )
    async def result(job_id: str, request: Request, caller: Owner) -> Response:
        """Return the result of one's own job that is done."""
        binary = wants_binary(request)
        found = await service.ask_jobs("result", job_id, caller.name)
        body = await asyncio.to_thread(tables.perturbation_body, found, binary=binary)
        return Response(body, media_type=ARROW_STREAM if binary else JSON)

    @app.delete("/v1/jobs/{job_id}", tags=["jobs"], responses=errors(*OF_KEYS, 404, 422, 503, 504))
    async def cancel(job_id: str, caller: Looker) -> JobStatus:
        """Cancel a job, or forget one that has ended: one's own, with the scope admin anybody's."""
        found: JobStatus = await service.ask_jobs("cancel", job_id, whose(caller))
        return found


async def _answered(
    service: Service,
    request: Request,
    model: type[RequestT],
    answer: Callable[[CellTable, RequestT, bool], Any],
) -> Response:
    """Take a body, let its cells into the queue of their model, and give the answer."""
    binary, kind = wants_binary(request), media_type(request)
    service.check_queue(request.query_params.get("model"))
    with service.bodies.take():
        body = await read_body(request, kind, service.config.limits, service.parsers)
        service.check_queue(request.query_params.get("model"))  # it may have filled up meanwhile
        cells, asked = await parse(model, request, kind, body, service.config.limits, service.uploads, service.parsers)
        del body
    queue = service.queue(asked.model)
    request.scope[NOTES] |= {"model": asked.model, "cells": len(cells)}
    with queue.enter(len(cells)):
        made = await answer(cells, asked.model_copy(update={"cells": []}), binary)
    return made if isinstance(made, Response) else Response(made, media_type=ARROW_STREAM if binary else JSON)


def _check_answer(service: Service, cells: CellTable, asked: EmbeddingRequest, *, binary: bool) -> None:
    """Refuse embeddings of genes that would not fit an answer."""
    info = next((each for each in service.infos() if each.name == asked.model), None)
    if asked.pooling != "gene" or info is None:
        return
    limit = service.config.limits.response_mb
    tokens = sum(min(int(n), info.input_size) for n in (cells.indptr[1:] - cells.indptr[:-1]))
    if (size := tokens * info.width * (_FLOAT_BYTES if binary else _TEXT_BYTES) / 1e6) > limit:
        raise too_large("response_mb", limit, f"embeddings of genes of {size:,.0f} MB")
