"""The client for programs that run an event loop; `cellray.client.Client` is the same for all others."""

import math
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from cellray.api import wire
from cellray.api.schema import (
    CellsRequest,
    EmbeddingRequest,
    JobStatus,
    ModelInfo,
    ModelsResponse,
    PerturbationRequest,
    PredictionRequest,
)
from cellray.client.cells import CellSource, Chunk, most_of
from cellray.client.errors import RefusedError
from cellray.client.jobs import job_result
from cellray.client.options import ClientOptions, Perturbation, Reading, check_names
from cellray.client.progress import Meter
from cellray.client.results import Embedded, effect_frame, embedded, gene_frame, prediction_frame
from cellray.client.sending import Answered, ask_all
from cellray.client.transport import Transport, binary_body, parsed
from cellray.errors import InputError, said
from cellray.retries import RetryPolicy

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

ResultT = TypeVar("ResultT")

_MOST_CELLS = 64
"""Cells of a request for embeddings: enough to keep a model busy, few enough to be one of many."""
_GENE_ANSWER_BYTES = 32e6
_FORBIDDEN = 403
_JOBS_IN_FLIGHT = 2


class AsyncClient:
    """Asks a server of models.

    Parameters
    ----------
    url
        As `http://127.0.0.1:8000`.
    key
        API key; None: the environment variable `CELLRAY_API_KEY`, or none.
    **options
        See `ClientOptions`.

    Raises
    ------
    InputError
        An option makes no sense.
    """

    def __init__(self, url: str, key: str | None = None, **options: Unpack[ClientOptions]) -> None:
        check_names(options, ClientOptions)
        policy = RetryPolicy(attempts=options.get("attempts", 6))
        patience_s, ca = options.get("patience_s", 300.0), options.get("ca")
        self._transport = Transport(url, key, options.get("timeout_s", 300.0), policy, patience_s, ca)
        self._in_flight = max(1, options.get("in_flight", 4))
        self._encoding = options.get("compression", None if self._transport.is_local else "zstd")
        self._known: dict[str, ModelInfo] = {}

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._transport.url!r})"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def models(self) -> list[ModelInfo]:
        """Return the models that are served, what they can be asked, and the limits."""
        answer = await self._transport.send("GET", "/v1/models")
        try:
            found = ModelsResponse.model_validate(parsed(answer), extra="ignore", strict=False).models
        except ValidationError:
            message = "the answer does not list models; is this the address of a cellray server?"
            raise RefusedError(str(answer.url), answer.status_code, "unexpected_answer", message) from None
        self._known |= {info.name: info for info in found}
        return found

    async def embed(
        self,
        adata: "AnnData",
        model: str = "default",
        pooling: Literal["cell", "cls"] = "cell",
        layer: int = -1,
        **reading: Unpack[Reading],
    ) -> NDArray[np.float32]:
        """Return embeddings of cells: shape (cells, width), NaN for cells without a gene that the model knows.

        Parameters
        ----------
        adata
            Cells with raw counts, in memory or backed.
        model
            One of `models()`.
        pooling
            `cell`: mean over genes; `cls`: the `<cls>` row of V2 models.
        layer
            Hidden state: 0 = last, -1 = second to last, ...
        **reading
            See `Reading`.

        Raises
        ------
        InputError
            The AnnData, or (as `RefusedError`, with the server's words) the request makes no sense.
        UnavailableError
            The server could not be reached, or was busy for too long.
        """
        return (await self.embed_with_notes(adata, model, pooling, layer, **reading)).embedding_nd

    async def embed_with_notes(
        self,
        adata: "AnnData",
        model: str = "default",
        pooling: Literal["cell", "cls"] = "cell",
        layer: int = -1,
        **reading: Unpack[Reading],
    ) -> Embedded:
        """Return what `embed` does, with what became of each cell and which model answered."""
        if pooling not in ("cell", "cls"):
            raise InputError("pooling", "cell or cls", repr(pooling), "For embeddings of genes: embed_genes.")
        asked = _checked(EmbeddingRequest, {"model": model, "pooling": pooling, "layer": layer})

        async def ask(chunk: Chunk, told: Callable[[float], None]) -> Answered[NDArray[np.float32]]:
            answer = await self._post("/v1/embeddings", chunk, asked)
            _, embedding_nd, about = wire.unpack_embeddings(binary_body(answer))
            return Answered(chunk.start, chunk.start + len(chunk), embedding_nd, about)

        source = _source(adata, reading)
        answers = await self._ask(source, model, ask, reading, _MOST_CELLS, self._in_flight)
        width = self._known[model].width if model in self._known else 0
        return embedded(answers, source.cell_ids, width)

    async def embed_genes(
        self, adata: "AnnData", model: str = "default", layer: int = -1, **reading: Unpack[Reading]
    ) -> "pd.DataFrame":
        """Return embeddings of the genes of cells: a row for each (cell_id, gene), in rank order; columns 0, 1, ..."""
        asked = _checked(EmbeddingRequest, {"model": model, "pooling": "gene", "layer": layer})
        info = await self._info(model)
        most = _MOST_CELLS if info is None else _fitting_answer(info)
        ask = self._tables("/v1/embeddings", asked)
        source = _source(adata, reading)
        answers = await self._ask(source, model, ask, reading, most, self._in_flight)
        return gene_frame(answers, source.cell_ids)

    async def predict(self, adata: "AnnData", model: str = "default", **reading: Unpack[Reading]) -> "pd.DataFrame":
        """Return what a fine-tuned model tells of cells: a row for each, by name, in their order."""
        asked, source = _checked(PredictionRequest, {"model": model}), _source(adata, reading)
        ask = self._tables("/v1/predictions", asked)
        answers = await self._ask(source, model, ask, reading, _MOST_CELLS, self._in_flight)
        return prediction_frame(answers, source.cell_ids)

    async def perturb(self, adata: "AnnData", model: str = "default", **ask: Unpack[Perturbation]) -> "pd.DataFrame":
        """Return the effects of perturbing genes of cells in silico, the strongest of each cell first.

        All rows, unless `top` says how many of each cell; `.attrs["counts"]` then says how many were left out. What
        takes long is a job of the server, which is waited for; giving up waiting cancels it.

        Parameters
        ----------
        adata
            Cells with raw counts, in memory or backed.
        model
            One of `models()`.
        **ask
            See `Perturbation`.

        Raises
        ------
        InputError, UnavailableError
            See `embed`.
        JobError
            A job failed.
        """
        given: dict[str, Any] = {name: value for name, value in ask.items() if name not in Reading.__annotations__}
        source = _source(adata, ask, Perturbation)
        source.check_names()
        asked = _checked(PerturbationRequest, {"model": model, "top": None, **given})
        reply = self._tables("/v1/perturbations", asked, once=True)
        info = await self._info(model)
        most = _MOST_CELLS if info is None else info.limits.cells_per_request
        answers = await self._ask(source, model, reply, ask, most, min(_JOBS_IN_FLIGHT, self._in_flight))
        return effect_frame(answers, source.cell_ids)

    def _tables(
        self, path: str, asked: dict[str, Any], *, once: bool = False
    ) -> Callable[[Chunk, Callable[[float], None]], Awaitable[Answered[pa.Table]]]:
        """Return what asks about a chunk and gets a table, at once or by a job; `once`: by no second one."""

        async def ask(chunk: Chunk, told: Callable[[float], None]) -> Answered[pa.Table]:
            key = {"idempotency-key": uuid.uuid4().hex} if once else {}
            answer = await self._post(path, chunk, asked, key)
            if answer.status_code == _ACCEPTED:
                answer = await job_result(
                    self._transport, JobStatus.model_validate(parsed(answer), extra="ignore"), told
                )
            table, about = wire.unpack_table(binary_body(answer))
            return Answered(chunk.start, chunk.start + len(chunk), table, about)

        return ask

    async def _ask(
        self,
        source: CellSource,
        model: str,
        ask: Callable[[Chunk, Callable[[float], None]], Awaitable[Answered[ResultT]]],
        reading: Reading,
        most_cells: int,
        in_flight: int,
    ) -> list[Answered[ResultT]]:
        """Send all cells in pieces that the server takes, and show how far it is."""
        info = await self._info(model)
        most = most_of(None if info is None else info.limits, most_cells)
        with Meter(len(source), reading.get("progress")) as meter:

            async def ask_and_tell(chunk: Chunk) -> Answered[ResultT]:
                answer = await ask(chunk, lambda share: meter.told(chunk.start, share * len(chunk)))
                meter.told(chunk.start, len(chunk))
                return answer

            return await ask_all(source.chunks(most), source.rows, ask_and_tell, in_flight)

    async def _post(self, path: str, chunk: Chunk, asked: dict[str, Any], more: Mapping[str, str] = {}) -> Any:  # noqa: ANN401  # httpx2.Response
        body = wire.pack_cells(chunk.table, asked)
        headers = {"content-type": wire.CELLS, "accept": wire.ARROW_STREAM, **more}
        if self._encoding is not None:
            body, headers["content-encoding"] = wire.compress(body, self._encoding), self._encoding
        return await self._transport.send("POST", f"{path}?model={asked['model']}", body, headers)

    async def _info(self, model: str) -> ModelInfo | None:
        """Return what the server says of a model; None where it does not tell or the model still starts."""
        if model not in self._known:
            try:
                await self.models()
            except RefusedError as error:
                if error.status != _FORBIDDEN:
                    raise
        return self._known.get(model)


_ACCEPTED = 202


def _fitting_answer(info: ModelInfo) -> int:
    """Return of how many cells a request asks embeddings of genes: the answer is neither refused nor huge."""
    most_bytes = min(_GENE_ANSWER_BYTES, 1e6 * (info.limits.response_mb or math.inf))
    return min(_MOST_CELLS, max(1, int(most_bytes / (4 * info.width * info.input_size))))


def _source(adata: "AnnData", reading: Reading, options: type = Reading) -> CellSource:
    check_names(reading, options)
    return CellSource(adata, reading.get("matrix", "X"), reading.get("gene_ids"))


def _checked(kind: type[CellsRequest], values: dict[str, Any]) -> dict[str, Any]:
    """Return a request's fields besides the cells, checked before anything is sent."""
    no_cell = {"id": "", "genes": [], "counts": []}
    try:
        return kind.model_validate({**values, "cells": [no_cell]}).model_dump(exclude={"cells", "genes"})
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {said(each)}" for each in error.errors())
        raise InputError("the request", "every option must be known and valid", told, "Correct it.") from None
