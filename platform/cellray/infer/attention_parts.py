"""The parts of sums that go with the parts of attention weights: how they are named, found and added up.

A unit publishes its sums first, then its weights, and is done when all are there. The sums are needed until the tables
are made, and are then removed. Knows files and units.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from cellray import storage
from cellray.data.corpora.corpus import read_rows
from cellray.data.parts import PartWriter, Unit, find_part, make_part
from cellray.schema import PartRecord, request_digest

PARTIAL = "partial"
"""Folder of the sums, below the directory of the artefact."""
KINDS = ("pairs", "heads")
_LAYOUT = 2  # of the sums; those that another version left are made again


class Summed(Protocol):
    """Sums that can be added."""

    def table(self) -> pa.Table:
        """Return them."""

    def add_table(self, table: pa.Table) -> None:
        """Add those of another row range."""


def _place(output: str, kind: str) -> str:
    return storage.join(output, PARTIAL, kind)


def _own_unit(unit: Unit, kind: str) -> Unit:
    return replace(unit, key=request_digest(sums=kind, layout=_LAYOUT, of=unit.key))


def write_sums(unit: Unit, output: str, kind: str, sums: Summed) -> None:
    """Publish sums of a unit."""
    table = sums.table()

    def write(_: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        open_part(table.schema).write(table)

    make_part(_own_unit(unit, kind), write, _place(output, kind))


def find_with_sums(unit: Unit, output: str) -> PartRecord | None:
    """Return the record of a unit's weights if an earlier run published these and all sums."""
    lacking = any(find_part(_own_unit(unit, kind), _place(output, kind)) is None for kind in KINDS)
    return None if lacking else find_part(unit, output)


def add_sums(units: list[Unit], output: str, kind: str, sums: Summed) -> None:
    """Add up the sums of all units, in their order; one unit's are in memory at a time."""
    for unit in units:
        own = _own_unit(unit, kind)
        record = find_part(own, _place(output, kind))
        assert record is not None, "a unit publishes its sums before its weights"
        sums.add_table(read_rows(storage.join(_place(output, kind), own.path), 0, record.rows))
