"""When a request is sent again, and after which pause. Knows statuses and headers, and sends nothing."""

import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from cellray.retries import RetryPolicy

BUSY = frozenset((429, 503))
"""The server is well but has no time or no replica: worth waiting for as long as the caller is patient."""
FAULTS = frozenset((502, 504))
"""Something broke on the way, as when a connection is lost: worth a few attempts."""

_SPREAD = 0.25


class Retrying:
    """Decides about one request.

    Parameters
    ----------
    policy
        How many faults are borne, and the pauses after them.
    patience_s
        Longest that all pauses together may take [s].
    """

    def __init__(self, policy: RetryPolicy, patience_s: float) -> None:
        self._policy, self._patience_s = policy, patience_s
        self._faults = self._refusals = 0
        self._paused_s = 0.0

    @property
    def attempts(self) -> int:
        """Attempts that failed."""
        return self._faults + self._refusals

    def after_fault(self) -> float | None:
        """Return the pause after a fault [s]; None: give up."""
        self._faults += 1
        return None if self._faults >= self._policy.attempts else self._within(self._policy.pause_s(self._faults))

    def after_refusal(self, retry_after_s: float | None) -> float | None:
        """Return the pause after the server said that it is busy [s]: what it asks for and a bit; None: give up.

        Parameters
        ----------
        retry_after_s
            What it said; None: nothing.
        """
        self._refusals += 1
        if retry_after_s is None:
            return self._within(self._policy.pause_s(self._refusals))
        return self._within(retry_after_s * (1 + self._policy.rng.uniform(0, _SPREAD)))

    def _within(self, pause_s: float) -> float | None:
        if self._paused_s + pause_s > self._patience_s:
            return None
        self._paused_s += pause_s
        return pause_s


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return what Retry-After says in seconds, whether it is a number or a date; None if it says nothing sensible."""
    told = headers.get("retry-after", "").strip()
    if told.isdecimal():
        return float(told)
    try:
        until = parsedate_to_datetime(told)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, until.timestamp() - time.time())
