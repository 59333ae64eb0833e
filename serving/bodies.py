"""From the body of an HTTP request to cells and what is asked of them: JSON, the binary form, or an .h5ad."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from cellray.api.schema import CellsRequest
from cellray.api.wire import (
    ARROW_STREAM,
    CELLS,
    CODECS,
    H5AD,
    JSON,
    CellTable,
    cells_of,
    decompress,
    unpack_cells,
)
from serving.config import Limits
from serving.faults import HttpError, too_large
from serving.upload import Uploads, read_upload

RequestT = TypeVar("RequestT", bound=CellsRequest)
T = TypeVar("T")

_MB = 1e6
_HDF5 = b"\x89HDF\r\n\x1a\n"
"""First bytes of an HDF5 file."""
_NO_CELL: Mapping[str, Any] = {"cells": [{"id": "", "genes": [], "counts": []}]}
"""Stands for cells that travel beside the parameters, while these are checked."""
_LISTS = ("anchor", "alternatives", "perturb")
_OF_FILES = ("matrix", "gene_ids")


def media_type(request: Request) -> str:
    """Return the media type of a body.

    Raises
    ------
    HttpError
        415: it is none of those there are.
    """
    kind = request.headers.get("content-type", JSON).split(";", 1)[0].strip().lower()
    if kind not in (JSON, CELLS, H5AD):
        message = f"Content-Type must be {JSON}, {CELLS} or {H5AD}; found {kind[:100]!r}"
        raise HttpError(415, "unsupported_media_type", message)
    return kind


def wants_binary(request: Request) -> bool:
    """Tell whether the answer shall be binary.

    Raises
    ------
    HttpError
        406: neither JSON nor the binary form is acceptable.
    """
    accepted = list(filter(None, map(_acceptable, request.headers.get("accept", "*/*").split(","))))
    if ARROW_STREAM in accepted:
        return True
    if not {JSON, "*/*", "application/*"} & set(accepted):
        raise HttpError(406, "not_acceptable", f"Accept must name {JSON} or {ARROW_STREAM}")
    return False


class Parsers:
    """Threads in which bodies are taken apart, so that the event loop goes on; few, since a body becomes much more."""

    def __init__(self, threads: int = 2) -> None:
        self._threads = ThreadPoolExecutor(threads, "bodies")

    async def run(self, function: Callable[[], T]) -> T:
        """Return what a function returns."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _acceptable(word: str) -> str | None:
    """Return a media type of an Accept header, unless it has no weight."""
    kind, *parameters = (each.strip().lower() for each in word.split(";"))
    weight = next((each[2:] for each in parameters if each.startswith("q=")), "1")
    try:
        return (kind or "*/*") if float(weight) > 0 else None
    except ValueError:
        return kind


async def read_body(request: Request, kind: str, limits: Limits, parsers: Parsers) -> bytes:
    """Return the body, without its Content-Encoding; no more of it is held than the limit lets.

    Raises
    ------
    HttpError
        413: it is too large, told before it is read where it says its length; 408: it does not come.
    InputError
        It is damaged.
    """
    limit, most_mb = "body_mb", limits.body_mb
    if kind == JSON and limits.json_mb < most_mb:
        limit, most_mb = "json_mb", limits.json_mb
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *CODECS):
        message = f"Content-Encoding must be {' or '.join(CODECS)}, or absent; found {encoding[:100]!r}"
        raise HttpError(415, "unsupported_encoding", message)
    try:
        async with asyncio.timeout(limits.body_s):
            body = await _received(request, limit, most_mb)
    except TimeoutError:
        message = f"the body did not come within {limits.body_s:g} s"
        raise HttpError(408, "body_timeout", message, ("body_s", limits.body_s)) from None
    if encoding == "identity":
        return body
    plain = await parsers.run(partial(decompress, body, encoding, int(most_mb * _MB)))
    if plain is None:
        raise too_large(limit, most_mb, "more when decompressed", 413)
    return plain


async def _received(request: Request, limit: str, most_mb: float) -> bytes:
    """Return the body as it comes."""
    most = int(most_mb * _MB)
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > most:
        raise too_large(limit, most_mb, f"{int(told) / _MB:,.1f} MB", 413)
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            raise too_large(limit, most_mb, "more", 413)
        pieces.append(piece)
    return b"".join(pieces)


async def parse(
    model: type[RequestT],
    request: Request,
    kind: str,
    body: bytes,
    limits: Limits,
    uploads: Uploads,
    parsers: Parsers,
) -> tuple[CellTable, RequestT]:
    """Return the cells of a request and its other fields (with an empty cell in place of those that travel beside).

    Raises
    ------
    ValidationError, InputError, TooMuchError, HttpError
        It makes no sense, or is more than the limits let.
    """
    if kind == JSON and body.startswith(_HDF5):
        raise HttpError(415, "unsupported_media_type", f"this is an HDF5 file: send it with Content-Type: {H5AD}")
    if kind == JSON:
        cells, asked = await parsers.run(partial(_of_json, model, body, limits))
    elif kind == CELLS:
        cells, asked = await parsers.run(partial(_of_binary, model, body, limits))
    else:
        values = dict(request.query_params)
        options = {name: values.pop(name, None) for name in _OF_FILES}
        asked = model.model_validate(_merged(_typed(values), _NO_CELL), strict=False)
        cells = (await uploads.read(body, options["matrix"] or "X", options["gene_ids"], read_upload)).cells
    if len(cells.genes) > limits.genes_per_request:
        raise too_large("genes_per_request", limits.genes_per_request, f"{len(cells.genes):,} names of genes")
    named = request.query_params.get("model", asked.model)
    if named != asked.model:
        raise HttpError(422, "invalid_request", "model in the address and in the body must be one")
    return cells, asked


def _of_json(model: type[RequestT], body: bytes, limits: Limits) -> tuple[CellTable, RequestT]:
    asked = model.model_validate_json(body)
    lengths = [len(cell.counts) for cell in asked.cells]
    _check_size(len(lengths), max(lengths), sum(lengths), limits)
    return cells_of(asked), asked


def _of_binary(model: type[RequestT], body: bytes, limits: Limits) -> tuple[CellTable, RequestT]:
    cells, parameters = unpack_cells(body)
    asked = model.model_validate(_merged(parameters, _NO_CELL))
    _check_size(len(cells), cells.longest, len(cells.counts), limits)
    return cells, asked


def _check_size(cells: int, longest: int, counts: int, limits: Limits) -> None:
    if cells == 0:
        raise HttpError(422, "invalid_request", "cells: there must be one at least")
    if cells > limits.cells_per_request:
        raise too_large("cells_per_request", limits.cells_per_request, f"{cells:,} cells")
    if longest > limits.genes_per_cell:
        raise too_large("genes_per_cell", limits.genes_per_cell, f"{longest:,} counts in a cell")
    if counts > limits.counts_per_request:
        raise too_large("counts_per_request", limits.counts_per_request, f"{counts:,} counts")


def _merged(parameters: Mapping[str, Any], cells: Mapping[str, Any]) -> dict[str, Any]:
    """Add the stand-in for cells; parameters may not bring their own."""
    if wrong := {"cells", "genes"} & set(parameters):
        raise HttpError(422, "invalid_request", f"{min(wrong)}: cells and genes are in the body's table")
    return {**parameters, **cells}


def _typed(values: Mapping[str, str]) -> dict[str, Any]:
    """Split what is a list, and read null; the rest is pydantic's."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name in _LISTS and value != "all":
            made[name] = [item.strip() for item in value.split(",") if item.strip()]
        else:
            made[name] = None if value == "null" else value
    return made
