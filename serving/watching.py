"""What happens around every request: errors become bodies, and each answer is counted and told to the gate."""

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import Asked
from serving.faults import REQUEST_ID, error_answer
from serving.heads import METHOD
from serving.service import Service

NOTES = "cellray.notes"
"""Key of the ASGI scope under which endpoints note what the audit log is told."""
_OTHER = "other"
"""Stands for all paths that do not exist: there would be endlessly many."""


def watch(app: FastAPI, service: Service) -> None:
    """Add error answers, counting and the audit to an application."""

    async def answer(request: Request, error: Exception) -> Response:
        return error_answer(error, request)

    app.add_exception_handler(HTTPException, answer)
    app.add_exception_handler(RequestValidationError, answer)
    app.add_middleware(_Watch, service=service)


class _Watch:
    """Middleware: nothing leaves the application as an exception but a cancellation."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[NOTES] = {}
        started, status = time.monotonic(), 499  # the client is gone, if nothing else is heard of

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:  # raised before an answer began, or by the answer itself
            if status != 499:
                raise
            await error_answer(error, Request(scope))(scope, receive, sending)
        finally:
            self._told(scope, status, time.monotonic() - started)

    def _told(self, scope: Scope, status: int, seconds: float) -> None:
        notes: dict[str, Any] = scope[NOTES]
        route = _known_path(scope)
        self._service.metrics.answered(route, status, seconds)
        headers = dict(scope["headers"])
        asked = Asked(
            request_id=headers.get(REQUEST_ID.encode(), b"").decode("latin-1")[:64],
            method=scope.get(METHOD, scope["method"]),
            path=route,
            status=status,
            seconds=round(seconds, 4),
            model=notes.get("model"),
            cells=notes.get("cells"),
            client=scope["client"][0] if scope.get("client") else None,
        )
        self._service.gate.record(notes.get("caller"), asked)


def _known_path(scope: Scope) -> str:
    """Return the path of the endpoint that was asked, also where the request was refused before it got there."""
    if "route" in scope:
        return getattr(scope["route"], "path", _OTHER)
    routes = scope["app"].routes if "app" in scope else ()
    asked = (route for route in routes if route.matches(scope)[0] is not Match.NONE)
    return getattr(next(asked, None), "path", _OTHER)
