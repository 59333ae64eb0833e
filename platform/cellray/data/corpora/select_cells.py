"""New corpora of chosen cells of an old one: a rule says for each cell to which of several corpora it goes, if to any.

Each new corpus is complete: its shards are made exactly once, its manifest accounts for every cell of the sources. How
many workers there were cannot be seen in the bytes. Knows nothing of how rules choose.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.corpora.corpus import Corpus, scan
from cellray.data.corpora.names import repeated_names
from cellray.data.parts import PartWriter, Unit
from cellray.data.publishing import finished, publish_manifest
from cellray.data.session import ensure_ray, plain_errors
from cellray.data.units import require_records, run_units
from cellray.errors import InputError
from cellray.schema import CorpusManifest, Parent, PartRecord, SourceRecord

logger = logging.getLogger(__name__)

ROW_GROUP = 1024
"""Cells of a row group: what bounds the memory of those who read."""

NOWHERE = -1
"""What a rule says of a cell that goes to no new corpus."""


class Rule(Protocol):
    """Says for each cell to which new corpus it goes. Must survive pickling."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns it needs."""
        ...

    @property
    def key(self) -> str:
        """Digest of all that decides its answers."""
        ...

    def __call__(self, cells: pa.Table, source: int) -> NDArray[np.int64]:
        """Return the number of each cell's new corpus, or `NOWHERE`, for cells of one source. Shape (cells,)."""
        ...


@dataclass(frozen=True)
class Target:
    """One new corpus.

    Attributes
    ----------
    output
        Its directory.
    title
        What it is called in messages.
    made_by
        What made it, for the manifest.
    reason
        Why a cell of the old corpus is not in it.
    """

    output: str
    title: str
    made_by: str
    reason: str


@dataclass(frozen=True)
class Piece:
    """Rows of one old shard, and how many of its cells were cut."""

    uri: str
    rows: int
    truncated: int


def count_cells(corpus: Corpus, rule: Rule, n_targets: int) -> NDArray[np.int64]:
    """Count the cells of each old shard that go to each new corpus. Shape (shards that hold cells, targets)."""

    def count(part: PartRecord, cells: pa.Table) -> NDArray[np.int64]:
        chosen = rule(cells, part.source)
        return np.bincount(chosen[chosen != NOWHERE], minlength=n_targets)

    found = list(scan(corpus, rule.columns, count))
    return np.stack(found) if found else np.zeros((0, n_targets), np.int64)


@plain_errors()
def write_selections(
    corpus: Corpus, rule: Rule, targets: Sequence[Target], cells_per_shard: int, workers: int | None
) -> list[CorpusManifest]:
    """Write all new corpora of a rule and return their manifests.

    Finished ones are kept as they are; after an interruption only the missing shards are made.

    Raises
    ------
    InputError
        A new corpus would hold no cell, or an output holds something else.
    """
    counts_pt = count_cells(corpus, rule, len(targets))
    for target, total in zip(targets, counts_pt.sum(0), strict=True):
        if total == 0:
            fix = "Use other shares, values or a larger corpus."
            raise InputError(target.title, "a corpus needs at least one cell", f"none of {corpus.uri}", fix)
    made = []
    for number, target in enumerate(targets):
        plan = plan_selection(corpus, rule, number, counts_pt[:, number], cells_per_shard)
        made.append(_write(corpus, target, plan, workers))
    return made


@dataclass(frozen=True)
class SelectionPlan:
    """The units of one new corpus, and for each unit's key the old shards it reads."""

    units: list[Unit]
    worker: "SelectWorker"

    @property
    def request(self) -> str:
        """Digest of all that decides the new corpus."""
        return schema.request_digest(artefact="selected corpus", units=[unit.key for unit in self.units])


def plan_selection(
    corpus: Corpus, rule: Rule, number: int, counts_p: NDArray[np.int64], cells_per_shard: int
) -> SelectionPlan:
    """Group old shards into new ones, each of one source and about `cells_per_shard` cells; empty ones are skipped.

    An old shard is not cut: one that gives more cells than that makes a new shard of as many.

    Parameters
    ----------
    number
        Of the new corpus.
    counts_p
        Cells that each old shard gives to it. Shape (shards that hold cells,).
    """
    old = [part for part in corpus.manifest.parts if part.rows]
    units, pieces = [], {}
    for first, group in _groups(old, counts_p, cells_per_shard):
        key = schema.request_digest(
            shards=[part.sha256 for part in group],
            first=first,  # equal shards may be there twice
            rule=rule.key,
            number=number,
            obs=list(corpus.manifest.obs_kinds.items()),
            format=1,
        )
        start, stop = group[0].start, max(part.stop for part in group)
        units.append(Unit(key, corpus.uri, corpus.manifest.digest, group[0].source, start, stop))
        pieces[key] = [Piece(corpus.part_uri(p), p.rows, p.counts["truncated"]) for p in group]
    return SelectionPlan(units, SelectWorker(corpus, rule, number, pieces))


def _groups(
    old: Sequence[PartRecord], counts_p: NDArray[np.int64], cells_per_shard: int
) -> Iterator[tuple[int, list[PartRecord]]]:
    """Yield neighbouring old shards of one source that go into one new shard, and the number of the first."""
    first, group, cells = 0, list[PartRecord](), 0
    for i, part in enumerate(old):
        if counts_p[i] == 0:
            continue
        if group and (part.source != group[0].source or cells + counts_p[i] > cells_per_shard):
            yield first, group
            group, cells = [], 0
        if not group:
            first = i
        group.append(part)
        cells += int(counts_p[i])
    if group:
        yield first, group


class SelectWorker:
    """Reads some old shards and writes the cells of one new corpus to a new shard."""

    def __init__(self, corpus: Corpus, rule: Rule, number: int, pieces: dict[str, list[Piece]]) -> None:
        self._corpus, self._rule, self._number, self._pieces = corpus, rule, number, pieces

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        shard_schema = schema.token_schema(self._corpus.manifest.obs_kinds)
        part = open_part(shard_schema)
        waiting, size = pa.Table.from_batches([], shard_schema), self._corpus.manifest.encoding.input_size
        for piece in self._pieces[unit.key]:
            full = 0
            for cells in self._chosen(piece, unit.source):
                full += pc.sum(pc.equal(cells[schema.LENGTH], size)).as_py() or 0
                part.counts["tokens"] += pc.sum(cells[schema.LENGTH]).as_py() or 0
                waiting = pa.concat_tables([waiting, cells.cast(shard_schema)])
                while waiting.num_rows >= ROW_GROUP:
                    part.write(waiting.slice(0, ROW_GROUP).combine_chunks())
                    waiting = waiting.slice(ROW_GROUP)
            part.counts["truncated"] += min(full, piece.truncated)  # a row may be full without having been cut
        if waiting.num_rows:
            part.write(waiting.combine_chunks())

    def _chosen(self, piece: Piece, source: int) -> Iterator[pa.Table]:
        """Yield the chosen cells of an old shard; where there are none, tokens are not read."""
        light = self._corpus.read(piece.uri, 0, piece.rows, self._rule.columns)
        yield from self._corpus.read_chosen(piece.uri, self._rule(light, source) == self._number)


def _write(corpus: Corpus, target: Target, plan: SelectionPlan, workers: int | None) -> CorpusManifest:
    """Make one new corpus."""
    output = storage.absolute(target.output)
    if done := finished(output, plan.request, CorpusManifest):
        return done
    storage.write_bytes(storage.join(output, schema.VOCABULARY), corpus.vocabulary.to_json())
    if workers != 0:
        ensure_ray()
    results = run_units(f"write {target.title}", output, plan.units, plan.worker, workers)
    manifest = selection_manifest(corpus, target, plan, require_records(results))
    publish_manifest(output, manifest)
    return manifest


def selection_manifest(
    corpus: Corpus, target: Target, plan: SelectionPlan, parts: Sequence[PartRecord]
) -> CorpusManifest:
    """Account for every cell of the old corpus's sources: kept, dropped before, or not chosen."""
    old = corpus.manifest
    return CorpusManifest(
        request=plan.request,
        parts=tuple(parts),
        software=schema.software_versions("pyarrow", "numpy"),
        encoding=old.encoding,
        vocabulary_digest=old.vocabulary_digest,
        obs_kinds=old.obs_kinds,
        sources=tuple(_account(i, source, parts, target.reason) for i, source in enumerate(old.sources)),
        failed=old.failed,
        repeated_names=repeated_names(storage.absolute(target.output), parts, old.sources),
        parents=(Parent(uri=corpus.uri, digest=old.digest),),
        made_by=target.made_by,
    )


def _account(index: int, source: SourceRecord, parts: Sequence[PartRecord], reason: str) -> SourceRecord:
    kept = sum(part.rows for part in parts if part.source == index)
    not_chosen = source.kept - kept
    assert not_chosen >= 0, f"{source.uri}: cells doubled"
    dropped = source.dropped | {reason: source.dropped.get(reason, 0) + not_chosen}
    return source.model_copy(update={"kept": kept, "dropped": dropped})
