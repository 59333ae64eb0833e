"""Endpoints that give cells in the form that requests take: those of a file, or an example."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import Response

from cellray.api.schema import CellsResponse
from cellray.api.wire import H5AD, JSON
from serving.bodies import media_type, read_body
from serving.faults import HttpError, too_large
from serving.handover import Sample
from serving.openapi import errors
from serving.sample import cells_body, json_megabytes, read_sample
from serving.service import Service

_FILE = {"schema": {"type": "string", "format": "binary"}}


def add_cells(app: FastAPI, service: Service, allow: Callable[[Request], Awaitable[Any]]) -> None:
    """Add the endpoints to an application, for callers that `allow` lets in."""
    options: dict[str, Any] = {"tags": ["cells"], "dependencies": [Depends(allow)], "response_model": CellsResponse}

    @app.post(
        "/v1/cells",
        responses=errors(401, 403, 408, 413, 415, 422, 429),
        openapi_extra={"requestBody": {"required": True, "content": {H5AD: _FILE}}},
        **options,
    )
    async def cells(
        request: Request,
        matrix: str = "X",
        gene_ids: str | None = None,
        draw: Annotated[int, Query(ge=0, description="draw so many cells at random from a file that has more")] = 0,
    ) -> Response:
        """Read the cells of an .h5ad, with its obs columns; nothing is kept."""
        if media_type(request) != H5AD:
            raise HttpError(415, "unsupported_media_type", f"Content-Type must be {H5AD}")
        with service.bodies.take():
            body = await read_body(request, H5AD, service.config.limits, service.parsers)
            sample = await service.uploads.read(body, matrix, gene_ids, read_sample, draw)
        if sample.of > len(sample.cells):
            about = f"{len(sample.cells):,} of the {sample.of:,} cells of the file, drawn at random"
            sample = replace(sample, about=about)
        return await _answer(service, sample)

    @app.get("/v1/example", responses=errors(401, 403, 404, 422, 429, 503, 504), **options)
    async def example(model: str = "default") -> Response:
        """Give some cells to try a model with; `about` says what they are."""
        service.queue(model)
        return await _answer(service, await service.ask(model, "example"))


async def _answer(service: Service, sample: Sample) -> Response:
    limit = service.config.limits.response_mb
    if (size := json_megabytes(sample.cells)) > limit:
        raise too_large("response_mb", limit, f"cells of {size:,.0f} MB")
    return Response(await asyncio.to_thread(cells_body, sample), media_type=JSON)
