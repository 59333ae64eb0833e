"""Ask a server of models from Python: `Client(url, key).embed(adata)`. Needs no Ray and no torch."""

from cellray.client.asynchronous import AsyncClient
from cellray.client.errors import JobError, ModelChangedError, RefusedError, UnavailableError
from cellray.client.options import ClientOptions, Perturbation, Reading
from cellray.client.results import Embedded
from cellray.client.synchronous import Client

__all__ = [
    "AsyncClient",
    "Client",
    "ClientOptions",
    "Embedded",
    "JobError",
    "ModelChangedError",
    "Perturbation",
    "Reading",
    "RefusedError",
    "UnavailableError",
]
