"""Sends the pieces of a call, a few at a time, and sees to it that one version of the model answers all of them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cellray.client.cells import Chunk
from cellray.client.errors import ModelChangedError, RefusedError

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_ROUNDS = 4
_PAUSE_S = 10.0
_NOT_BY_CELLS = frozenset(("genes_per_cell",))
"""Limits that fewer cells a request do not help."""
_TOO_LARGE = 413


@dataclass(frozen=True)
class Answered(Generic[ResultT]):
    """The answer about a chunk, which is not kept: counts of many cells would not fit.

    Attributes
    ----------
    start, stop
        Its cells.
    result
        The table or array.
    about
        All else that the server said: `model`, `notes` and so on.
    """

    start: int
    stop: int
    result: ResultT
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the weights that computed it."""
        return str(self.about["model"]["digest"])


Ask = Callable[[Chunk], Awaitable[Answered[ResultT]]]


async def ask_all(
    chunks: Iterator[Chunk], read: Callable[[int, int], Chunk], ask: Ask[ResultT], in_flight: int
) -> list[Answered[ResultT]]:
    """Ask about all chunks, by one version of the model; answers come in the order of the cells.

    Parameters
    ----------
    chunks
        All cells.
    read
        Returns the cells from a row to before another, again.
    ask, in_flight
        What to ask about a chunk, and of how many at a time.

    Raises
    ------
    RefusedError, UnavailableError, JobError
        The first that a chunk ended in; the others are given up.
    ModelChangedError
        The model was replaced again and again.
    """
    answers = await _ask_each(chunks, ask, in_flight)
    for round_ in range(_ROUNDS):
        latest = answers[-1].digest if answers else ""
        old = [answer for answer in answers if answer.digest != latest]
        if not old:
            return sorted(answers, key=lambda answer: answer.start)
        logger.warning("the model was replaced meanwhile; %d requests are sent again", len(old))
        kept = [answer for answer in answers if answer.digest == latest]
        await asyncio.sleep(_PAUSE_S * round_)  # several replicas do not change at once
        again = (read(answer.start, answer.stop) for answer in old)
        answers = kept + await _ask_each(again, ask, in_flight)
    versions = ", ".join(sorted({answer.digest[:12] for answer in answers}))
    raise ModelChangedError(f"the model was replaced {_ROUNDS} times while cells were sent: {versions}. Ask again.")


async def _ask_each(chunks: Iterator[Chunk], ask: Ask[ResultT], in_flight: int) -> list[Answered[ResultT]]:
    """Ask about chunks; answers come as they come. No more chunks are read than are in flight."""
    answers: list[Answered[ResultT]] = []
    turn = asyncio.Lock()

    async def work() -> None:
        while True:
            async with turn:
                chunk = await asyncio.to_thread(next, chunks, None)
            if chunk is None:
                return
            await _ask_or_split(chunk, ask, answers)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return answers


async def _ask_or_split(chunk: Chunk, ask: Ask[ResultT], answers: list[Answered[ResultT]]) -> None:
    """Ask about a chunk; in halves if it is too much for the server's limits, which may have changed."""
    try:
        answers.append(await ask(chunk))
    except RefusedError as error:
        by_cells = error.limit is not None and error.limit.name not in _NOT_BY_CELLS
        if len(chunk) == 1 or not (by_cells or error.status == _TOO_LARGE):
            raise
        for half in chunk.halves():
            await _ask_or_split(half, ask, answers)
