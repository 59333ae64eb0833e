"""Tables as parquet and as CSV: how they are written, and the manifest of a job whose result is one table.

What the rows mean is the job's.
"""

from collections.abc import Iterator
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cellray import schema, storage
from cellray.data.publishing import finished, publish_manifest
from cellray.schema import Manifest, Parent, PartRecord

TABLE = "table"
"""Name of a result's main table, without its ending."""


class TableManifest(Manifest):
    """Manifest of a table. Its part is the table in parquet.

    Attributes
    ----------
    kind
        What its rows are.
    options
        What was asked for.
    made_from
        The artefact it was computed from.
    csv
        The same table as CSV.
    dropped
        What is not in the table: reason to number.
    notes
        Whatever else a reader should know.
    """

    artefact: Literal["table"] = "table"
    kind: str
    options: dict[str, Any]
    made_from: Parent
    csv: tuple[PartRecord, ...]
    dropped: dict[str, int]
    notes: dict[str, Any]


def table_made_before(output: str, request: str) -> TableManifest | None:
    """Return the manifest of a table that this very request made; else claim the output for it.

    Raises
    ------
    InputError
        The output holds something else.
    """
    return finished(output, request, TableManifest)


def publish_table(output: str, frame: pd.DataFrame, packages: tuple[str, ...], **told: Any) -> TableManifest:  # noqa: ANN401
    """Write a table and its manifest.

    Parameters
    ----------
    output
        Directory that `table_made_before` claimed.
    packages
        Whose versions shape the table.
    told
        The manifest's own fields: request, kind, options, made_from, dropped, notes.
    """
    parquet, csv = write_frame(output, TABLE, frame)
    manifest = TableManifest(parts=(parquet,), csv=(csv,), software=schema.software_versions(*packages), **told)
    publish_manifest(output, manifest)
    return manifest


def read_made_table(output: str, manifest_class: type[Manifest] = TableManifest) -> pd.DataFrame:
    """Return the main table of a finished result.

    Raises
    ------
    InputError
        There is none of this kind.
    """
    output = storage.absolute(output)
    manifest_class.load(output)
    with storage.open_scattered(storage.join(output, f"{TABLE}.parquet")) as stream:
        table: pd.DataFrame = pq.read_table(stream).to_pandas()
    return table


def write_frame(output: str, name: str, table: pd.DataFrame) -> list[PartRecord]:
    """Write a table as parquet and as CSV, and return the record of each, in this order."""
    return write_stream(output, name, iter([table]))


def write_stream(output: str, name: str, tables: Iterator[pd.DataFrame]) -> list[PartRecord]:
    """Write tables of equal columns one after the other, as parquet and as CSV."""
    paths = [f"{name}.parquet", f"{name}.csv"]
    with (
        storage.atomic_file(storage.join(output, paths[0])) as parquet,
        storage.atomic_file(storage.join(output, paths[1])) as csv,
    ):
        writers: list[Any] = []
        rows = 0
        for frame in tables:
            table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
            if not writers:
                writers = [
                    pq.ParquetWriter(parquet, table.schema, compression="zstd"),
                    pa_csv.CSVWriter(csv, table.schema),
                ]
            for writer in writers:
                writer.write_table(table)
            rows += table.num_rows
        for writer in writers:
            writer.close()
        digests = [storage.sha256_file(str(path)) for path in (parquet, csv)]
    return [
        PartRecord(path=path, rows=rows, sha256=digest, source=0, start=0, stop=rows)
        for path, digest in zip(paths, digests, strict=True)
    ]
