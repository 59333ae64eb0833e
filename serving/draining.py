"""How a server stops: nothing new is let in, and all processes that speak HTTP tell when they have answered the rest.

Knows no Ray: each process tells `Draining` what it has in flight and hears whether to refuse.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.faults import HttpError

_SILENT_S = 30.0
"""After so long a process that tells nothing is taken for lost."""
_GUARDED = "/v1/"
_RETRY_S = 5.0


@dataclass
class InFlight:
    """Requests that one process has not answered yet, and whether it takes more.

    Attributes
    ----------
    requests
        In flight.
    draining
        The server stops: more are refused.
    """

    requests: int = 0
    draining: bool = False


class Guard:
    """Middleware that counts requests to models and jobs, and refuses them when the server stops.

    Parameters
    ----------
    app
        The application beneath.
    flight
        Where they are counted.
    """

    def __init__(self, app: ASGIApp, flight: InFlight) -> None:
        self._app, self._flight = app, flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises
        ------
        HttpError
            503 with a time to wait: by then another server may be there.
        """
        if scope["type"] != "http" or not scope["path"].startswith(_GUARDED):
            await self._app(scope, receive, send)
            return
        if self._flight.draining:
            raise HttpError(503, "draining", "the server stops; ask again later", None, _RETRY_S)
        self._flight.requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._flight.requests -= 1


@dataclass
class Draining:
    """What is known of the processes that speak HTTP.

    Attributes
    ----------
    begun
        Whether they are told to refuse.
    """

    clock: Callable[[], float] = time.monotonic
    begun: bool = False
    _told: dict[str, tuple[float, bool, int]] = field(default_factory=dict)

    def hear(self, process: str, flight: InFlight) -> bool:
        """Take note of what a process has in flight; return whether it is to refuse more."""
        self._told[process] = (self.clock(), flight.draining, flight.requests)
        return self.begun

    def left(self) -> tuple[int, bool]:
        """Return how many requests are in flight, and whether all processes refuse more."""
        now = self.clock()
        self._told = {name: told for name, told in self._told.items() if now - told[0] < _SILENT_S}
        told = self._told.values()
        return sum(requests for _, _, requests in told), all(refuses for _, refuses, _ in told)
