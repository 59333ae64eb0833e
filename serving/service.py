"""What the endpoints share in one ingress process: models and their queues, what is known of them, who may ask."""

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from cellray.api.schema import LimitsInfo, ModelInfo
from serving.access import Gate
from serving.admission import Queue, Room
from serving.bodies import Parsers
from serving.config import ServingConfig
from serving.dispatch import ask
from serving.draining import InFlight
from serving.faults import HttpError
from serving.metrics import Metrics
from serving.upload import Uploads

logger = logging.getLogger("ray.serve")

_POLL_S = 2.0
_BEAT_S = 0.5
"""How often a process tells the jobs' actor what it has in flight, and hears whether the server stops."""
_PATIENCE_S = 20.0
"""How long a model counts as ready after it was last heard of."""


class Service:
    """State of an ingress process.

    Parameters
    ----------
    config
        Of the server.
    models
        Handles of the models' deployments, by name.
    jobs
        Handle of the deployment of jobs.
    gate
        Who may ask.
    """

    def __init__(self, config: ServingConfig, models: Mapping[str, Any], jobs: Any, gate: Gate) -> None:  # noqa: ANN401
        self.config, self.models, self.jobs, self.gate = config, models, jobs, gate
        self.queues = {name: Queue(name, options.max_queued_cells) for name, options in config.models.items()}
        self.bodies = Room("bodies_at_once", config.limits.bodies_at_once)
        self.uploads, self.parsers = Uploads(config.limits), Parsers()
        self.metrics = Metrics(self.queues)
        self.flight = InFlight()
        self._name = uuid.uuid4().hex
        self._known: dict[str, tuple[float, ModelInfo]] = {}

    async def poll(self) -> None:
        """Ask the models for ever what they are, so readiness costs a request nothing; and whether the server stops."""
        await asyncio.gather(self._beat(), *(self._poll(name) for name in self.models))

    async def _beat(self) -> None:
        while True:
            try:
                told = await ask(lambda: self.jobs.beat.remote(self._name, self.flight), _PATIENCE_S)
                self.flight.draining = told["draining"]
                for state, number in told["jobs"].items():
                    self.metrics.jobs.labels(state).set(number)
            except Exception as error:  # it starts, or was lost: asked again
                logger.debug("the jobs' actor does not answer: %s", error)
            await asyncio.sleep(_BEAT_S)

    async def _poll(self, name: str) -> None:
        while True:
            try:
                told = await ask(self.models[name].describe.remote, _PATIENCE_S)
                self._known[name] = (time.monotonic(), self._info(name, told))
                for what, value in vars(told["load"]).items():
                    self.metrics.replica.labels(name, what).set(value)
            except Exception as error:  # a replica that starts or is lost: asked again
                logger.debug("model %s does not answer: %s", name, error)
            self.metrics.ready.labels(name).set(self.ready()[name])
            await asyncio.sleep(_POLL_S)

    def _info(self, name: str, told: Mapping[str, Any]) -> ModelInfo:
        queued = self.config.models[name].max_queued_cells
        limits = self.config.limits.model_dump(include=set(LimitsInfo.model_fields))
        stamp = told["stamp"].model_dump()
        about = {what: value for what, value in told.items() if what not in ("load", "stamp")}
        return ModelInfo(**stamp, **about, limits=LimitsInfo(**limits, max_queued_cells=queued))

    def infos(self) -> list[ModelInfo]:
        """Return what is known of the models."""
        return [self._known[name][1] for name in self.models if name in self._known]

    def ready(self) -> dict[str, bool]:
        """Tell of each model whether it was heard of lately."""
        now = time.monotonic()
        return {name: name in self._known and now - self._known[name][0] < _PATIENCE_S for name in self.models}

    def state(self) -> Literal["ok", "starting", "draining"]:
        """Tell whether requests are let in, and answered."""
        if self.flight.draining:
            return "draining"
        return "ok" if all(self.ready().values()) else "starting"

    def check_queue(self, named: str | None) -> None:
        """Refuse before the body is read, where it is known that there is no room.

        Raises
        ------
        HttpError
            429, or 404: there is no such model.
        """
        if named is not None:
            self.queue(named).check()
        elif all(queue.cells >= self.config.models[name].max_queued_cells for name, queue in self.queues.items()):
            next(iter(self.queues.values())).check()

    def queue(self, name: str) -> Queue:
        """Return the queue of a model.

        Raises
        ------
        HttpError
            404: there is no such model.
        """
        if name not in self.queues:
            message = f"there is no model {name[:100]!r}; there are {', '.join(self.queues)}"
            raise HttpError(404, "unknown_model", message)
        return self.queues[name]

    async def ask(self, name: str, method: str, *arguments: Any) -> Any:  # noqa: ANN401
        """Ask a model; see `serving.dispatch.ask`."""
        handle = getattr(self.models[name], method)
        retries = self.metrics.retries.labels(name)
        return await ask(lambda: handle.remote(*arguments), self.config.limits.request_timeout_s, retries.inc)

    async def ask_jobs(self, method: str, *arguments: Any) -> Any:  # noqa: ANN401
        """Ask the jobs, once: a job must not be begun twice."""
        handle = getattr(self.jobs, method)
        return await ask(lambda: handle.remote(*arguments), self.config.limits.request_timeout_s, attempts=1)
