"""The client for scripts and notebooks: `AsyncClient` in an event loop of its own, in a thread of its own."""

import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack

import anyio.from_thread
import numpy as np
from numpy.typing import NDArray

from cellray.api.schema import ModelInfo
from cellray.client.asynchronous import AsyncClient
from cellray.client.options import ClientOptions, Perturbation, Reading
from cellray.client.results import Embedded

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

ResultT = TypeVar("ResultT")

_LAST_WORD_S = 6.0
"""Longest that an interrupted call may take to cancel its job [s]."""


class Client:
    """Asks a server of models; each method is that of `AsyncClient`, waited for.

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
        self._client = AsyncClient(url, key, **options)
        self._stack = ExitStack()
        self._portal: anyio.from_thread.BlockingPortal | None = None
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, self._stack.close)  # at exit, too: before threads are frozen

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._client._transport.url!r})"

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._finalizer()

    def models(self) -> list[ModelInfo]:
        """Return the models that are served, what they can be asked, and the limits."""
        return self._run(self._client.models)

    def embed(
        self,
        adata: "AnnData",
        model: str = "default",
        pooling: Literal["cell", "cls"] = "cell",
        layer: int = -1,
        **reading: Unpack[Reading],
    ) -> NDArray[np.float32]:
        """Return embeddings of cells: shape (cells, width), NaN for cells without a gene that the model knows."""
        return self._run(partial(self._client.embed, adata, model, pooling, layer, **reading))

    def embed_with_notes(
        self,
        adata: "AnnData",
        model: str = "default",
        pooling: Literal["cell", "cls"] = "cell",
        layer: int = -1,
        **reading: Unpack[Reading],
    ) -> Embedded:
        """Return what `embed` does, with what became of each cell and which model answered."""
        return self._run(partial(self._client.embed_with_notes, adata, model, pooling, layer, **reading))

    def embed_genes(
        self, adata: "AnnData", model: str = "default", layer: int = -1, **reading: Unpack[Reading]
    ) -> "pd.DataFrame":
        """Return embeddings of the genes of cells: a row for each (cell_id, gene), in rank order."""
        return self._run(partial(self._client.embed_genes, adata, model, layer, **reading))

    def predict(self, adata: "AnnData", model: str = "default", **reading: Unpack[Reading]) -> "pd.DataFrame":
        """Return what a fine-tuned model tells of cells: a row for each, by name, in their order."""
        return self._run(partial(self._client.predict, adata, model, **reading))

    def perturb(self, adata: "AnnData", model: str = "default", **ask: Unpack[Perturbation]) -> "pd.DataFrame":
        """Return the effects of perturbing genes of cells in silico, the strongest of each cell first."""
        return self._run(partial(self._client.perturb, adata, model, **ask))

    def _run(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Wait for a call in the other thread; an interrupt here cancels it there, and lets it tell the server."""
        ended = threading.Event()

        async def tracked() -> ResultT:
            try:
                return await call()
            finally:
                ended.set()

        future: Future[ResultT] = self._started().start_task_soon(tracked)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(_LAST_WORD_S)
            raise

    def _started(self) -> Any:  # noqa: ANN401  # anyio's portal
        with self._lock:
            if not self._finalizer.alive:
                raise RuntimeError("this client is closed")
            if self._portal is None:
                portal = self._stack.enter_context(anyio.from_thread.start_blocking_portal(name="cellray-client"))
                self._stack.callback(portal.call, self._client.aclose)
                self._portal = portal
            return self._portal
