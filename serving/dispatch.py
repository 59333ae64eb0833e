"""One question to a deployment: bounded in time, cancelled with its asker, asked once more if its replica was lost."""

import asyncio
from collections.abc import Callable
from typing import Any

from serving.batcher import QueueClosedError
from serving.faults import unwrapped

ATTEMPTS = 2


async def ask(call: Callable[[], Any], timeout_s: float, on_retry: Callable[[], None] = lambda: None) -> Any:  # noqa: ANN401
    """Return a deployment's answer.

    Parameters
    ----------
    call
        Asks, and returns Serve's response. What it asks must be safe to ask twice.
    timeout_s
        For all attempts together.
    on_retry
        Told of the second attempt.

    Raises
    ------
    TimeoutError
        No answer in time.
    Exception
        Whatever the replica raised, or Ray's error if a second replica was lost, too.
    """
    async with asyncio.timeout(timeout_s):
        for attempt in range(ATTEMPTS):
            try:
                return await _answer(call)
            except Exception as error:
                if attempt + 1 == ATTEMPTS or not _is_lost(error):
                    raise unwrapped(error) from None
                on_retry()
    raise AssertionError("the loop returns or raises")


async def _answer(call: Callable[[], Any]) -> Any:  # noqa: ANN401
    response = call()
    try:
        return await response
    except asyncio.CancelledError:  # the client is gone, or time is up: the replica need not go on
        response.cancel()
        raise


def _is_lost(error: BaseException) -> bool:
    """Tell whether an error says that the replica died or stopped, and nothing of the request."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import ReplicaUnavailableError

    return isinstance(unwrapped(error), RayActorError | ReplicaUnavailableError | QueueClosedError)
