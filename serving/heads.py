"""HEAD is answered as GET is, without the body: what an endpoint does is not its concern."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHOD = "cellray.method"
"""Key of the ASGI scope under which the method stands that was asked, where it is not the one that is answered."""


class Heads:
    """Middleware that lets the application beneath answer HEAD as GET, and drops the body.

    Parameters
    ----------
    app
        The application beneath.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET", METHOD: scope["method"]}, receive, sending)
