"""Clients that ask without pause, and what they were answered."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import httpx2


class Load:
    """Threads that post one body again and again until the block is left.

    Parameters
    ----------
    url, path, body
        Where they post, and what.
    clients
        How many threads.
    right
        Judges a 200's body.
    patience
        How often a request is sent again when it is refused with Retry-After.
    """

    def __init__(
        self,
        url: str,
        path: str,
        body: object,
        right: Callable[[httpx2.Response], bool],
        *,
        clients: int = 2,
        patience: int = 0,
        pause_s: float = 0.0,
    ) -> None:
        self.url, self.path, self.body, self.right = url, path, body, right
        self.patience, self.pause = patience, pause_s
        self.seen: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=180)

    @property
    def share_right(self) -> float:
        return self.seen["right"] / max(1, sum(self.seen.values()))

    def _ask(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=150) as client:
            while not self._stop.is_set():
                started = time.monotonic()
                told = self._once(client)
                self.seen[told] += 1
                self.seconds.setdefault(told, []).append(time.monotonic() - started)
                time.sleep(self.pause)

    def _once(self, client: httpx2.Client) -> str:
        answer = None
        for _ in range(self.patience + 1):
            try:
                answer = client.post(self.path, json=self.body)
            except httpx2.HTTPError as error:
                self.wrong.append(repr(error))
                return type(error).__name__
            if answer.status_code not in (429, 503) or not self.patience:
                break
            with suppress(ValueError):
                self._stop.wait(min(5.0, float(answer.headers.get("retry-after", "1"))))
        assert answer is not None
        if answer.status_code == 200 and self.right(answer):
            return "right"
        self.wrong.append(f"{answer.status_code} {answer.text[:300]}")
        return str(answer.status_code)
