"""Waits for a long request: asks how far it is, fetches its result, and cancels it if nobody waits any more."""

import asyncio
import logging
from collections.abc import Callable
from urllib.parse import quote

import anyio
import httpx2

from cellray.api.schema import JobStatus
from cellray.api.wire import ARROW_STREAM
from cellray.client.errors import JobError, RefusedError, UnavailableError
from cellray.client.transport import Transport, parsed

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _GROWTH = 0.2, 5.0, 1.5
_LAST_WORD_S = 5.0
_WAITING = frozenset(("queued", "running"))


async def job_result(transport: Transport, status: JobStatus, told: Callable[[float], None]) -> httpx2.Response:
    """Return the answer with a job's result; the server may then forget it.

    Parameters
    ----------
    status
        What the server said of it.
    told
        Called with the share that is done.

    Raises
    ------
    JobError
        It failed, or somebody cancelled it.
    RefusedError, UnavailableError
        The server knows it no more, or does not answer.
    """
    path = f"/v1/jobs/{quote(status.id, safe='')}"
    try:
        status = await _ended(transport, path, status, told)
    except asyncio.CancelledError:
        await _drop(transport, path)
        raise
    if status.state != "done":
        raise JobError(status)
    answer = await transport.send("GET", f"{path}/result", headers={"accept": ARROW_STREAM})
    await _drop(transport, path)
    return answer


async def _ended(transport: Transport, path: str, status: JobStatus, told: Callable[[float], None]) -> JobStatus:
    pause_s = _FIRST_PAUSE_S
    while status.state in _WAITING:
        left_s = pause_s if status.seconds_left is None else max(_FIRST_PAUSE_S, status.seconds_left)
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(_LONGEST_PAUSE_S, pause_s * _GROWTH)
        answer = await transport.send("GET", path)
        status = JobStatus.model_validate(parsed(answer), extra="ignore")
        told(status.progress)
    return status


async def _drop(transport: Transport, path: str) -> None:
    """Tell the server that nobody wants the job any more; if that fails, its time to live ends it."""
    with anyio.move_on_after(_LAST_WORD_S, shield=True):
        try:
            await transport.send("DELETE", path)
        except (RefusedError, UnavailableError) as error:
            logger.info("the job stays: %s", error)
