"""The work of a job on replicas that are slow, lost or given another model: all of it is computed, each piece once."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from cellray.api.schema import PerturbationRequest
from cellray.api.wire import CellTable
from serving.answers import ModelChangedError, Origin, ScreenPlan, Tabled
from serving.batcher import ComputeError
from serving.config import Limits, ModelOptions
from serving.faults import HttpError
from serving.working import Pace, Work
from tests.serving.test_background import Answer, measured, plan_of

ASKED = PerturbationRequest.model_validate({"cells": [{"id": "", "counts": []}]})
CELLS = CellTable(["c0"], ["g"], np.array([0, 1]), np.zeros(1, np.int32), np.ones(1))


class Replicas:
    """Stand where the handle of a model's deployment does; keep what they were asked."""

    def __init__(
        self,
        measure: Callable[[ScreenPlan], Awaitable[Tabled]] = measured,
        plans: tuple[ScreenPlan, ...] = (),
    ) -> None:
        self.measure = SimpleNamespace(remote=self._measure)
        self.perturb = SimpleNamespace(remote=self._plan)
        self.asked: list[ScreenPlan] = []
        self.at_once = self.most_at_once = 0
        self._answer, self._plans = measure, list(plans)

    def _measure(self, part: ScreenPlan, timeout_s: float) -> Answer:
        self.asked.append(part)
        return Answer(self._counted(part))

    async def _counted(self, part: ScreenPlan) -> Tabled:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(part)
        finally:
            self.at_once -= 1

    def _plan(self, cells: CellTable, request: PerturbationRequest, at_once: int, most: int) -> Answer:
        assert (cells, request, at_once, most) == (CELLS, ASKED, 0, 99)

        async def planned() -> ScreenPlan:
            return self._plans.pop(0)

        return Answer(planned())  # type: ignore[arg-type]


def planned(pieces: int, digest: str = "d") -> ScreenPlan:
    plan = plan_of(1, pieces)
    stamp = plan.stamp.model_copy(update={"digest": digest})
    return replace(plan, stamp=stamp, origin=Origin(CELLS, ASKED, 99), ask={"goal": None, "top": None})


def run(replicas: Replicas, plan: ScreenPlan, **options: int) -> tuple[Tabled, Work, list[float]]:
    """Do the work; return its result and for how long it would have paused."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    work = Work(plan, replicas, ModelOptions(uri="m", **options), Limits(), pause)  # type: ignore[arg-type]
    return asyncio.run(asyncio.wait_for(work.run(), 120)), work, pauses


def numbers(found: Tabled) -> list[int]:
    return sorted(found.table["perturbation"].to_pylist())


def sizes(replicas: Replicas) -> list[int]:
    return [len(part.pieces) for part in replicas.asked]


def test_what_is_too_slow_is_asked_again_in_smaller_parts() -> None:
    async def slow(part: ScreenPlan) -> Tabled:
        if len(part.pieces) > 1:
            raise TimeoutError
        return await measured(part)

    replicas = Replicas(slow)
    found, work, pauses = run(replicas, planned(8))
    assert numbers(found) == list(range(16))
    assert work.done == 16
    assert sizes(replicas)[:3] == [4, 2, 1]
    assert found.counts == {"perturbations": 16}
    assert set(pauses) <= {2.0, 4.0, 8.0, 16.0, 32.0}


def test_what_stays_too_slow_ends_the_job() -> None:
    async def slow(part: ScreenPlan) -> Tabled:
        if any(piece.first == 4 for piece in part.pieces):
            raise TimeoutError
        return await measured(part)

    replicas = Replicas(slow)
    with pytest.raises(HttpError, match="not answered in time"):
        run(replicas, planned(5))
    asked = [[piece.first for piece in part.pieces] for part in replicas.asked]
    assert [each for each in asked if each[-1] >= 4] == [[0, 2, 4, 6], [8], [4, 6], [4], [6], [4], [4], [4]]


@pytest.mark.parametrize("error", [ActorDiedError(), ComputeError("it failed")])
def test_lost_replicas_are_waited_for(error: Exception) -> None:
    left = [8]

    async def lost(part: ScreenPlan) -> Tabled:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return await measured(part)

    found, work, pauses = run(Replicas(lost), planned(4))
    assert numbers(found) == list(range(8))
    assert pauses == [2.0, 4.0, 8.0, 16.0]  # each time two replicas were asked
    assert work.done == 8


def test_one_replica_is_asked_one_thing_at_a_time_and_more_are_when_it_goes_well() -> None:
    one, many = Replicas(), Replicas()
    run(one, planned(40))
    assert one.most_at_once == 1
    run(many, planned(40), max_replicas=3)
    assert 1 < many.most_at_once <= 3  # how soon depends on how fast parts are done
    assert len(many.asked[0].pieces) == 4
    pace = Pace(1, 8)
    for _ in range(3):
        pace.ended(1.0)
    pace.ended(20.0)
    assert (pace.calls, pace.pieces) == (4, 4)
    pace.timed_out()
    assert (pace.calls, pace.pieces) == (2, 2)
    for _ in range(5):
        pace.timed_out()
    assert (pace.calls, pace.pieces) == (1, 1)


def test_a_job_whose_model_changed_is_planned_anew() -> None:
    """The new model cuts the work otherwise; nothing of the old one is left in the result."""

    async def new(part: ScreenPlan) -> Tabled:
        if part.stamp.digest == "old" and part.pieces[0].first >= 8:
            raise ModelChangedError("m/1 was replaced by m/2")
        return await measured(part)

    replicas = Replicas(new, (planned(3, "new"),))
    found, work, pauses = run(replicas, planned(9, "old"))
    assert numbers(found) == list(range(6))
    assert (work.done, found.stamp.digest, work.plan.perturbations) == (6, "new", 6)
    assert pauses == []


def test_replicas_that_hold_old_and_new_versions_are_waited_for() -> None:
    refusals = [2]

    async def either(part: ScreenPlan) -> Tabled:
        if part.pieces[0].first == 8 and refusals[0]:
            refusals[0] -= 1
            raise ModelChangedError("m/1 was replaced by m/2")
        return await measured(part)

    replicas = Replicas(either, (planned(9), planned(9)))
    found, work, pauses = run(replicas, planned(9), max_replicas=2, reload_s=7)
    assert numbers(found) == list(range(18))
    assert work.done == 18
    assert pauses == [7.0, 7.0]
    assert Counter(part.pieces[0].first for part in replicas.asked)[0] == 1  # what was found stays


def test_a_model_that_changes_without_end_ends_the_job() -> None:
    async def changed(part: ScreenPlan) -> Tabled:
        raise ModelChangedError("m/1 was replaced by m/2")

    replicas = Replicas(changed, tuple(planned(2, str(i)) for i in range(9)))
    with pytest.raises(HttpError, match="replaced by m/2 while the job ran, and again"):
        run(replicas, planned(2))
    assert len(replicas.asked) == 5
