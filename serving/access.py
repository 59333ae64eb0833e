"""Who may ask what: the contract between the HTTP side and whatever decides, and the one that lets everybody in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cellray.errors import InputError
from serving.config import ServingConfig, is_loopback

Scope = Literal["embed", "perturb", "admin"]


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes
    ----------
    name
        Of the key, never the key.
    scopes
        What it may do.
    """

    name: str
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Asked:
    """One answered request, for the audit log: no counts, no ids of cells or genes.

    Attributes
    ----------
    request_id, method, path, status
        Of HTTP.
    seconds
        From the first byte to the answer.
    model, cells, tokens
        What was asked of which model, as far as is known.
    """

    request_id: str
    method: str
    path: str
    status: int
    seconds: float
    model: str | None = None
    cells: int | None = None
    tokens: int | None = None
    more: Mapping[str, str | int | float] = field(default_factory=dict)


class AccessError(Exception):
    """A caller that is not let in; becomes an answer with `cellray.api.schema.ErrorBody`.

    Parameters
    ----------
    status
        401, 403 or 429.
    code
        One word for machines.
    message
        For people.
    retry_after_s
        For 429.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(status, code, message, retry_after_s)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s


class Gate(Protocol):
    """Decides before a body is read, and hears of every answer. One an ingress replica; called in its event loop."""

    def admit(self, headers: Mapping[str, str], scope: Scope, client: str) -> Caller:
        """Return the caller.

        Parameters
        ----------
        headers
            Names in lower case.
        scope
            What the endpoint needs.
        client
            Address of the other side.

        Raises
        ------
        AccessError
            There is no valid key, it lacks the scope, or it asks too often.
        """
        ...

    def record(self, caller: Caller | None, asked: Asked) -> None:
        """Take note of an answer; None if the caller was not let in. Must not block or raise."""
        ...


class OpenGate:
    """Lets everybody on this machine do everything, and writes nothing."""

    def admit(self, headers: Mapping[str, str], scope: Scope, client: str) -> Caller:
        """Let them in, unless they come from elsewhere: whatever address the server was bound to."""
        if not is_loopback(client):
            raise AccessError(403, "loopback_only", "without keys the server answers its own machine only")
        return Caller("anyone", frozenset(("embed", "perturb", "admin")))

    def record(self, caller: Caller | None, asked: Asked) -> None:
        """Forget it."""


GATES: dict[str, Callable[[ServingConfig], Gate]] = {"none": lambda config: OpenGate()}
"""Makers of gates by `access.auth`."""


def make_gate(config: ServingConfig) -> Gate:
    """Return the gate of a server.

    Raises
    ------
    InputError
        There is no such way to let callers in.
    """
    if config.access.auth not in GATES:
        raise InputError("access.auth", f"must be one of {', '.join(GATES)}", config.access.auth, "Choose one.")
    return GATES[config.access.auth](config)
