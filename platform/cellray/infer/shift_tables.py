"""Finished screens, opened for reading: their rows in batches, column by column, for the statistics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellray import storage
from cellray.errors import InputError, listing
from cellray.schema import CELL_ID, PartRecord
from cellray.shift_schema import (
    AFFECTED,
    CELL_GENES,
    GENES,
    NAME,
    RANK,
    SIMILARITY,
    ShiftManifest,
    answer_columns,
    shift_column,
)
from cellray.statistics.aggregates import EffectBatch
from cellray.statistics.naming import name_digests
from cellray.statistics.stream import NO_DONOR, ShiftBatch

BATCH_ROWS = 1 << 20
"""Most rows read at once; about 60 bytes each while they are worked on."""


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn a damaged or missing part into an error that says what to do."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if storage.is_outage(error):
            raise
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error).split("\n", 1)[0]
        fix = "Restore it, or run the screen again."
        raise InputError(uri, "a finished screen must hold all its parts, unharmed", found, fix) from None


def _record_batches(uri: str, rows: int, columns: Sequence[str], text: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one part; columns of text come as dictionaries."""
    with (
        _explained(uri),
        storage.open_scattered(uri) as stream,
        pq.ParquetFile(stream, page_checksum_verification=True, read_dictionary=list(text)) as file,
    ):
        lacking = set(columns) - set(file.schema_arrow.names)
        if lacking or file.metadata.num_rows != rows:
            found = f"{file.metadata.num_rows:,} of {rows:,} rows"
            raise pa.ArrowInvalid(f"no column {listing(lacking)}" if lacking else found)
        yield from file.iter_batches(BATCH_ROWS, columns=list(columns))


@dataclass(frozen=True)
class ShiftTable:
    """A finished screen.

    Attributes
    ----------
    uri
        Its directory.
    manifest
        What it was made from.
    """

    uri: str
    manifest: ShiftManifest

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open the screen at a URI.

        Raises
        ------
        InputError
            There is no finished screen, or it has no rows.
        """
        uri = storage.absolute(uri)
        manifest = ShiftManifest.load(uri)
        if not manifest.rows:
            raise InputError(uri, "a screen must have rows", "none", "Screen cells that express the genes.")
        return cls(uri, manifest)

    def stream(self, donor: str | None = None) -> "PartStream":
        """Return the rows as the statistics read them.

        Raises
        ------
        InputError
            The screen was made without that obs column.
        """
        if donor is not None and donor not in self.manifest.obs_kinds:
            found = f"columns {listing(self.manifest.obs_kinds)}"
            fix = "Correct --donor, or tokenize the corpus with that obs column."
            raise InputError(self.uri, f"--donor {donor} must be an obs column of the screen", found, fix)
        return PartStream(self, donor)

    def effects(self) -> "PartEffects":
        """Return the gene effects.

        Raises
        ------
        InputError
            The screen was made without them.
        """
        if not sum(part.rows for part in self.manifest.effect_parts):
            fix = "Run the screen with gene effects."
            raise InputError(self.uri, "aggregate_gene_shifts needs gene effects", "none", fix)
        return PartEffects(self)

    def names(self) -> dict[str, str]:
        """Return by its genes what the user called each perturbation; nothing where there were no names."""
        found: dict[str, str] = {}
        for batch in self.batches([GENES, NAME], [GENES, NAME]) if self.manifest.design.get("named") else ():
            pairs = pa.table([batch[GENES], batch[NAME]], [GENES, NAME]).group_by([GENES, NAME]).aggregate([])
            found.update(zip(_plain(pairs[GENES]), _plain(pairs[NAME]), strict=True))
        return found

    def require_measure(self, measure: str) -> None:
        """Check that the rows have a measure.

        Raises
        ------
        InputError
            They have not.
        """
        states = self.manifest.states
        told = answer_columns(self.manifest.predictions)
        known = [SIMILARITY, *(map(shift_column, states.names) if states else ()), *told]
        if measure not in known:
            raise InputError(
                self.uri, f"--measure must be one of {listing(known)}", repr(measure), "Correct --measure."
            )

    def batches(self, columns: Sequence[str], text: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield all rows with some columns, those of text as dictionaries."""
        yield from _all_batches(self.uri, self.manifest.parts, columns, text)


def _all_batches(
    directory: str, parts: Sequence[PartRecord], columns: Sequence[str], text: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for part in parts:
        if part.rows:
            yield from _record_batches(part.uri_in(directory), part.rows, columns, text)


def _distinct(batches: Iterator[pa.RecordBatch], columns: Sequence[str]) -> list[list[str]]:
    """Return the distinct values of columns of text, sorted, without nulls."""
    found: list[set[str]] = [set() for _ in columns]
    for batch in batches:
        for values, column in zip(found, columns, strict=True):
            values.update(_text(batch[column]).to_pylist())
    return [sorted(values - {None}) for values in found]


def _text(column: pa.Array) -> pa.Array:
    """Return the distinct values of a column, as text."""
    return pc.cast(pc.unique(column.dictionary_decode() if _is_dictionary(column) else column), pa.string())


def _plain(column: pa.ChunkedArray) -> list[str]:
    return list(pc.cast(column, pa.string()).to_pylist())


def _is_dictionary(column: pa.Array) -> bool:
    return bool(pa.types.is_dictionary(column.type))


def codes(column: pa.Array, names: pd.Index) -> NDArray[np.int64]:
    """Return the index of each value among sorted names; -1 for null."""
    encoded = column if _is_dictionary(column) else pc.dictionary_encode(pc.cast(column, pa.string()))
    place = np.append(names.get_indexer(encoded.dictionary.to_pylist()), -1)
    return np.asarray(place[_indices(encoded)], np.int64)


def _indices(encoded: pa.DictionaryArray) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False), np.int64)


def _digests(column: pa.Array) -> NDArray[np.uint64]:
    """Return a digest of each cell's name; of each distinct name it is computed once."""
    return name_digests(column.dictionary.to_pylist())[_indices(column)]


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


class PartStream:
    """The rows of a screen; a `cellray.statistics.stream.ShiftStream`."""

    def __init__(self, table: ShiftTable, donor: str | None) -> None:
        self._table, self._donor = table, donor
        self.name, self.rows = table.uri, table.manifest.rows

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        columns = [GENES, *([] if self._donor is None else [self._donor])]
        genes, *donors = _distinct(self._table.batches(columns, [GENES]), columns)
        return genes, donors[0] if donors else []

    @property
    def genes(self) -> Sequence[str]:
        """Perturbations, sorted."""
        return self._names[0]

    @property
    def donors(self) -> Sequence[str]:
        """Donors, sorted."""
        return self._names[1]

    def batches(self, measures: Sequence[str]) -> Iterator[ShiftBatch]:
        """Yield all rows with some measures."""
        genes, donors = (pd.Index(names, dtype=object) for names in self._names)
        obs = [] if self._donor is None else [self._donor]
        columns = list(dict.fromkeys([GENES, CELL_ID, RANK, CELL_GENES, *measures, *obs]))
        for batch in self._table.batches(columns, [GENES, CELL_ID]):
            rank, size = _numbers(batch[RANK]), _numbers(batch[CELL_GENES])
            no_donor = np.full(batch.num_rows, NO_DONOR, np.int64)
            yield ShiftBatch(
                gene=codes(batch[GENES], genes),
                cell=_digests(batch[CELL_ID]),
                donor=no_donor if self._donor is None else codes(batch[self._donor], donors),
                quantile=np.where(rank < 0, -1.0, rank / np.maximum(size, 1)),
                value={measure: _numbers(batch[measure]) for measure in measures},
            )


class PartEffects:
    """The gene effects of a screen; a `cellray.statistics.aggregates.EffectStream`."""

    def __init__(self, table: ShiftTable) -> None:
        self._table, self.name = table, table.uri
        self.genes, self.affected = _distinct(self._rows([GENES, AFFECTED]), [GENES, AFFECTED])

    def _rows(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return _all_batches(self._table.uri, self._table.manifest.effect_parts, columns, [GENES, AFFECTED])

    def batches(self) -> Iterator[EffectBatch]:
        """Yield all rows."""
        genes, affected = pd.Index(self.genes, dtype=object), pd.Index(self.affected, dtype=object)
        for batch in self._rows([GENES, AFFECTED, SIMILARITY]):
            yield EffectBatch(codes(batch[GENES], genes), codes(batch[AFFECTED], affected), _numbers(batch[SIMILARITY]))


def cell_rows(table: ShiftTable, measure: str) -> Iterator[dict[str, Any]]:
    """Yield cell names, perturbations and a measure of all rows, as arrays, in the order of the parts."""
    for batch in table.batches([CELL_ID, GENES, measure], [CELL_ID, GENES]):
        yield {"cell": batch[CELL_ID], "genes": batch[GENES], "value": _numbers(batch[measure])}
