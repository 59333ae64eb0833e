"""Jobs: their turns, their end in every way, and who may see them. Small objects stand where handles of replicas do."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from ray.exceptions import ActorDiedError

from cellray.api.schema import CellNote, ModelStamp
from cellray.data.collate import TokenRows
from cellray.errors import InputError
from cellray.shift_schema import shift_schema
from serving.answers import ModelChangedError, Piece, ScreenPlan, Tabled
from serving.background import Jobs
from serving.config import Limits, ModelOptions
from serving.draining import InFlight
from serving.faults import HttpError

STAMP = ModelStamp(name="m", uri="m", digest="d", vocabulary_digest="v")
ASK = {"goal": None, "top": 2}


def plan_of(cells: int, pieces: int) -> ScreenPlan:
    """Three tokens a cell, `pieces` pieces of two perturbations each."""
    notes = [CellNote(id=f"c{i}", genes_given=3, genes_mapped=3, tokens=3, truncated=False) for i in range(cells)]
    rows = TokenRows(np.arange(3 * cells, dtype=np.uint16), np.arange(cells + 1) * 3)
    own = [Piece(cell, 2 * i, 2 * i + 2, 2) for cell in range(cells) for i in range(pieces)]
    return ScreenPlan(STAMP, notes, ASK, [note.id for note in notes], rows, own, 2 * len(own), 6 * len(own))


class Handle:
    """Stands where Serve's handle does: `measure.remote(part)` is awaited."""

    def __init__(self, answer: Callable[[ScreenPlan], Awaitable[Tabled]], plan: object = None) -> None:
        self.measure, self.perturb = self, SimpleNamespace(remote=plan)
        self.answer = answer

    def remote(self, part: ScreenPlan, timeout_s: float) -> "Answer":
        assert timeout_s == 600
        return Answer(self.answer(part))


class Answer:
    """Stands where Serve's response does."""

    def __init__(self, answer: Awaitable[Tabled]) -> None:
        self._answer = answer

    def __await__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204
        return self._answer.__await__()

    def cancel(self) -> None:
        """Nothing goes on."""


async def measured(part: ScreenPlan) -> Tabled:
    """Similarity falls with the perturbation's number: the last are the strongest."""
    await asyncio.sleep(0)
    rows = [(part.ids[p.cell], number) for p in part.pieces for number in range(p.first, p.stop)]
    columns = {
        "cell_id": [name for name, _ in rows],
        "perturbation": [number for _, number in rows],
        "genes": [f"g{number}" for _, number in rows],
        "rank": [0] * len(rows),
        "cell_genes": [3] * len(rows),
        "similarity": [1 - number / 100 for _, number in rows],
    }
    return Tabled(STAMP, [], pa.table(columns, schema=shift_schema((), ())), {"perturbations": len(rows)}, 0)


def jobs_of(answer: Callable[[ScreenPlan], Awaitable[Tabled]], **limits: float) -> Jobs:
    options = ModelOptions(uri="m", max_replicas=2)
    return Jobs({"m": Handle(answer)}, {"m": options}, Limits(**limits), _at_once)  # type: ignore[arg-type]


async def _at_once(seconds: float) -> None:
    await asyncio.sleep(0)


async def ended(jobs: Jobs, job: str) -> str:
    while (await jobs.status(job, "me")).state in ("queued", "running"):
        await asyncio.sleep(0.001)
    return (await jobs.status(job, "me")).state


async def begun(jobs: Jobs, job: str, owner: str) -> None:
    """Wait until a job has its turn: some rounds of the loop after the one before is over."""
    while (await jobs.status(job, owner)).state == "queued":
        await asyncio.sleep(0.001)


def test_the_strongest_of_all_pieces_are_kept() -> None:
    async def ask() -> None:
        jobs = jobs_of(measured)
        job = (await jobs.submit(plan_of(3, 7), "me")).id
        assert await ended(jobs, job) == "done"
        result = await jobs.result(job, "me")
        assert result.table["cell_id"].to_pylist() == ["c0", "c0", "c1", "c1", "c2", "c2"]
        assert result.table["perturbation"].to_pylist() == [13, 12] * 3
        assert result.counts == {"perturbations": 42, "rows left out": 36}
        status = await jobs.status(job, "me")
        assert (status.done, status.total, status.progress) == (42, 42, 1.0)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelChangedError("m/1 was replaced by m/2"), "replaced by m/2"),
        (InputError("m", "a rule", "no", "Mend it."), "a rule; found no"),
        (TimeoutError(), "not answered in time (job_step_s is 600), 6 times"),
        (ActorDiedError(), "the replica that computed this was lost"),
    ],
)
def test_a_job_that_fails_says_why(error: Exception, said: str) -> None:
    async def fail(part: ScreenPlan) -> Tabled:
        if part.pieces[0].first:
            raise error
        return await measured(part)

    async def ask() -> None:
        jobs = jobs_of(fail)
        job = (await jobs.submit(plan_of(1, 20), "me")).id
        assert await ended(jobs, job) == "failed"
        assert said in str((await jobs.status(job, "me")).error)
        with pytest.raises(HttpError, match="failed"):
            await jobs.result(job, "me")

    asyncio.run(ask())


def test_one_after_the_other_as_many_as_may_wait() -> None:
    gate = asyncio.Event()

    async def slow(part: ScreenPlan) -> Tabled:
        await gate.wait()
        return await measured(part)

    async def ask() -> None:
        jobs = jobs_of(slow, jobs_waiting=2)
        first, second = [(await jobs.submit(plan_of(1, 1), "me")).id for _ in range(2)]
        await begun(jobs, first, "me")
        assert [(await jobs.status(job, "me")).state for job in (first, second)] == ["running", "queued"]
        with pytest.raises(HttpError) as refused:
            await jobs.submit(plan_of(1, 1), "me")
        assert refused.value.status == 429
        assert (await jobs.cancel(first, "me")).state == "cancelled"
        gate.set()
        assert await ended(jobs, second) == "done"

    asyncio.run(ask())


def test_one_owner_cannot_take_all_places() -> None:
    async def never(part: ScreenPlan) -> Tabled:
        await asyncio.Event().wait()
        raise AssertionError

    async def ask() -> None:
        jobs = jobs_of(never, jobs_waiting=3, jobs_per_key=2)
        mine = [(await jobs.submit(plan_of(1, 1), "me")).id for _ in range(2)]
        with pytest.raises(HttpError, match="jobs_per_key"):
            await jobs.submit(plan_of(1, 1), "me")
        await jobs.submit(plan_of(1, 1), "you")
        with pytest.raises(HttpError, match="jobs_waiting"):
            await jobs.submit(plan_of(1, 1), "she")
        await jobs.cancel(mine[0], "me")
        await jobs.submit(plan_of(1, 1), "me")
        await begun(jobs, mine[1], "me")
        told = await jobs.beat("p", InFlight(2, draining=True))
        assert told["jobs"] == {"queued": 2, "running": 1, "done": 0, "failed": 0, "cancelled": 1}
        assert not told["draining"]
        assert await jobs.drain() == (2, True, 3)
        assert (await jobs.beat("p", InFlight(0, draining=True)))["draining"]
        with pytest.raises(HttpError, match="the server stops"):
            await jobs.submit(plan_of(1, 1), "she")
        for job in [each for owner in ("me", "you") for each in await jobs.all(owner)]:
            with suppress(HttpError):
                await jobs.cancel(job.id, "me")
                await jobs.cancel(job.id, "you")

    asyncio.run(ask())


def test_jobs_are_their_owners_and_forgotten_in_time() -> None:
    async def ask() -> None:
        jobs = jobs_of(measured, job_ttl_s=3600)
        job = (await jobs.submit(plan_of(1, 1), "me")).id
        for act in (jobs.status, jobs.result, jobs.cancel):
            with pytest.raises(HttpError, match="not_found"):
                await act(job, "you")
        assert await jobs.all("you") == []
        assert await ended(jobs, job) == "done"
        ended_at = jobs._jobs[job].ended
        jobs._jobs[job].ended = ended_at - 3590
        assert (await jobs.status(job, "me")).state == "done"
        jobs._jobs[job].ended = ended_at - 3601
        with pytest.raises(HttpError, match="not_found"):
            await jobs.status(job, "me")

    asyncio.run(ask())


def test_the_oldest_results_make_room_for_the_latest() -> None:
    async def ask() -> None:
        one = jobs_of(measured)
        first = (await one.submit(plan_of(1, 1), "me")).id
        assert await ended(one, first) == "done"
        size = (await one.result(first, "me")).nbytes
        jobs, made = jobs_of(measured, jobs_mb=2.5 * size / 1e6), []
        for number in range(4):
            made.append((await jobs.submit(plan_of(1, 1), "me")).id)
            assert await ended(jobs, made[number]) == "done"
        for job in made[:2]:
            with pytest.raises(HttpError, match="dropped to make room") as gone:
                await jobs.result(job, "me")
            assert (gone.value.status, gone.value.limit) == (410, ("jobs_mb", 2.5 * size / 1e6))
            status = await jobs.status(job, "me")
            assert (status.state, status.result, status.error) == (
                "done",
                None,
                "its result was dropped to make room for later ones",
            )
        for job in made[2:]:
            assert (await jobs.result(job, "me")).table.num_rows == 2
        small = jobs_of(measured, jobs_mb=1e-6)
        last = (await small.submit(plan_of(1, 1), "me")).id
        assert await ended(small, last) == "done"
        assert (await small.result(last, "me")).table.num_rows == 2  # the latest stays, however large

    asyncio.run(ask())


def test_what_a_running_job_has_found_counts_as_held() -> None:
    async def never(part: ScreenPlan) -> Tabled:
        await asyncio.Event().wait()
        raise AssertionError

    async def ask() -> None:
        plan = plan_of(1, 4)
        jobs = jobs_of(never, jobs_mb=2.5 * plan.nbytes / 1e6)
        first = (await jobs.submit(plan, "me")).id
        work = jobs._jobs[first].work
        work._found[0] = Tabled(STAMP, [], pa.table({"x": np.zeros(plan.nbytes)}), {}, 0)
        with pytest.raises(HttpError) as refused:
            await jobs.submit(plan, "you")
        assert refused.value.limit == ("jobs_mb", 2.5 * plan.nbytes / 1e6)
        await jobs.cancel(first, "me")

    asyncio.run(ask())


def test_jobs_that_wait_hold_so_much_and_no_more() -> None:
    async def never(part: ScreenPlan) -> Tabled:
        await asyncio.Event().wait()
        raise AssertionError

    async def ask() -> None:
        plan = plan_of(3, 4)
        jobs = jobs_of(never, jobs_mb=1.5 * plan.nbytes / 1e6)
        first = (await jobs.submit(plan, "me")).id
        with pytest.raises(HttpError, match="hold 0 MB") as refused:
            await jobs.submit(plan, "you")
        assert (refused.value.status, refused.value.limit) == (429, ("jobs_mb", 1.5 * plan.nbytes / 1e6))
        await jobs.cancel(first, "me")  # before its task began
        assert jobs._jobs[first].work.plan.nbytes < plan.nbytes / 10
        second = (await jobs.submit(plan, "you")).id
        await jobs.cancel(second, "you")

    asyncio.run(ask())
