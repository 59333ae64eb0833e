"""The work of one job: its pieces are asked of the replicas, a few at a time, until all are there.

What is slow is asked again in smaller parts, what a lost replica held is asked again as it was, and if the model was
replaced the job is planned anew with the new one. All of it a bounded number of times. Knows neither HTTP nor owners.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cellray.data.collate import TokenRows
from serving.answers import ModelChangedError, ScreenPlan, Tabled
from serving.batcher import ComputeError
from serving.config import Limits, ModelOptions
from serving.dispatch import ask
from serving.faults import HttpError, answerable
from serving.ranking import strongest
from serving.tables import joined, ranked

PIECES = 4
"""Asked in one call at most."""
TRIES = 6
"""Of one part, before the job fails."""
BEGINNINGS = 5
"""Of a job whose model is replaced while it runs."""
_BRISK_S = 15.0
"""A call that ends sooner shows that the replicas can take one more at a time."""
_SLACK_S = 5.0
_LONGEST_PAUSE_S = 60.0
_PASSING = frozenset((429, 503))


@dataclass(frozen=True)
class _Part:
    """Pieces `start` to before `stop`, and how often they were asked in vain."""

    start: int
    stop: int
    tries: int = 0

    def cut(self, pieces: int) -> "list[_Part]":
        """Return the first pieces of it, fewer each time it was asked in vain, and the rest if there is one."""
        middle = min(self.stop, self.start + pieces, self.start + max(1, PIECES >> self.tries))
        return [_Part(a, b, self.tries) for a, b in ((self.start, middle), (middle, self.stop)) if b > a]


class Pace:
    """How much is asked at a time: more while that goes well, up to a call a replica; half when it takes too long.

    Parameters
    ----------
    least, most
        Calls at a time: at the beginning, and at most.
    """

    def __init__(self, least: int, most: int) -> None:
        self._most = most
        self.calls, self.pieces = min(least, most), PIECES

    def ended(self, seconds: float) -> None:
        """Take note of a call that was answered."""
        if seconds < _BRISK_S:
            self.calls, self.pieces = min(self._most, self.calls + 1), min(PIECES, self.pieces + 1)

    def timed_out(self) -> None:
        """Take note of a call that was not."""
        self.calls, self.pieces = max(1, self.calls // 2), max(1, self.pieces // 2)


class Work:
    """A plan, and how far it is.

    Parameters
    ----------
    plan
        What to compute; `origin` is needed to begin anew.
    model, options
        Handle of the model's deployment, and its options.
    limits
        For `job_step_s`.
    pause
        Waits for seconds.
    """

    def __init__(
        self,
        plan: ScreenPlan,
        model: Any,  # noqa: ANN401  # Serve's handle
        options: ModelOptions,
        limits: Limits,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.plan, self.begun, self.done = plan, 0.0, 0
        self._model, self._options, self._step_s, self._pause = model, options, limits.job_step_s, pause
        self._pace = Pace(options.min_replicas, options.max_replicas)
        self._todo = deque([_Part(0, len(plan.pieces))])
        self._found: dict[int, Tabled] = {}

    async def run(self) -> Tabled:
        """Return the strongest perturbations of each cell.

        Raises
        ------
        HttpError
            A part took too long, however small and however often it was asked, or the model was replaced too often.
        Exception
            Whatever the replicas raised and would raise again.
        """
        self.begun = time.monotonic()
        for _ in range(BEGINNINGS):
            try:
                await self._compute()
                parts = [part for _, part in sorted(self._found.items())]
                return await asyncio.to_thread(joined, self.plan, parts)
            except ModelChangedError as error:
                changed = error
            if (without_genes := await self._plan_anew(changed)) is not None:
                return ranked(without_genes, self.plan.ask)
        raise HttpError(409, "model_changed", f"{changed} while the job ran, and again; ask again")

    @property
    def nbytes(self) -> int:
        """Memory that the cells and what was found of them take, about."""
        return self.plan.nbytes + sum(part.nbytes for part in self._found.values())

    def release(self) -> None:
        """Let go of the cells once the job has ended; its plan's numbers are still told."""
        rows = TokenRows(np.empty(0, np.uint16), np.zeros(1, np.int64))
        self.plan = replace(self.plan, origin=None, pieces=(), rows=rows, notes=[], ids=())
        self._found, self._todo = {}, deque()

    async def _plan_anew(self, changed: ModelChangedError) -> Tabled | None:
        """Plan the job with the model as it is now; what was found stays if it is the same one after all.

        Returns the whole answer if the model knows no gene of the cells, so that there is nothing to compute.
        """
        origin = self.plan.origin
        if origin is None:
            raise changed
        if self._options.max_replicas > 1:  # until the others have changed over, too
            await self._pause(self._options.reload_s)

        def plan() -> Any:  # noqa: ANN401  # Serve's response
            return self._model.perturb.remote(origin.cells, origin.request, 0, origin.most)

        found = await self._patiently(plan)
        if isinstance(found, Tabled):
            return found
        if found.stamp.digest != self.plan.stamp.digest:
            self._found, self._todo = {}, deque([_Part(0, len(found.pieces))])
            self.done, self.begun = 0, time.monotonic()
        self.plan = found
        return None

    async def _compute(self) -> None:
        """Ask for all pieces that are not there yet, as many calls at a time as the pace lets."""
        running: dict[asyncio.Task[None], _Part] = {}
        try:
            while self._todo or running:
                while self._todo and len(running) < self._pace.calls:
                    part, *rest = self._todo.popleft().cut(self._pace.pieces)
                    self._todo.extendleft(rest)
                    running[asyncio.create_task(self._measure(part))] = part
                for task in (await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))[0]:
                    part = running.pop(task)
                    self._settle(task, part)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            self._todo.extend(part for part in running.values() if part.start not in self._found)

    def _settle(self, task: "asyncio.Task[None]", part: _Part) -> None:
        """Put a part that took too long back, or raise what else went wrong."""
        try:
            task.result()
        except TimeoutError:
            if part.tries + 1 >= TRIES:
                told = f"a part of the job was not answered in time (job_step_s is {self._step_s:g}), {TRIES} times"
                raise HttpError(504, "timeout", told) from None
            self._pace.timed_out()
            self._todo.append(_Part(part.start, part.stop, part.tries + 1))
        except ModelChangedError:
            self._todo.append(part)
            raise

    async def _measure(self, part: _Part) -> None:
        """Ask for a part, and keep the strongest of each cell."""
        if part.tries:
            await self._pause(min(_LONGEST_PAUSE_S, 2.0**part.tries))
        asked, began = self.plan.part(part.start, part.stop), time.monotonic()
        found = await self._patiently(lambda: self._model.measure.remote(asked, timeout_s=self._step_s))
        self._pace.ended(time.monotonic() - began)
        goal, top = asked.ask["goal"], asked.ask["top"]
        table = await asyncio.to_thread(strongest, found.table, asked.ids, goal, top)
        self._found[part.start] = Tabled(found.stamp, [], table, found.counts, found.tokens)
        self.done += asked.perturbations

    async def _patiently(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401  # a deployment's answer
        """Ask, and again after a while if replicas are lost or have too much to do."""
        for tries in range(1, TRIES):
            try:
                return await ask(call, self._step_s + _SLACK_S)
            except (ModelChangedError, TimeoutError):
                raise
            except Exception as error:
                if not isinstance(error, ComputeError) and answerable(error).status not in _PASSING:
                    raise
            await self._pause(min(_LONGEST_PAUSE_S, 2.0**tries))
        return await ask(call, self._step_s + _SLACK_S)
