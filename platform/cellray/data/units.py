"""Runs a stage over units of work, each of which publishes one parquet part exactly once.

A unit's key is a digest of everything that decides its part's content, and the part is named by it. So a rerun after
any interruption finds the finished parts and does the rest, and how many workers there were cannot be seen in the
bytes. Knows nothing of cells or models: a stage gives the units and a worker that writes one unit's tables.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cellray import storage
from cellray.errors import InputError, combined, listing
from cellray.schema import MANIFEST, PARTS, RECORDS, REQUEST, Manifest, PartRecord

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 5.0
_CHECKS_AT_ONCE = 16


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes
    ----------
    key
        Digest of everything that decides the part's content.
    uri, version
        What is read, and which version of it.
    source
        Index of `uri` in the stage's list of inputs.
    start, stop
        Row range of `uri`.
    """

    key: str
    uri: str
    version: str
    source: int
    start: int
    stop: int

    @property
    def path(self) -> str:
        """Path of the part below the artefact's directory."""
        return f"{PARTS}/{self.key[:32]}.parquet"

    @property
    def record_path(self) -> str:
        """Path of the part's record, which is published after it: while it lacks, the part does not count."""
        return f"{RECORDS}/{self.key[:32]}.json"


class PartWriter:
    """Receives the tables of one part, one row group each, and counts of what happened on the way."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        split = [name for name in map(_split_path, schema) if name is not None]
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            write_page_checksum=True,
            use_dictionary=[field.name for field in schema if _split_path(field) is None],
            use_byte_stream_split=split,
        )
        self.rows = 0
        self.counts: Counter[str] = Counter()

    def write(self, table: pa.Table) -> None:
        """Append a table as one row group."""
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.rows += table.num_rows

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def _split_path(field: pa.Field) -> str | None:
    """Return the parquet path of a list of numbers, which is stored byte by byte: small, and fast both ways."""
    kind = field.type
    return f"{field.name}.list.element" if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else None


Worker = Callable[[Unit, Callable[[pa.Schema], PartWriter]], None]
"""Does one unit: opens the part with its schema and writes tables to it."""


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


def make_part(unit: Unit, worker: Worker, output: str) -> PartRecord:
    """Do one unit and publish its part in one step."""
    with storage.atomic_file(storage.join(output, unit.path)) as path:
        writers: list[PartWriter] = []

        def open_part(schema: pa.Schema) -> PartWriter:
            writers.append(PartWriter(path, schema))
            return writers[0]

        worker(unit, open_part)
        (writer,) = writers
        writer.close()
        sha256 = storage.sha256_file(str(path))
    record = PartRecord(
        path=unit.path,
        rows=writer.rows,
        sha256=sha256,
        source=unit.source,
        start=unit.start,
        stop=unit.stop,
        counts=dict(sorted(writer.counts.items())),
    )
    storage.write_bytes(storage.join(output, unit.record_path), record.model_dump_json().encode())
    return record


def find_part(unit: Unit, output: str) -> PartRecord | None:
    """Return the record of a unit's part if an earlier run published both.

    The record, small, holds the digest of what was written, so nothing large is read, and a part that was damaged
    since does not match its digest. Source numbers are this run's.
    """
    try:
        record = PartRecord.model_validate_json(storage.read_bytes(storage.join(output, unit.record_path)))
    except (FileNotFoundError, ValidationError):
        return None
    if not storage.exists(storage.join(output, unit.path)):
        return None
    return record.model_copy(update={"source": unit.source})


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


def finished(output: str, request: str, manifest_class: type[Manifest]) -> Manifest | None:
    """Return the manifest at an output if this very request was completed before; else claim the output for it.

    Raises
    ------
    InputError
        The output holds another artefact, or the result of another request.
    """
    if not storage.exists(storage.join(output, MANIFEST)):
        _claim(output, request)
        return None
    fix = "Choose another --output, or delete this one."
    try:
        manifest = manifest_class.load(output)
    except InputError as error:
        raise InputError(output, "the output must be empty or hold this very result", error.found, fix) from None
    if manifest.request != request:
        raise InputError(
            output,
            "the output must be empty or hold this very result",
            f"another {manifest_class.model_fields['artefact'].default} (other input, options or vocabulary)",
            fix,
        )
    missing = [part.path for part in manifest.parts if not storage.exists(storage.join(output, part.path))]
    if missing:
        raise InputError(output, "a finished result must hold all its parts", f"{listing(missing, 3)} missing", fix)
    return manifest


def _claim(output: str, request: str) -> None:
    """Mark an output as this request's, so that no other writes into it.

    Raises
    ------
    InputError
        The output holds something else, or the beginnings of another request.
    """
    uri = storage.join(output, REQUEST)
    if not storage.exists(uri):
        storage.require_vacant(output)
        with suppress(FileExistsError):  # another run of the same request, perhaps
            storage.publish_once(uri, json.dumps({"request": request}).encode())
    claimed = storage.read_json(uri)
    if not isinstance(claimed, dict) or claimed.get("request") != request:
        raise InputError(
            output,
            "the output must be empty or hold this very result",
            "the beginnings of another (other input, options or vocabulary)",
            "Choose another --output, or delete this one.",
        )


def publish_manifest(output: str, manifest: Manifest) -> None:
    """Publish the manifest, once.

    Raises
    ------
    InputError
        Another run published a different one meanwhile.
    """
    try:
        storage.publish_once(storage.join(output, MANIFEST), manifest.to_json())
    except FileExistsError:
        finished(output, manifest.request, type(manifest))
        logger.info("another run of the same request finished first; its result is this one")
