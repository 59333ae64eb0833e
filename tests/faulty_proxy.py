"""A proxy in front of an S3 server that fails as networks and busy stores do, by a seeded plan.

Knows HTTP and the shape of S3's paths, nothing of cellray. It checks no signatures, and neither does the server behind
it; headers, `Host` too, are passed on as they came.
"""

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

_ERROR = "<?xml version='1.0'?><Error><Code>{0}</Code><Message>{1}</Message><RequestId>0</RequestId></Error>"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass
class Fault:
    """When a request goes wrong, and how.

    Attributes
    ----------
    kind
        A name of `FAULTS`.
    probability
        That a matching request is hit.
    times
        Most requests to hit, the first ones; None: no end.
    operations
        Of `GET PUT HEAD LIST POST DELETE`; empty: all.
    key
        Regular expression that the path and query (`/bucket/key?query`, unquoted) must match somewhere.
    after
        Matching requests to let pass first.
    """

    kind: str
    probability: float = 1.0
    times: int | None = None
    operations: Sequence[str] = ()
    key: str = ""
    after: int = 0

    def hits(self, operation: str, path: str, rng: random.Random) -> bool:
        """Tell whether a request is hit; draws a number only where it matches."""
        if self.times == 0 or (self.operations and operation not in self.operations) or not re.search(self.key, path):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        hit = rng.random() < self.probability
        if hit and self.times is not None:
            self.times -= 1
        return hit


class FaultyProxy:
    """A proxy on a free loopback port; a context manager.

    Parameters
    ----------
    upstream
        URL of the S3 server.
    faults
        Tried in order, the first that hits is injected; may be replaced at any time.
    seed
        Of the plan. The order in which concurrent requests arrive is the client's.
    latency_s
        Added to every request.
    bytes_per_s
        How fast the body of one answer is sent; None: as fast as it goes.
    """

    def __init__(
        self,
        upstream: str,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        latency_s: float = 0.0,
        bytes_per_s: float | None = None,
    ) -> None:
        self.faults, self.latency_s, self.bytes_per_s, self.stall_s = list(faults), latency_s, bytes_per_s, 0.05
        self.upstream = urlsplit(upstream).netloc
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self._rng, self._lock = random.Random(seed), threading.Lock()  # noqa: S311  # no secret
        self.closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, *faults: Fault) -> None:
        """Replace the plan and forget what was counted."""
        with self._lock:
            self.faults = list(faults)
            self.requests.clear()
            self.injected.clear()

    def draw(self, operation: str, path: str) -> str:
        """Count a request; return the name of the fault it meets, or nothing."""
        with self._lock:
            self.requests[operation] += 1
            fault = next((f for f in self.faults if f.hits(operation, path, self._rng)), None)
            if fault is None:
                return ""
            self.injected[fault.kind] += 1
            return fault.kind


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    """One connection; its requests come one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultyProxy

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def relay(self) -> None:
        """Answer one request, well or badly."""
        body = self._body()
        url = urlsplit(self.path)
        listed = self.command == "GET" and "list-type" in parse_qs(url.query)
        kind = self.proxy.draw("LIST" if listed else self.command, unquote(self.path))
        time.sleep(self.proxy.latency_s)
        FAULTS[kind](self, body) if kind else self.send(*self.forward(body))

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = relay  # noqa: N815  # the base class's names

    def _body(self) -> bytes:
        """Read the request's body, chunked or not."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(pieces)

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Have the server do the request; return status, headers and body."""
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP_BY_HOP]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            data = answer.read()
        finally:
            upstream.close()
        return answer.status, [*headers, ("Content-Length", length or str(len(data)))], data

    def send(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        """Send an answer; `data` may be less than the headers promise."""
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.proxy.bytes_per_s:
            time.sleep(len(data) / self.proxy.bytes_per_s)
        self.wfile.write(data)
        self.wfile.flush()

    def refuse(self, status: int, code: str, message: str) -> None:
        """Answer with one of S3's errors."""
        data = _ERROR.format(code, message).encode()
        self.send(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(data)))], data)

    def reset(self) -> None:
        """Drop the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connection."""
        self.close_connection = True
        self.connection.close()
        self.rfile.close()


def _slow_down(handler: _Handler, _: bytes) -> None:
    handler.refuse(503, "SlowDown", "Please reduce your request rate.")


def _internal_error(handler: _Handler, _: bytes) -> None:
    handler.refuse(500, "InternalError", "We encountered an internal error. Please try again.")


def _forbidden(handler: _Handler, _: bytes) -> None:
    handler.refuse(403, "AccessDenied", "Access Denied")


def _reset(handler: _Handler, _: bytes) -> None:
    handler.reset()


def _lost_answer(handler: _Handler, body: bytes) -> None:
    """Do what was asked, but never say so."""
    handler.forward(body)
    handler.reset()


def _part_of_body(handler: _Handler, body: bytes, end: Callable[[], None]) -> None:
    status, headers, data = handler.forward(body)
    if data:
        handler.send(status, headers, data[: len(data) // 2])
    end()


def _truncated(handler: _Handler, body: bytes) -> None:
    """Promise the whole body, send half of it and close."""
    _part_of_body(handler, body, handler.hang_up)


def _reset_body(handler: _Handler, body: bytes) -> None:
    """Promise the whole body, send half of it and drop the connection."""
    _part_of_body(handler, body, handler.reset)


def _short(handler: _Handler, body: bytes) -> None:
    """Answer correctly, in HTTP's terms, with fewer bytes than were asked for, and no checksum."""
    status, headers, data = handler.forward(body)
    if not data:  # nothing to cut
        return handler.send(status, headers, data)
    data = data[: len(data) // 2]
    kept: list[tuple[str, str]] = [(n, v) for n, v in headers if not re.match("content-length|x-amz-checksum", n, re.I)]
    handler.send(status, [*kept, ("Content-Length", str(len(data)))], data)
    return None


def _stall(handler: _Handler, body: bytes) -> None:
    """Be slow, then answer; who leaves the proxy meanwhile must not find the request done later, in another test."""
    if handler.proxy.closed.wait(handler.proxy.stall_s):
        return handler.hang_up()
    handler.send(*handler.forward(body))
    return None


FAULTS: dict[str, Callable[[Any, bytes], None]] = {
    "slow_down": _slow_down,
    "internal_error": _internal_error,
    "forbidden": _forbidden,
    "reset": _reset,
    "lost_answer": _lost_answer,
    "truncated": _truncated,
    "reset_body": _reset_body,
    "short": _short,
    "stall": _stall,
}
"""Name of a fault to what it does with a request and its body."""
