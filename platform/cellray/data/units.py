"""Runs a stage over units of work on Ray; finished parts of an earlier run are kept.

Knows nothing of cells or models: a stage gives the units and a worker that writes one unit's tables.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from cellray.data.parts import Unit, Worker, find_part, make_part
from cellray.errors import InputError, combined
from cellray.schema import PartRecord

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 5.0
_CHECKS_AT_ONCE = 16


@dataclass(frozen=True)
class Pool:
    """How much of a cluster a stage takes.

    Attributes
    ----------
    concurrency
        Tasks or actors at the same time: a number, or (min, max) for actors; None lets Ray choose (tasks only).
    num_cpus, num_gpus
        Of each task or actor.
    """

    concurrency: int | tuple[int, int] | None = None
    num_cpus: float = 1
    num_gpus: float = 0


class _UnitActor:
    """Holds a worker, made once, and does units with it."""

    def __init__(self, make_worker: Callable[[], Worker], output: str) -> None:
        self._worker, self._output = make_worker(), output

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _do(row, self._worker, self._output)


def _do(row: dict[str, Any], worker: Worker, output: str) -> dict[str, Any]:
    unit = Unit(**json.loads(row["unit"]))
    try:
        return {"path": unit.path, "record": make_part(unit, worker, output).model_dump_json(), "error": ""}
    except InputError as error:  # an answer, not a crash: the other units go on
        return {"path": unit.path, "record": "", "error": json.dumps(error.args)}


def run_units(
    stage: str, output: str, units: Sequence[Unit], make_worker: Callable[[], Worker], pool: Pool, *, actors: bool
) -> tuple[PartRecord | InputError, ...]:
    """Do all units on Ray Data; return each one's record, or what was wrong with its input, in the units' order.

    Parameters
    ----------
    stage
        Name for the log.
    output
        The artefact's directory.
    units
        The work; parts that are there already are kept.
    make_worker
        Makes a worker: once an actor, or once a task.
    pool
        Resources.
    actors
        Whether workers are worth keeping (models) or cheap to make (tokenization).
    """
    with ThreadPoolExecutor(_CHECKS_AT_ONCE) as threads:
        found = list(threads.map(lambda unit: find_part(unit, output), units))
    results: dict[str, PartRecord | InputError] = {record.path: record for record in found if record is not None}
    todo = [unit for unit in units if unit.path not in results]
    if results:
        logger.info("%s: %d of %d parts are there from an earlier run", stage, len(results), len(units))
    if todo:
        cells = {unit.path: unit.stop - unit.start for unit in todo}
        progress = _Progress(stage, sum(cells.values()))
        for row in _dataset(output, todo, make_worker, pool, actors=actors).iter_rows():
            error = row["error"]
            done = InputError(*json.loads(error)) if error else PartRecord.model_validate_json(row["record"])
            results[row["path"]] = done
            progress.add(cells[row["path"]])
    return tuple(results[unit.path] for unit in units)


def require_records(results: Sequence[PartRecord | InputError]) -> tuple[PartRecord, ...]:
    """Return the records if all units were done.

    Raises
    ------
    InputError
        Some input was wrong.
    """
    errors = [result for result in results if isinstance(result, InputError)]
    if errors:
        raise combined(errors)
    return tuple(result for result in results if isinstance(result, PartRecord))


def _dataset(output: str, todo: Sequence[Unit], make_worker: Callable[[], Worker], pool: Pool, *, actors: bool) -> Any:  # noqa: ANN401
    """Return the lazy Ray dataset that does the units, one task each."""
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    rows = [{"unit": json.dumps(asdict(unit))} for unit in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    resources = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus or None}
    if not actors:
        size = pool.concurrency if isinstance(pool.concurrency, int) else None
        return dataset.map(lambda row: _do(row, make_worker(), output), compute=TaskPoolStrategy(size), **resources)
    low, high = pool.concurrency if isinstance(pool.concurrency, tuple) else (pool.concurrency or 1,) * 2
    return dataset.map(
        _UnitActor,
        fn_constructor_args=(make_worker, output),
        compute=ActorPoolStrategy(min_size=min(low, len(rows)), max_size=min(high, len(rows))),
        **resources,
    )


class _Progress:
    """Logs cells done, rate and time left, every few seconds."""

    def __init__(self, stage: str, total: int) -> None:
        self._stage, self._total, self._done = stage, total, 0
        self._began = self._logged = time.monotonic()

    def add(self, cells: int) -> None:
        self._done += cells
        now = time.monotonic()
        if now - self._logged < _LOG_EVERY_S and self._done < self._total:
            return
        self._logged = now
        rate = self._done / max(now - self._began, 1e-9)
        logger.info(
            "%s: %s of %s cells, %s cells/s, %.0f s left",
            self._stage,
            f"{self._done:,}",
            f"{self._total:,}",
            f"{rate:,.0f}",
            (self._total - self._done) / rate,
        )
