"""The screens of a folder as one: of ours by a manifest over all their parts, of official files by importing them."""

from pathlib import Path

from cellray import schema, storage
from cellray.compat.geneformer.dictionaries import File
from cellray.compat.geneformer.perturber import SHIFTS
from cellray.compat.geneformer.raw_shifts import import_raw_shifts
from cellray.compat.geneformer.states import CellStates
from cellray.errors import InputError
from cellray.infer.shift_tables import ShiftTable
from cellray.schema import PartRecord, request_digest
from cellray.shift_schema import ShiftManifest

_SAME = ("kind", "model_digest", "layer", "pooling", "states")
"""What screens must share to be put together."""


def open_screens(
    directory: str, folder: str, suffix: str | None, tokens: File, states: CellStates | None
) -> ShiftTable:
    """Return what a directory holds as one screen.

    Parameters
    ----------
    directory
        A screen, a folder of screens (`*.shifts`), or one of official files of raw shifts.
    folder
        Where a screen that has to be made goes.
    suffix, tokens
        Of official files: how their names end, and the dictionary of their tokens.
    states
        Of official files: those of the shifts.

    Raises
    ------
    InputError
        There is nothing of it, or screens differ in what they measured.
    """
    uri = storage.absolute(directory)
    if storage.exists(storage.join(uri, schema.MANIFEST)):
        return ShiftTable.open(uri)
    found = sorted(path.removesuffix(f"/{schema.MANIFEST}") for path in storage.glob(f"{uri}/*{SHIFTS}/manifest.json"))
    if found:
        return _joined([ShiftTable.open(each) for each in found], folder)
    raw = sorted(Path(path) for path in storage.glob(f"{uri}/*{suffix}")) if suffix else []
    if not raw:
        rule, fix = f"must hold screens (*{SHIFTS}) or files of raw shifts (*{suffix})", "Run perturb_data first."
        raise InputError(uri, rule, "none", fix)
    return import_raw_shifts(raw, folder, tokens, states)


def _joined(screens: list[ShiftTable], folder: str) -> ShiftTable:
    """Return several screens as one; their parts stay where they are."""
    first, *others = screens
    for other in others:
        for name in _SAME:
            ours, theirs = getattr(first.manifest, name), getattr(other.manifest, name)
            if ours != theirs:
                fix = "Keep screens that are not to be put together in folders of their own."
                raise InputError(other.uri, f"screens of a folder must share {name}", f"{theirs}, not {ours}", fix)
    if not others:
        return first
    request = request_digest(joined=[each.manifest.request for each in screens])
    parts = tuple(_placed(part, each.uri) for each in screens for part in each.manifest.parts)
    effects = tuple(_placed(part, each.uri) for each in screens for part in each.manifest.effect_parts)
    kinds = [set(each.manifest.obs_kinds.items()) for each in screens]
    shared = dict(sorted(set.intersection(*kinds)))
    changes = {"request": request, "parts": parts, "effect_parts": effects, "obs_kinds": shared, "lacking": None}
    made: ShiftManifest = first.manifest.model_copy(update=changes)
    storage.write_bytes(storage.join(folder, schema.MANIFEST), made.to_json())
    return ShiftTable.open(folder)


def _placed(part: PartRecord, uri: str) -> PartRecord:
    return part.model_copy(update={"path": part.uri_in(uri)})
