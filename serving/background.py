"""Long screens: jobs that go on when the asker hangs up, with progress, results for a while, and cancellation.

One actor remembers them. It holds no model: it asks the replicas for a few pieces at a time, at low priority, so that a
lost replica costs a few pieces and a newly loaded version begins a job anew (`serving.working`). If this actor is lost,
so are its jobs.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args

from cellray.api.schema import JobState, JobStatus
from serving.answers import ScreenPlan, Tabled
from serving.config import Limits, ModelOptions
from serving.draining import Draining, InFlight
from serving.faults import HttpError, answerable
from serving.repeating import HEADER, Repeat
from serving.working import Work

_ENDED: frozenset[JobState] = frozenset(("done", "failed", "cancelled"))


@dataclass(eq=False)
class _Job:
    """A screen, how far it is, and who asked."""

    work: Work
    owner: str
    repeat: Repeat | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    state: JobState = "queued"
    ended: float = 0.0
    result: Tabled | None = None
    error: str | None = None
    task: "asyncio.Task[None] | None" = None

    def status(self, *, named: bool = False) -> JobStatus:
        """Return how far it is; `named`: and whose it is."""
        done, total, left = self.work.done, max(1, self.work.plan.perturbations), None
        if self.state == "running" and done:
            left = round((total - done) * (time.monotonic() - self.work.begun) / done, 1)
        return JobStatus(
            id=self.id,
            state=self.state,
            progress=1.0 if self.state == "done" else min(1.0, done / total),
            done=done,
            total=self.work.plan.perturbations,
            seconds_left=left,
            result=f"/v1/jobs/{self.id}/result" if self.result is not None else None,
            error=self.error,
            created=self.created,
            key=self.owner if named else None,
        )


class Jobs:
    """Runs screens in the background.

    Parameters
    ----------
    models
        Handles of the models' deployments, by name.
    options
        Of these models.
    limits
        How many jobs are remembered, for how long, and how much they may hold.
    pause
        Waits for seconds before something is asked again.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        options: Mapping[str, ModelOptions],
        limits: Limits,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._models, self._options, self._limits, self._pause = models, options, limits, pause
        self._jobs: dict[str, _Job] = {}
        self._turn = {name: asyncio.Lock() for name in models}
        self._draining, self._room = Draining(), limits.jobs_mb * 1e6

    async def beat(self, process: str, flight: InFlight) -> dict[str, Any]:
        """Hear what a process has in flight; tell it whether to refuse more, and how many jobs there are."""
        states: Counter[str] = Counter(job.state for job in self._jobs.values())
        return {
            "draining": self._draining.hear(process, flight),
            "jobs": {state: states[state] for state in get_args(JobState)},
        }

    async def drain(self) -> tuple[int, bool, int]:
        """Let nothing in any more.

        Returns
        -------
        tuple[int, bool, int]
            Requests in flight, whether all processes refuse more, and jobs that have not ended.
        """
        self._draining.begun = True
        return *self._draining.left(), sum(job.state not in _ENDED for job in self._jobs.values())

    async def repeated(self, owner: str, repeat: Repeat) -> JobStatus | None:
        """Return the job that a request of this key began, None if none did.

        Raises
        ------
        HttpError
            422: that request asked something else.
        """
        self._forget()
        for job in self._jobs.values():
            if job.owner == owner and job.repeat is not None and job.repeat.key == repeat.key:
                if job.repeat.digest != repeat.digest:
                    message = f"{HEADER}: job {job.id} was begun with this key by another request; take a new key"
                    raise HttpError(422, "key_reused", message)
                return job.status()
        return None

    async def submit(self, plan: ScreenPlan, owner: str, repeat: Repeat | None = None) -> JobStatus:
        """Begin a job; or return the one that the same request began before, if it brought a key.

        Raises
        ------
        HttpError
            422: see `repeated`; 429: too many wait already, of all or of this owner, or they hold too much memory;
            503: the server stops.
        """
        self._forget()
        if repeat is not None and (known := await self.repeated(owner, repeat)) is not None:
            return known
        if self._draining.begun:
            raise HttpError(503, "draining", "the server stops; ask again later", None, 30.0)
        owners = [job.owner for job in self._jobs.values() if job.state not in _ENDED]
        for limit, number, most in (
            ("jobs_waiting", len(owners), self._limits.jobs_waiting),
            ("jobs_per_key", owners.count(owner), self._limits.jobs_per_key),
        ):
            if number >= most:
                raise HttpError(429, "queue_full", f"too many jobs wait or run: {limit}", (limit, most), 30.0)
        held = sum(job.work.nbytes for job in self._jobs.values() if job.state not in _ENDED)
        if owners and held + plan.nbytes > self._room:
            message = f"the jobs that wait or run hold {held / 1e6:,.0f} MB; this one needs {plan.nbytes / 1e6:,.0f}"
            raise HttpError(429, "queue_full", message, ("jobs_mb", self._limits.jobs_mb), 30.0)
        name = plan.stamp.name
        job = _Job(Work(plan, self._models[name], self._options[name], self._limits, self._pause), owner, repeat)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job))
        return job.status()

    async def status(self, job_id: str, owner: str | None) -> JobStatus:
        """Return how far a job is.

        Parameters
        ----------
        owner
            Who asks; None: one who may see everybody's jobs, and whose they are.

        Raises
        ------
        HttpError
            404: there is none of this id, or it is another's.
        """
        return self._find(job_id, owner).status(named=owner is None)

    async def all(self, owner: str | None) -> list[JobStatus]:
        """Return the owner's jobs, or everybody's if it is None, the oldest first."""
        self._forget()
        return [job.status(named=owner is None) for job in self._jobs.values() if owner in (None, job.owner)]

    async def result(self, job_id: str, owner: str) -> Tabled:
        """Return the result of a job that is done.

        Raises
        ------
        HttpError
            404; 409: it is not done; 410: the result was dropped.
        """
        job = self._find(job_id, owner)
        if job.state == "done" and job.result is None:
            raise HttpError(410, "result_dropped", f"{job.error}; ask again", ("jobs_mb", self._limits.jobs_mb))
        if job.result is None:
            raise HttpError(
                409,
                job.state if job.state in _ENDED else "not_done",
                f"the job is {job.state}{': ' + job.error if job.error else ''}",
            )
        return job.result

    async def cancel(self, job_id: str, owner: str | None) -> JobStatus:
        """Stop a job, or forget one that has ended; see `status` for `owner`.

        Raises
        ------
        HttpError
            404: there is none of this id, or it is another's.
        """
        job = self._find(job_id, owner)
        if job.state not in _ENDED:
            if job.state == "queued":  # its task may never begin, and so never let go of the cells
                job.work.release()
            job.state, job.ended = "cancelled", time.monotonic()
            if job.task is not None:
                job.task.cancel()
        else:
            del self._jobs[job.id]
        return job.status(named=owner is None)

    def _find(self, job_id: str, owner: str | None) -> _Job:
        self._forget()
        job = self._jobs.get(job_id)
        if job is None or owner not in (None, job.owner):
            raise HttpError(404, "not_found", "there is no such job, or no longer")
        return job

    def _forget(self) -> None:
        """Drop jobs that ended long ago, the oldest of too many, and the oldest results if all take too much room."""
        ended = sorted((job for job in self._jobs.values() if job.state in _ENDED), key=lambda job: job.ended)
        surplus = len(self._jobs) - self._limits.jobs_kept
        before = time.monotonic() - self._limits.job_ttl_s
        for number, job in enumerate(ended):
            if number < surplus or job.ended < before:
                del self._jobs[job.id]
        held = 0
        for job, size in [(job, job.result.nbytes) for job in reversed(ended) if job.result is not None]:
            latest, held = held == 0, held + size
            if held > self._room and not latest:
                job.result, job.error = None, "its result was dropped to make room for later ones"

    async def _run(self, job: _Job) -> None:
        try:
            async with self._turn[job.work.plan.stamp.name]:
                job.state = "running"
                job.result = await job.work.run()
            job.state = "done"
        except asyncio.CancelledError:
            job.state = "cancelled"
        except Exception as error:
            job.state, job.error = "failed", answerable(error).message
        finally:
            job.ended = time.monotonic()
            job.task = None
            job.work.release()
            self._forget()
