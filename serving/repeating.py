"""Requests that are sent again: who lost an answer names the request by a key, so that no second job is begun."""

import hashlib
from dataclasses import dataclass

import numpy as np
from pydantic_core import to_json

from cellray.api.schema import PerturbationRequest
from cellray.api.wire import CellTable

HEADER = "Idempotency-Key"
LONGEST = 255
"""Characters of a key at most."""


@dataclass(frozen=True)
class Repeat:
    """What tells that a request is one that came before.

    Attributes
    ----------
    key
        That the asker chose for it.
    digest
        SHA-256 of what it asks.
    """

    key: str
    digest: str


def repeat_of(key: str, cells: CellTable, asked: PerturbationRequest) -> Repeat:
    """Return the key of a request and the digest of all that it asks; `asked` without cells and genes."""
    digest = hashlib.sha256(to_json([list(cells.ids), list(cells.genes), asked]))
    for array in (cells.indptr, cells.columns, cells.counts):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return Repeat(key, digest.hexdigest())
