"""Rates between two reports: what was trained on, and how long training waited for data."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cellray.train.contracts import Batch


class Window:
    """Sums since the last report of one worker, scaled up to all of them.

    Parameters
    ----------
    world_size
        Workers; each does about as much.
    """

    def __init__(self, world_size: int) -> None:
        self._workers = world_size
        self._tokens, self._cells, self._waited = 0, 0, 0.0
        self._began = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the block as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def add(self, passes: Sequence[Batch]) -> None:
        """Count the batches of a step."""
        self._tokens += sum(batch.tokens for batch in passes)
        self._cells += sum(len(batch.cells_n) for batch in passes)

    def metrics(self) -> dict[str, float]:
        """Return the rates so far."""
        seconds = time.perf_counter() - self._began
        return {
            "tokens_per_s": self._workers * self._tokens / seconds,
            "cells_per_s": self._workers * self._cells / seconds,
            "data_wait_share": self._waited / seconds,
        }
