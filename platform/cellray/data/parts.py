"""One unit of work and the parquet part it publishes, exactly once.

A unit's key is a digest of everything that decides its part's content, and the part is named by it. So a rerun after
any interruption finds the finished parts, and how many workers there were cannot be seen in the bytes. Knows nothing of
Ray, cells or models.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cellray import storage
from cellray.schema import PARTS, RECORDS, PartRecord


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
    # a record that a power failure cut short does not parse, and its part is made again: no need to wait for the disk
    storage.write_bytes(storage.join(output, unit.record_path), record.model_dump_json().encode(), durable=False)
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
