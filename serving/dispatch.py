"""One question to a deployment: bounded in time, cancelled with its asker, asked once more if its replica failed."""

import asyncio
from collections.abc import Callable
from typing import Any

from serving.batcher import ComputeError
from serving.faults import is_lost, unwrapped

ATTEMPTS = 2


async def ask(
    call: Callable[[], Any], timeout_s: float, on_retry: Callable[[], None] = lambda: None, attempts: int = ATTEMPTS
) -> Any:  # noqa: ANN401
    """Return a deployment's answer.

    Parameters
    ----------
    call
        Asks, and returns Serve's response. What it asks must be safe to ask as often as `attempts` say.
    timeout_s
        For all attempts together.
    on_retry
        Told of the second attempt.
    attempts
        How often at most.

    Raises
    ------
    TimeoutError
        No answer in time.
    Exception
        Whatever the replica raised; Ray's error or `ComputeError` if a second replica was lost or failed, too.
    """
    async with asyncio.timeout(timeout_s):
        for attempt in range(attempts):
            try:
                return await _answer(call)
            except Exception as error:
                if attempt + 1 == attempts or not _is_replicas(unwrapped(error)):
                    raise unwrapped(error) from None
                on_retry()
    raise AssertionError("the loop returns or raises")


async def _answer(call: Callable[[], Any]) -> Any:  # noqa: ANN401
    response = call()
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        task = asyncio.current_task()
        if task is None or task.cancelling():  # the client is gone, or time is up: the replica need not go on
            raise
        from ray.serve.exceptions import RequestCancelledError

        raise RequestCancelledError from None  # by Serve itself, as when a replica or its router stops


def _is_replicas(error: BaseException) -> bool:
    """Tell whether an error is the replica's, so that another one may answer."""
    return is_lost(error) or isinstance(error, ComputeError)
