"""How often a request to a remote store is tried, and how long is waited between.

Knows nothing of any store: which failures pass by themselves is the business of the store's own module.
"""

import os
import random
from dataclasses import dataclass, field

from cellray.errors import InputError

ATTEMPTS = "AWS_MAX_ATTEMPTS"
"""The AWS tools' own environment variable: how often a request is tried, the first time included."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, so that many workers turned away at once do not come back at once.

    Attributes
    ----------
    attempts
        Most tries of one request.
    first_pause_s, longest_pause_s
        Pause after the first failure, doubled after each further one up to the longest [s]. With the defaults, six
        attempts lie within 8 to 16 seconds where the store answers at once.
    rng
        Draws the jitter, which has no influence on any result.
    """

    attempts: int = 6
    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def pause_s(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row: half to all of the backoff."""
        backoff = min(self.longest_pause_s, self.first_pause_s * 2.0 ** (failures - 1))
        return backoff * self.rng.uniform(0.5, 1.0)

    @classmethod
    def from_environment(cls) -> "RetryPolicy":
        """Return the policy with the number of attempts that the environment sets.

        Raises
        ------
        InputError
            It sets something else than a number from 1 on.
        """
        value = os.environ.get(ATTEMPTS)
        if value is None:
            return cls()
        if not value.isdecimal() or int(value) < 1:
            raise InputError(
                ATTEMPTS, "it must be a number of attempts, 1 or more", repr(value), "Correct or unset it."
            )
        return cls(attempts=int(value))
