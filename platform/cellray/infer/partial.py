"""Screens that are not finished: what there is of them, readable while they run; and both kinds told to people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import pandas as pd
import pyarrow as pa
from pydantic import ValidationError

from cellray import storage
from cellray.data.corpora.corpus import read_rows
from cellray.errors import InputError, listing
from cellray.infer.prefilter.report import summary
from cellray.prefilter_schema import PrefilterManifest
from cellray.schema import MANIFEST, RECORDS, PartRecord
from cellray.shift_schema import (
    COMPUTED_AGAIN,
    DOES_NOT_APPLY,
    LARGEST_NOISE,
    NOTE,
    UNPERTURBED,
    Lacking,
    ScreenNote,
    ShiftManifest,
)

_SCREENS: dict[str, type[ShiftManifest | PrefilterManifest]] = {
    made.model_fields["artefact"].default: made for made in (ShiftManifest, PrefilterManifest)
}


@dataclass(frozen=True)
class PartialScreen:
    """A screen as far as it is.

    Attributes
    ----------
    uri
        Its directory.
    note
        What it is to do.
    parts
        Those that are published.
    """

    uri: str
    note: ScreenNote
    parts: tuple[PartRecord, ...]

    @classmethod
    def open(cls, uri: str) -> Self:
        """Look at a screen, finished or not.

        Raises
        ------
        InputError
            No screen was begun there.
        """
        uri = storage.absolute(uri)
        if not storage.exists(storage.join(uri, NOTE)):
            raise InputError(uri, f"a screen that was begun holds {NOTE}", "no such file", "Check the path.")
        note = ScreenNote.model_validate(storage.read_json(storage.join(uri, NOTE)))
        return cls(uri, note, _records(uri))

    @property
    def done(self) -> int:
        """Perturbations of cells that were looked at, those that did not apply included."""
        return sum(part.counts.get("copies", 0) + part.counts.get(DOES_NOT_APPLY, 0) for part in self.parts)

    def table(self) -> pd.DataFrame:
        """Return the rows there are, part by part; no part is there by half."""
        tables = [read_rows(part.uri_in(self.uri), 0, part.rows) for part in self.parts if part.rows]
        return pa.concat_tables(tables).to_pandas() if tables else pd.DataFrame()


def _records(uri: str) -> tuple[PartRecord, ...]:
    """Return the parts that are published below a directory."""
    found = (_record(path) for path in storage.glob(storage.join(uri, RECORDS, "*.json")))
    return tuple(record for record in found if record is not None)


def _record(path: str) -> PartRecord | None:
    try:
        return PartRecord.model_validate_json(storage.read_bytes(path))
    except (FileNotFoundError, ValidationError):  # being written, or cut short: its part does not count
        return None


def read_partial(uri: str) -> pd.DataFrame:
    """Return the rows that a running or interrupted screen has published so far; see `PartialScreen`."""
    return PartialScreen.open(uri).table()


def is_screen(uri: str) -> bool:
    """Tell whether a directory is that of a screen, finished or not."""
    if storage.exists(storage.join(uri, NOTE)):
        return True
    return _artefact(uri) in _SCREENS


def describe_screen(uri: str, *, verify: bool = False) -> str:
    """Tell people what a screen has measured, or how far it is.

    Parameters
    ----------
    verify
        Also recompute the digest of every part there is.

    Raises
    ------
    InputError
        A part is missing or its bytes are not those that were written.
    """
    uri = storage.absolute(uri)
    if storage.exists(storage.join(uri, MANIFEST)):
        return _finished(uri, verify=verify)
    begun = PartialScreen.open(uri)
    note, rows = begun.note, sum(part.rows for part in begun.parts)
    if verify:
        _verify(uri, begun.parts)
    estimates, most = [], "at most"
    if note.estimates is not None:
        estimates.append(f"estimates: {len(_records(note.estimates)):,} of {note.estimate_units:,} parts")
        most = "about"
    lines = [
        f"{note.kind} in {note.cells:,} cells of {note.corpus}, model {note.model}",
        *estimates,
        f"{uri}: not finished: {len(begun.parts):,} of {note.units:,} parts,"
        f" {begun.done:,} of {most} {note.perturbations:,} perturbations, {rows:,} shifts to read",
    ]
    return "\n".join(lines)


def _finished(uri: str, *, verify: bool) -> str:
    """Tell people what a finished screen, whole or prefiltered, has measured."""
    manifest = _SCREENS.get(_artefact(uri), ShiftManifest).load(uri)
    if isinstance(manifest, ShiftManifest):
        beside, predictions, more = manifest.effect_parts, manifest.predictions, list[str]()
    else:
        beside, predictions, more = manifest.tables, (), summary(manifest.report)
    if verify:
        _verify(uri, (*manifest.parts, *beside))
    states = "none" if manifest.states is None else ", ".join(manifest.states.names)
    lines = [
        f"{manifest.kind} in cells of {manifest.corpus}, model {manifest.model}, layer {manifest.layer}",
        f"states: {states}; predictions: {', '.join(predictions) or 'none'}",
        *told_counts(manifest),
        *more,
    ]
    return "\n".join([*lines, f"{uri}: {manifest.rows:,} shifts, digest {manifest.digest[:12]}"])


def _artefact(uri: str) -> str:
    """Return the kind of artefact that a directory holds; empty if there is no manifest."""
    manifest = storage.join(uri, MANIFEST)
    value = storage.read_json(manifest) if storage.exists(manifest) else {}
    return str(value.get("artefact", "")) if isinstance(value, dict) else ""


def _verify(uri: str, parts: Sequence[PartRecord]) -> None:
    damaged = [
        part.path
        for part in parts
        if not storage.exists(part.uri_in(uri)) or storage.sha256_file(part.uri_in(uri)) != part.sha256
    ]
    if damaged:
        fix = "Delete them and the manifest and run the screen again: the rest is kept."
        raise InputError(uri, "every part must be the one that was written", listing(damaged), fix)


def told_counts(manifest: ShiftManifest | PrefilterManifest) -> list[str]:
    """Tell what was left out of a screen, and its noise."""
    counts: Counter[str] = Counter()
    for part in manifest.parts:
        counts.update(part.counts)
    noise = [max((part.counts.get(name, 0) for part in manifest.parts), default=0) / 1e9 for name in LARGEST_NOISE]
    same = [part.counts[UNPERTURBED] / 1e9 for part in manifest.parts if UNPERTURBED in part.counts]
    skipped = [f"{number:,} cells {reason}" for reason, number in manifest.skipped.items() if number]
    lacking = manifest.lacking if isinstance(manifest, ShiftManifest) else None
    return [
        f"left out: {', '.join(skipped) or 'no cell'}; {counts[DOES_NOT_APPLY]:,} perturbations did not apply",
        *([] if lacking is None or not lacking.cells else [_told_lacking(lacking)]),
        f"{counts[COMPUTED_AGAIN]:,} copies computed again in higher precision:"
        f" similarities differ by up to {noise[0]:.1e},"
        f" shifts by up to {noise[1]:.1e}",
        *([f"similarities of unperturbed copies differ from 1 by up to {max(same):.1e}"] if same else []),
    ]


def _told_lacking(lacking: Lacking) -> str:
    genes = sorted(lacking.genes.items(), key=lambda item: -item[1])[:5]
    most = ", ".join(f"{gene} in {number:,}" for gene, number in genes)
    more = f", and {len(lacking.genes) - 5:,} more genes" if len(lacking.genes) > 5 else ""
    return f"{lacking.cells:,} cells lack a listed gene: {most}{more} (named in {MANIFEST}: lacking)"
