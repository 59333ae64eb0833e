"""How much may wait: a bounded queue for each model, and room for bodies. More is refused at once, with a time to wait.

Counts what this process let in and has not answered yet; replicas batch it. Knows no HTTP but its errors.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from serving.faults import HttpError

_REMEMBERED_S = 30.0
_LONGEST_S = 60.0


class Queue:
    """Cells of one model that wait or are computed.

    Parameters
    ----------
    name
        Of the model.
    most
        Cells at most. A request that is larger by itself is let in while there is any room: else it would never be.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self.cells = 0
        self._done: deque[tuple[float, int]] = deque()

    def check(self) -> None:
        """Refuse if the queue is full: before a body is read.

        Raises
        ------
        HttpError
            429 with the time to wait.
        """
        if self.cells >= self._most:
            raise self._full()

    @contextmanager
    def enter(self, cells: int) -> Iterator[None]:
        """Let cells in until the block is left.

        Raises
        ------
        HttpError
            429: there is no room for so many.
        """
        if self.cells >= self._most or (cells <= self._most < self.cells + cells):
            raise self._full()
        self.cells += cells
        try:
            yield
            self._done.append((time.monotonic(), cells))
        finally:
            self.cells -= cells

    def wait_s(self) -> float:
        """Return about how long the queue needs to become half empty: by then there is room for several."""
        now = time.monotonic()
        while self._done and self._done[0][0] < now - _REMEMBERED_S:
            self._done.popleft()
        if len(self._done) < 2:
            return 1.0
        rate = sum(cells for _, cells in self._done) / max(now - self._done[0][0], 0.1)
        return min(_LONGEST_S, max(1.0, self.cells / 2 / rate))

    def _full(self) -> HttpError:
        message = f"model {self._name!r} has {self.cells} cells to do; it takes no more for now"
        return HttpError(429, "queue_full", message, ("max_queued_cells", self._most), self.wait_s())


class Room:
    """So many things at a time, and no more; nobody waits.

    Parameters
    ----------
    limit, most
        Name and value of the limit in the configuration.
    """

    def __init__(self, limit: str, most: int) -> None:
        self._limit, self._most = limit, most
        self.taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Take a place until the block is left; see `enter` for errors."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Take a place.

        Raises
        ------
        HttpError
            429: all are taken.
        """
        if self.taken >= self._most:
            raise HttpError(429, "busy", f"{self._limit} is {self._most}", (self._limit, self._most), 1.0)
        self.taken += 1

    def leave(self) -> None:
        """Give a place back."""
        self.taken -= 1
