"""One request to a server: sent again where that may help, refused with the server's words where it does not."""

import asyncio
import ipaddress
import json
import logging
import os
import ssl
from typing import Any
from urllib.parse import urlsplit

import httpx2
from pydantic import ValidationError

from cellray import __version__
from cellray.api.schema import ErrorBody, ErrorDetail
from cellray.api.wire import ARROW_STREAM
from cellray.client.errors import RefusedError, UnavailableError
from cellray.client.retrying import BUSY, FAULTS, Retrying, retry_after
from cellray.config import API_KEY
from cellray.errors import InputError
from cellray.retries import RetryPolicy

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
_SHOWN = 300
_INTERNAL, _FOREIGN = 500, "error"
"""Status and code of an error in other words than the server's: a proxy tells that it lost the process behind it."""


class Transport:
    """A server's address, a key, and connections that are kept.

    Parameters
    ----------
    url
        `http://` or `https://`, host, port, and a path where the server is not at the root.
    key
        None: the environment variable `CELLRAY_API_KEY`, or none.
    timeout_s
        Longest that an answer may be waited for [s].
    policy, patience_s
        See `Retrying`.
    ca
        PEM file of who signed the server's certificate; None: those that the system trusts.

    Raises
    ------
    InputError
        The address or the key makes no sense.
    """

    def __init__(
        self, url: str, key: str | None, timeout_s: float, policy: RetryPolicy, patience_s: float, ca: str | None
    ) -> None:
        self.url, self._policy, self._patience_s = _checked(url), policy, patience_s
        headers = {"user-agent": f"cellray/{__version__}", **_authorization(key)}
        if "authorization" in headers and self.url.startswith("http:") and not self.is_local:
            logger.warning("%s: the key goes over the network unencrypted; use https", self.url)
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(timeout_s, connect=_CONNECT_S, pool=None),
            verify=_trusted(ca),
        )

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    async def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        """Return the server's answer, which is a success.

        Raises
        ------
        RefusedError
            The request is at fault.
        UnavailableError
            The server could not be reached or was busy for too long.
        """
        url, retrying = self.url + path, Retrying(self._policy, self._patience_s)
        while True:
            try:
                answer = await self._http.request(method, url, content=body, headers=headers)
            except httpx2.TransportError as error:
                told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                pause_s = retrying.after_fault()
            else:
                if answer.is_success:
                    return answer
                told, pause_s = _judged(url, answer, retrying)
            if pause_s is None:
                raise UnavailableError(url, retrying.attempts, told)
            logger.info("%s: %s; again in %.1f s", url, told, pause_s)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _judged(url: str, answer: httpx2.Response, retrying: Retrying) -> tuple[str, float | None]:
    """Return what an error status means, and the pause until it is worth trying again; raise if it is not."""
    detail = _detail(answer)
    told = f"status {answer.status_code}: {detail.message}"
    if answer.status_code in BUSY:
        return told, retrying.after_refusal(retry_after(answer.headers))
    if answer.status_code in FAULTS or (answer.status_code == _INTERNAL and detail.code == _FOREIGN):
        return told, retrying.after_fault()
    raise RefusedError(url, answer.status_code, detail.code, detail.message, detail.limit, detail.request_id)


def _detail(answer: httpx2.Response) -> ErrorDetail:
    """Return what an answer says of its error; proxies between say it in ways of their own."""
    try:
        return ErrorBody.model_validate_json(answer.content, extra="ignore").error
    except ValidationError:
        return ErrorDetail(code=_FOREIGN, message=answer.text[:_SHOWN].strip() or answer.reason_phrase)


def parsed(answer: httpx2.Response) -> Any:  # noqa: ANN401  # JSON
    """Return an answer's JSON.

    Raises
    ------
    RefusedError
        It is something else: this is no server of models.
    """
    try:
        return json.loads(answer.content)
    except ValueError:
        message = "the answer is no JSON; is this the address of a cellray server?"
        raise RefusedError(str(answer.url), answer.status_code, "unexpected_answer", message) from None


def binary_body(answer: httpx2.Response) -> bytes:
    """Return an answer's body, which is in the binary form.

    Raises
    ------
    RefusedError
        It is something else, as the page of a proxy.
    """
    kind = answer.headers.get("content-type", "nothing")
    if kind != ARROW_STREAM:
        message = f"the answer is {kind[:100]}, not {ARROW_STREAM}; is this the address of a cellray server?"
        raise RefusedError(str(answer.url), answer.status_code, "unexpected_answer", message)
    return answer.content


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise InputError("url", "http(s)://HOST:PORT", repr(url), "As in Client('http://127.0.0.1:8000').")
    return url.rstrip("/")


def _authorization(key: str | None) -> dict[str, str]:
    key = os.environ.get(API_KEY) if key is None else key
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("key", "printable characters without blanks", "others", "Copy it once more.")
    return {"authorization": f"Bearer {key}"}


def _trusted(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        fix = "Name the PEM file of who signed the server's certificate."
        raise InputError("ca", "a file of certificates", f"{ca!r}: {error}", fix) from None
