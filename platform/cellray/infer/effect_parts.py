"""The parts of gene effects that go with the parts of a screen: how they are named, found and required.

A unit of such a screen publishes its effects first, then its shifts, and is done when both are there. Knows files and
units; what the effects are it does not know.
"""

from dataclasses import replace

from cellray import storage
from cellray.data.parts import Unit, find_part
from cellray.errors import InputError
from cellray.schema import PartRecord, request_digest
from cellray.shift_schema import EFFECTS


def effect_unit(unit: Unit) -> Unit:
    """Return the unit of the gene effects that go with a unit of shifts."""
    return replace(unit, key=request_digest(effects_of=unit.key))


def find_with_effects(unit: Unit, output: str) -> PartRecord | None:
    """Return the record of a unit's shifts if an earlier run published these and the gene effects."""
    effects = find_part(effect_unit(unit), storage.join(output, EFFECTS))
    return None if effects is None else find_part(unit, output)


def effect_part(unit: Unit, output: str) -> PartRecord:
    """Return the record of a unit's gene effects, its path below the directory of the screen.

    Raises
    ------
    InputError
        They are not there, or their record is cut short.
    """
    folder, own = storage.join(output, EFFECTS), effect_unit(unit)
    found = find_part(own, folder)
    if found is None:
        rule, fix = "every part of a screen must have its gene effects", "Run the same command again: it makes them."
        raise InputError(storage.join(folder, own.path), rule, "none, or no whole record of them", fix)
    return found.model_copy(update={"path": storage.join(EFFECTS, found.path)})
