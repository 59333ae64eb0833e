"""The OpenAPI description of bodies that are parsed by hand: their models, the binary form, files, and errors."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from cellray.api.schema import EmbeddingRequest, ErrorBody, PerturbationRequest, PredictionRequest
from cellray.api.wire import ARROW_STREAM, CELLS, H5AD, JSON

_REFERENCE = "#/components/schemas/{model}"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_TOLD = {
    401: "no valid key",
    403: "the key lacks the scope",
    404: "no such model or job",
    406: "no form of answer that Accept names",
    409: "the job is not done",
    413: "the body is too large; the error names the limit",
    415: "an unknown Content-Type",
    422: "the request makes no sense or breaks a limit, which the error names",
    429: "too much to do; see Retry-After",
    503: "a replica was lost and could not be replaced in time",
    504: "not answered in time",
}
_OF_BODIES = (401, 403, 404, 406, 413, 415, 422, 429, 503, 504)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of error answers."""
    return {status: {"model": ErrorBody, "description": _TOLD[status]} for status in statuses}


def body_of(
    request: type[BaseModel], response: type[BaseModel], more: Mapping[int, type[BaseModel]] | None = None
) -> dict[str, Any]:
    """Return what a route is told of its bodies.

    Parameters
    ----------
    request, response
        Models of the JSON forms.
    more
        Models of further answers by their status.
    """
    reference = {"schema": {"$ref": _REFERENCE.format(model=request.__name__)}}
    content = {JSON: reference, CELLS: _BINARY, H5AD: _BINARY}
    own = {200: {"model": response, "content": {ARROW_STREAM: _BINARY}}}
    further = {status: {"model": model} for status, model in (more or {}).items()}
    return {
        "responses": {**own, **further, **errors(*_OF_BODIES)},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def describe(app: FastAPI) -> None:
    """Let an application describe the bodies that FastAPI does not parse, too."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = made["components"]["schemas"]
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}]
            for model in (EmbeddingRequest, PredictionRequest, PerturbationRequest):
                own = model.model_json_schema(ref_template=_REFERENCE)
                schemas |= own.pop("$defs", {})
                schemas[model.__name__] = own
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it
