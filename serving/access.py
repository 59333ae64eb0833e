"""Who may ask what: the contract between the HTTP side and whatever decides, and the one that lets everybody in."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

from cellray.errors import InputError
from serving.config import ServingConfig, is_loopback

if TYPE_CHECKING:
    from serving.audit import AuditLog

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

    @property
    def is_admin(self) -> bool:
        """Whether it looks after everybody's jobs."""
        return "admin" in self.scopes


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
    client
        Address of the other side.
    """

    request_id: str
    method: str
    path: str
    status: int
    seconds: float
    model: str | None = None
    cells: int | None = None
    tokens: int | None = None
    client: str | None = None
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
    caller
        Who it is, where that is known.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: float | None = None, caller: Caller | None = None
    ) -> None:
        super().__init__(status, code, message, retry_after_s, caller)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s
        self.caller = caller


class Gate(Protocol):
    """Decides before a body is read, and hears of every answer. One an ingress replica; called in its event loop."""

    def admit(self, headers: Mapping[str, str], scopes: Collection[Scope], client: str) -> Caller:
        """Return the caller.

        Parameters
        ----------
        headers
            Names in lower case.
        scopes
            Any of these will do; none: any key will do.
        client
            Address of the other side.

        Raises
        ------
        AccessError
            There is no valid key, it lacks the scopes, or it asks too often.
        """
        ...

    def record(self, caller: Caller | None, asked: Asked) -> None:
        """Take note of an answer; None if nobody knows who asked. Must not block or raise."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


class OpenGate:
    """Lets everybody on this machine do everything.

    Parameters
    ----------
    audit
        Where answers are written; None: nowhere.
    """

    def __init__(self, audit: "AuditLog | None" = None) -> None:
        self._audit = audit

    def admit(self, headers: Mapping[str, str], scopes: Collection[Scope], client: str) -> Caller:
        """Let them in, unless they come from elsewhere, whatever address the server was bound to.

        A page from elsewhere can make a browser of this machine ask, too: directly, or under a name of its own that it
        lets point here (DNS rebinding). So the name that was asked for must be this machine's as well.
        """
        named = _host_name(headers.get("host", ""))
        if not is_loopback(client) or not is_loopback(named):
            raise AccessError(403, "loopback_only", "without keys the server answers its own machine only")
        if headers.get("sec-fetch-site", "none") not in _OWN_SITES:
            raise AccessError(403, "cross_site", "without keys the server answers no pages of others")
        return Caller("anyone", frozenset(("embed", "perturb", "admin")))

    def record(self, caller: Caller | None, asked: Asked) -> None:
        """Write a line to the audit log."""
        if self._audit is not None:
            self._audit.write(caller, asked)

    def close(self) -> None:
        """Close the audit log."""
        if self._audit is not None:
            self._audit.close()


_OWN_SITES = frozenset(("none", "same-origin"))


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _open_gate(config: ServingConfig) -> Gate:
    return OpenGate(_audit(config))


def _key_gate(config: ServingConfig) -> Gate:
    from serving.key_gate import KeyFile, KeyGate

    return KeyGate(KeyFile(config.access.keys_file), config.access.requests_per_minute, _audit(config))


def _audit(config: ServingConfig) -> "AuditLog | None":
    from serving.audit import AuditLog

    return None if config.audit_file is None else AuditLog(config.audit_file)


GATES: dict[str, Callable[[ServingConfig], Gate]] = {"none": _open_gate, "keys": _key_gate}
"""Makers of gates by `access.auth`."""


def make_gate(config: ServingConfig) -> Gate:
    """Return the gate of a server.

    Raises
    ------
    InputError
        There is no such way to let callers in, there are no keys, or the audit log cannot be written.
    """
    if config.access.auth not in GATES:
        raise InputError("access.auth", f"must be one of {', '.join(GATES)}", config.access.auth, "Choose one.")
    return GATES[config.access.auth](config)


def check_access(config: ServingConfig) -> None:
    """Look at keys, certificate and audit log before anything is started.

    Raises
    ------
    InputError
        One is missing or damaged.
    """
    from serving.tls import tls_options

    tls_options(config.tls_certificate, config.tls_key)
    make_gate(config).close()
