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
    408: "the body did not come in time",
    409: "the job is not done",
    410: "the result was dropped to make room for later ones",
    413: "the body is too large; the error names the limit",
    415: "an unknown Content-Type or Content-Encoding",
    422: "the request makes no sense or breaks a limit, which the error names",
    429: "too much to do; see Retry-After",
    503: "a replica was lost and could not be replaced in time",
    504: "not answered in time",
}
_OF_BODIES = (401, 403, 404, 406, 408, 413, 415, 422, 429, 503, 504)
OF_KEYS = (401, 403, 429)
"""What any endpoint behind a key may answer."""
_OPEN = ("/healthz", "/readyz")
_OF_FILES = {
    "matrix": "where an .h5ad has its raw counts: X, raw or layers/NAME",
    "gene_ids": "var column of an .h5ad with the gene ids, or index",
}


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
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "parameters": _parameters(request)},
    }


def _parameters(request: type[BaseModel]) -> list[dict[str, Any]]:
    """Return what may stand in the address: the model always, all else where the body is an .h5ad."""
    own = request.model_json_schema(ref_template=_REFERENCE)["properties"]
    text = {"type": "string"}
    told = {name: (text, f"{about}; with {H5AD} only") for name, about in _OF_FILES.items()}
    for name, schema in own.items():
        if name not in ("cells", "genes", "model"):
            told[name] = (schema, f"{schema.get('description', name)}; with {H5AD} only (lists: joined by commas)")
    told["model"] = (text, "name of the model: tells the server before the body which queue this is for")
    return [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": about}
        for name, (schema, about) in told.items()
    ]


def describe(app: FastAPI) -> None:
    """Let an application describe the bodies that FastAPI does not parse, too."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = made["components"]["schemas"]
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}]
            for operation in (each for path in _OPEN for each in made["paths"][path].values()):
                operation["security"] = []
            for model in (EmbeddingRequest, PredictionRequest, PerturbationRequest):
                own = model.model_json_schema(ref_template=_REFERENCE)
                schemas |= own.pop("$defs", {})
                schemas[model.__name__] = own
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it
