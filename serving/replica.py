"""A replica: one model, its queue, and the version that takes its place when an alias moves.

Runs in an actor of Ray Serve; what it is asked are coroutines, what it computes runs in the batcher's thread.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from cellray import prediction_schema
from cellray.api.schema import PerturbationRequest
from cellray.api.wire import CellTable
from cellray.data.collate import TokenRows
from cellray.infer.predict_worker import answer_columns
from cellray.models import open_model
from cellray.tracking.registry import find_version, is_registered_name
from cellray.tracking.server import tracking_uri
from serving.answers import Embedded, Origin, ScreenPlan, Tabled
from serving.batcher import Batcher
from serving.config import ModelOptions
from serving.encoding import Encoded
from serving.example import example_cells
from serving.handover import Sample
from serving.loaded import LoadedModel, set_threads
from serving.perturbing import Screens, asked_of, tabled

logger = logging.getLogger("ray.serve")

ASKED, JOB = 1, 2
"""Priorities of screens that somebody waits for, and of jobs."""


_FAILURES = 3
"""Computations in a row that failed through no fault of the asker: the replica is ill."""
_STUCK_S = 60.0
"""So long no computation takes: requests are cut into batches and steps of about a second."""


class ModelReplica:
    """Holds a model and answers about cells.

    Parameters
    ----------
    name
        What requests call the model.
    options
        Where it is and how it computes.
    timeout_s
        Longest that a request may wait.
    """

    def __init__(self, name: str, options: ModelOptions, timeout_s: float) -> None:
        set_threads(options)
        self._name, self._options, self._timeout = name, options, timeout_s
        self._model = LoadedModel(name, options)
        self._model.prepare()
        self._screens = Screens(self._model)
        self._batcher = Batcher(self._model.token_budget, options.max_wait_ms / 1000)
        self._following: asyncio.Task[None] | None = None

    async def describe(self) -> dict[str, Any]:
        """Return what the model is, and the load of the replica."""
        model = self._model
        return {
            "stamp": model.stamp,
            "layers": model.directory.n_layers,
            "width": model.width,
            "input_size": model.input_size,
            "genes": len(model.vocabulary.medians),
            "poolings": model.poolings,
            "heads": model.heads,
            "states": list(model.states),
            "load": self._batcher.load,
        }

    async def embed(self, cells: CellTable, pooling: str, layer: int) -> Embedded:
        """Embed cells.

        Raises
        ------
        InputError
            The cells or what is asked of them make no sense.
        """
        model = self._model
        model.check(pooling, layer)
        encoded = await asyncio.to_thread(model.encode, cells)
        key = (id(model), "embed", pooling, layer)

        def compute(rows: TokenRows) -> Sequence[Any]:
            return model.embed(rows, pooling, layer)

        found = await self._batcher.rows(key, encoded.rows, compute, self._timeout)
        if pooling == "gene":
            return _per_gene(model, encoded, found)
        embedding_nd = np.full((len(cells), model.width), np.nan, np.float32)
        for place, row in zip(encoded.place_r, found, strict=True):
            embedding_nd[place] = row
        return Embedded(model.stamp, encoded.notes, embedding_nd)

    async def predict(self, cells: CellTable) -> Tabled:
        """Return what a fine-tuned model tells of cells, or of their genes if it tells nothing of cells.

        Raises
        ------
        InputError
            The model is not fine-tuned, or the cells make no sense.
        """
        model = self._model
        heads, level = model.prediction_heads()
        encoded = await asyncio.to_thread(model.encode, cells)
        found = await self._batcher.rows((id(model), "predict"), encoded.rows, model.predict, self._timeout)
        names = {head.name: head.classes for head in heads}
        if not found:
            fields = [_CELL, *([_GENE] if level == "gene" else []), *prediction_schema.prediction_fields(names)]
            return Tabled(model.stamp, encoded.notes, pa.schema(fields).empty_table())
        answers = {name: np.concatenate([each[name] for each in found]) for name in names}
        rows = [len(each[heads[0].name]) for each in found]
        ids = np.repeat([encoded.notes[place].id for place in encoded.place_r], rows)
        columns: list[Any] = [pa.array(ids.tolist(), pa.string())]
        if level == "gene":
            columns.append(pa.array(_gene_names(model, encoded.rows), pa.string()))
        fields = [_CELL, *([_GENE] if level == "gene" else []), *prediction_schema.prediction_fields(names)]
        table = pa.table([*columns, *answer_columns(heads, answers)], schema=pa.schema(fields))
        return Tabled(model.stamp, encoded.notes, table, tokens=len(encoded.rows.input_ids))

    async def perturb(
        self, cells: CellTable, request: PerturbationRequest, at_once: int, most: int
    ) -> Tabled | ScreenPlan:
        """Perturb genes of cells, or return the plan if it is more than `at_once` tokens.

        Raises
        ------
        InputError
            The cells or what is asked of them make no sense.
        TooMuchError
            It is more than `most` tokens.
        """
        ask, screens, model = asked_of(request), self._screens, self._model
        encoded = await asyncio.to_thread(model.encode, cells)
        screen = await asyncio.to_thread(screens, ask)
        plan = await asyncio.to_thread(screen.plan, encoded, cells.ids, ask, most)
        if plan.tokens > at_once:
            return replace(plan, origin=Origin(cells, request, most))
        return tabled(plan, await self._batcher.steps(screen.measure(plan), ASKED, self._timeout))

    async def measure(self, plan: ScreenPlan, timeout_s: float | None = None) -> Tabled:
        """Compute a part of a job's plan.

        Parameters
        ----------
        timeout_s
            Longest that it may take; None: as long as a request.

        Raises
        ------
        ModelChangedError
            It is another version's of the model.
        """
        screen = await asyncio.to_thread(self._screens.require, plan)
        timeout = self._timeout if timeout_s is None else timeout_s
        return tabled(plan, await self._batcher.steps(screen.measure(plan), JOB, timeout))

    async def example(self) -> Sample:
        """Return some cells that the model knows genes of."""
        model = self._model
        return await asyncio.to_thread(example_cells, model.vocabulary, model.encode)

    async def check_health(self) -> None:
        """Tell Serve that the replica cannot go on, if it cannot; begin to follow the alias.

        Serve asks before the first request and every few seconds then; after three errors it replaces the replica.

        Raises
        ------
        RuntimeError
            The computing thread has ended, computes nothing but errors, or hangs.
        """
        if self._following is None and is_registered_name(self._options.uri):
            self._following = asyncio.create_task(self._follow())
        if not self._batcher.alive:
            raise RuntimeError("the computing thread has ended")
        load = self._batcher.load
        if load.failures >= _FAILURES:
            raise RuntimeError(f"{load.failures} computations failed one after the other")
        if load.turn_s > max(_STUCK_S, self._timeout):
            raise RuntimeError(f"a computation has not ended for {load.turn_s:.0f} s")

    async def _follow(self) -> None:
        """Look the alias up now and then, load what it means beside the old version and swap them.

        Requests that are under way keep the version they began with, so none is lost.
        """
        while True:
            await asyncio.sleep(self._options.reload_s)
            try:
                await self._swap()
            except Exception:  # the old version goes on answering
                logger.exception("model %s cannot be reloaded; %s stays", self._name, self._model.version)

    async def _swap(self) -> None:
        registry = tracking_uri(self._options.tracking_uri)
        wanted = (await asyncio.to_thread(find_version, self._options.uri, registry)).uri
        if wanted == self._model.version:
            return
        started = time.monotonic()
        await asyncio.to_thread(open_model, wanted, registry)  # downloads it, before anything is loaded
        model = await asyncio.to_thread(LoadedModel, self._name, self._options)
        await asyncio.to_thread(model.prepare)
        old, self._model, self._screens = self._model.version, model, Screens(model)
        logger.info("model %s: %s replaced %s in %.1f s", self._name, wanted, old, time.monotonic() - started)


_CELL = pa.field("cell_id", pa.string())
_GENE = pa.field("gene", pa.string())


def _per_gene(model: LoadedModel, encoded: Encoded, found: Sequence[Any]) -> Embedded:
    """Return a row for each gene token."""
    width = model.width
    rows = np.concatenate([np.empty((0, width), np.float32), *found])
    cell_t = np.repeat(np.asarray(encoded.place_r, np.int64), [len(each) for each in found])
    return Embedded(model.stamp, encoded.notes, rows, cell_t, _gene_names(model, encoded.rows))


def _gene_names(model: LoadedModel, rows: TokenRows) -> list[str]:
    """Return the gene of each gene token, row by row."""
    tokens = rows.input_ids[model.gene_v.cpu().numpy()[rows.input_ids]]
    names = model.vocabulary.gene_of_token
    return [names[int(token)] for token in tokens]
