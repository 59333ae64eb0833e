"""Headers that tell browsers what answers of this server must not be used for."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
        "connect-src 'self'; worker-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""On every answer: no foreign script, frame or form, no guessing of types, no address told to others."""
STRICT_TRANSPORT = ("strict-transport-security", "max-age=31536000")
"""On answers over TLS: come back over TLS only, for a year."""
_NOT_KEPT = "/v1/"


class SecurityHeaders:
    """Middleware that adds `HEADERS`; what an endpoint set itself stays.

    Parameters
    ----------
    app
        The application beneath.
    tls
        Whether the server speaks HTTPS.
    """

    def __init__(self, app: ASGIApp, tls: bool = False) -> None:
        self._app = app
        self._headers = HEADERS | ({STRICT_TRANSPORT[0]: STRICT_TRANSPORT[1]} if tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith(_NOT_KEPT):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, sending)
