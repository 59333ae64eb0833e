"""What callers may say: how to talk to the server, where counts are, what is done to cells."""

from collections.abc import Iterable
from typing import Literal, TypedDict

from cellray.api.schema import Kind
from cellray.client.progress import Show
from cellray.errors import InputError, listing


class ClientOptions(TypedDict, total=False):
    """How a client talks to its server.

    Attributes
    ----------
    timeout_s
        Longest that one answer may be waited for, 300 [s].
    attempts
        Most attempts of a request whose connection is lost, 6.
    patience_s
        Longest that a request waits for a busy server, all pauses together, 300 [s].
    in_flight
        Requests at a time, 4.
    compression
        `zstd`, `gzip` or None; default: zstd to other machines.
    ca
        PEM file of who signed the server's certificate, if the system does not know them.
    """

    timeout_s: float
    attempts: int
    patience_s: float
    in_flight: int
    compression: Literal["zstd", "gzip"] | None
    ca: str | None


class Reading(TypedDict, total=False):
    """Where counts are in an AnnData, and how progress is shown.

    Attributes
    ----------
    matrix
        `X`, `raw` or `layers/NAME`: where the raw counts are; default `X`.
    gene_ids
        Var column with the gene ids, or `index`; default: `ensembl_id` if there is one, else the index.
    progress
        See `cellray.client.progress.Show`; a function is called in the thread of the event loop.
    """

    matrix: str
    gene_ids: str | None
    progress: Show


class Perturbation(Reading, total=False):
    """What is done to cells; see `cellray.api.schema.PerturbationRequest`, but `top` is None: all rows."""

    kind: Kind
    quartiles: int
    perturb: Literal["all"] | list[str]
    together: bool
    pairs: bool
    anchor: list[str]
    start: str | None
    goal: str | None
    alternatives: list[str]
    layer: int
    pooling: Literal["cell", "cls"]
    top: int | None
    background: bool | None


def check_names(given: Iterable[str], options: type) -> None:
    """Refuse names that a TypedDict does not have.

    Raises
    ------
    InputError
        One is unknown.
    """
    known = options.__annotations__
    if unknown := set(given) - set(known):
        raise InputError("options", f"some of {listing(known, 20)}", listing(unknown), "Correct the name.")
