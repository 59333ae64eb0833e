"""How often each key may ask: token buckets. Knows no HTTP and no keys but their names."""

import time
from collections.abc import Callable
from dataclasses import dataclass

BURST_S = 10.0
"""Seconds' worth of requests that a key which was quiet may ask at once."""


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """Lets each name ask so often.

    Parameters
    ----------
    clock
        Returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str, per_minute: int) -> float:
        """Take a request from a name's bucket.

        Parameters
        ----------
        per_minute
            Requests that flow in; the bucket holds those of `BURST_S` seconds, and one at least.

        Returns
        -------
        float
            0: it may ask; else the seconds to wait until it may.
        """
        rate, now = per_minute / 60, self._clock()
        capacity = max(1.0, rate * BURST_S)
        bucket = self._buckets.setdefault(name, _Bucket(capacity, now))
        bucket.tokens = min(capacity, bucket.tokens + (now - bucket.filled_at) * rate)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / rate
        bucket.tokens -= 1
        return 0.0
