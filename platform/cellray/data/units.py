"""Runs a stage over units of work on Ray; finished parts of an earlier run are kept.

Cheap workers run as tasks that survive files which crash their reader; costly ones (models) as a pool of actors, which
Ray Data scales. Knows nothing of cells or models: a stage gives the units and a worker that writes one unit's tables.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from cellray.data.guarded import call_guarded
from cellray.data.parts import Unit, Worker, find_part, make_part
from cellray.data.progress import CELLS, Measure, Progress
from cellray.data.session import ensure_ray
from cellray.errors import InputError, combined
from cellray.schema import PartRecord

logger = logging.getLogger(__name__)

_CHECKS_AT_ONCE = 16

Results = tuple[PartRecord | InputError, ...]
"""Each unit's record, or what was wrong with its input, in the units' order."""

Find = Callable[[Unit, str], PartRecord | None]
"""Returns the record of a unit that an earlier run did, given the artefact's directory; see `find_part`."""


@dataclass(frozen=True)
class ActorPool:
    """How much of a cluster a pool of actors takes.

    Attributes
    ----------
    least, most
        Actors; 0: the work is done in this process, without Ray.
    num_cpus, num_gpus
        Of each.
    """

    least: int
    most: int
    num_cpus: float = 1
    num_gpus: float = 0


def run_units(stage: str, output: str, units: Sequence[Unit], worker: Worker, at_once: int | None = None) -> Results:
    """Do all units as Ray tasks of one CPU.

    Parameters
    ----------
    stage
        Name for the log.
    output
        The artefact's directory.
    units
        The work; parts that are there already are kept.
    worker
        Does one unit; travels once to each process.
    at_once
        Most units under way, default: what the cluster has CPUs for; 0: the work is done in this process, without Ray.
    """

    def here(todo: Sequence[Unit]) -> Iterable[tuple[Unit, PartRecord | InputError]]:
        for unit in todo:
            yield unit, make_part(unit, worker, output)

    def do(todo: Sequence[Unit]) -> Iterable[tuple[Unit, PartRecord | InputError]]:
        make = partial(_make, worker=worker, output=output)
        return call_guarded(make, todo, subject=lambda unit: unit.uri, at_once=at_once)

    return _run(stage, output, units, here if at_once == 0 else do)


def _make(unit: Unit, worker: Worker, output: str) -> PartRecord:
    return make_part(unit, worker, output)


def run_units_on_actors(
    stage: str,
    output: str,
    units: Sequence[Unit],
    make_worker: Callable[[], Worker],
    pool: ActorPool,
    measure: Measure = CELLS,
    find: Find = find_part,
) -> Results:
    """Do all units on Ray Data's actors, each of which makes one worker and keeps it; see `run_units`.

    With a pool of no actors one worker does them here. `find` tells which units are done, for a stage whose units
    publish more than their part.
    """

    def here(todo: Sequence[Unit]) -> Iterable[tuple[Unit, PartRecord | InputError]]:
        worker = make_worker()
        for unit in todo:
            yield unit, make_part(unit, worker, output)

    def do(todo: Sequence[Unit]) -> Iterable[tuple[Unit, PartRecord | InputError]]:
        import ray
        from ray.data import ActorPoolStrategy

        ensure_ray()
        rows = [{"unit": json.dumps(asdict(unit))} for unit in todo]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _UnitActor,
            fn_constructor_args=(make_worker, output),
            compute=ActorPoolStrategy(min_size=min(pool.least, len(rows)), max_size=min(pool.most, len(rows))),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
        )
        for row in dataset.iter_rows():
            error = row["error"]
            result = InputError(*json.loads(error)) if error else PartRecord.model_validate_json(row["record"])
            yield Unit(**json.loads(row["unit"])), result

    return _run(stage, output, units, do if pool.most else here, measure, find)


class _UnitActor:
    """Holds a worker and does units with it."""

    def __init__(self, make_worker: Callable[[], Worker], output: str) -> None:
        self._worker, self._output = make_worker(), output

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        unit = Unit(**json.loads(row["unit"]))
        try:
            return {**row, "record": make_part(unit, self._worker, self._output).model_dump_json(), "error": ""}
        except InputError as error:  # an answer, not a crash: the other units go on
            return {**row, "record": "", "error": json.dumps(error.args)}


def _run(
    stage: str,
    output: str,
    units: Sequence[Unit],
    do: Callable[[Sequence[Unit]], Iterable[tuple[Unit, PartRecord | InputError]]],
    measure: Measure = CELLS,
    find: Find = find_part,
) -> Results:
    """Find the parts that are there, do the others."""
    with ThreadPoolExecutor(_CHECKS_AT_ONCE) as threads:
        found = list(threads.map(lambda unit: find(unit, output), units))
    results: dict[str, PartRecord | InputError] = {record.path: record for record in found if record is not None}
    todo = [unit for unit in units if unit.path not in results]
    if results:
        logger.info("%s: %d of %d parts are there from an earlier run", stage, len(results), len(units))
    left, total = (sum(map(measure.of, some)) for some in (todo, units))
    progress = Progress(stage, total, measure.name, total - left)
    for unit, result in do(todo) if todo else ():
        results[unit.path] = result
        progress.add(measure.of(unit))
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
