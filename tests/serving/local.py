"""The HTTP side of a server in this process, without Ray: small objects stand where Serve's handles do."""

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np

from cellray.api.schema import CellNote, PerturbationRequest
from cellray.api.wire import CellTable
from serving.access import Gate, make_gate
from serving.answers import Embedded, ScreenPlan, Tabled
from serving.background import Jobs
from serving.batcher import Load
from serving.config import ServingConfig
from serving.routes import make_app
from serving.service import Service
from tests.serving.test_background import STAMP, Answer, measured, plan_of

CELLS: dict[str, Any] = {"model": "m", "cells": [{"id": "a", "genes": ["G1", "G2", "G3"], "counts": [1, 2, 3]}]}


class Handle:
    """Calls coroutines of an object as Serve's handle does: `handle.method.remote(...)`, which can be awaited."""

    def __init__(self, target: object) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        call = getattr(self._target, name)
        return SimpleNamespace(remote=lambda *given, **named: Answer(call(*given, **named)))


class Model:
    """Stands where a replica does: two numbers a cell, and plans of two perturbations a cell."""

    def __init__(self) -> None:
        self.planned = 0

    async def describe(self) -> dict[str, Any]:
        about = {
            "layers": 2,
            "width": 2,
            "input_size": 16,
            "genes": 30,
            "poolings": ["cell"],
            "heads": [],
            "states": [],
        }
        return {"stamp": STAMP, "load": Load(), **about}

    async def embed(self, cells: CellTable, pooling: str, layer: int) -> Embedded:
        notes = [CellNote(id=name, genes_given=3, genes_mapped=3, tokens=3, truncated=False) for name in cells.ids]
        return Embedded(STAMP, notes, np.ones((len(cells), 2), np.float32))

    async def perturb(self, cells: CellTable, request: PerturbationRequest, at_once: int, most: int) -> ScreenPlan:
        self.planned += 1
        return plan_of(len(cells), 1)

    async def measure(self, part: ScreenPlan, timeout_s: float) -> Tabled:
        return await measured(part)


class Local:
    """A server in this process, of the model `m`; `async with` gives a client of it.

    Parameters
    ----------
    limits, options
        Of the server and of the model, besides the defaults.
    gate
        Who may ask; None: anybody.
    jobs
        Stands where the jobs' actor does; None: the real thing.
    """

    def __init__(
        self,
        limits: Mapping[str, float] = {},
        options: Mapping[str, float] = {},
        gate: Gate | None = None,
        jobs: object | None = None,
    ) -> None:
        self.config = ServingConfig.model_validate(
            {"models": {"m": {"uri": "m", **options}}, "limits": limits, "access": {"auth": "none"}}
        )
        self.model = Model()
        models = {"m": Handle(self.model)}
        self.jobs = jobs or Jobs(models, dict(self.config.models), self.config.limits)
        self.service = Service(self.config, models, Handle(self.jobs), gate or make_gate(self.config))
        self.app = make_app(self.service)

    async def __aenter__(self) -> httpx2.AsyncClient:
        known = self.service._info("m", await self.model.describe())
        self.service._known["m"] = (time.monotonic(), known)
        self._client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.app), base_url="http://127.0.0.1")
        return self._client

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()
