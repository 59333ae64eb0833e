"""What is known of the sources before they are read: opened, checked as far as that goes, their columns mapped.

Runs a Ray task for each source. A source that breaks a rule comes back as its error, so that the caller sees all of
them at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol, TypeVar

from cellray import schema, storage
from cellray.data import gene_ids
from cellray.data.cells import total_counts
from cellray.data.checks import check_block
from cellray.data.guarded import call_guarded
from cellray.data.session import ensure_ray
from cellray.data.sources.contract import (
    CountBlock,
    CountSource,
    format_of,
    left_out_warning,
    open_source,
    require_obs,
    stamp_of,
)
from cellray.data.suspicions import suspicions
from cellray.errors import InputError, combined, listing
from cellray.schema import FailedSource, GeneReport
from cellray.vocabulary import GeneVocabulary

FIRST_CELLS = 1024
"""Cells whose counts are checked before anything is written."""
_OPEN_LIMIT_S = 600.0

PlanT = TypeVar("PlanT")


class ReadOptions(Protocol):
    """Which parts of a source are read; see `cellray.data.tokenization.TokenizeConfig`."""

    @property
    def matrix(self) -> str: ...  # noqa: D102

    @property
    def gene_ids(self) -> str | None: ...  # noqa: D102

    @property
    def n_counts_column(self) -> str | None: ...  # noqa: D102

    @property
    def obs_columns(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def missing_obs(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class SourcePlan:
    """What is known of a source before it is read."""

    uri: str
    format: str
    stamp: storage.FileStamp
    n_cells: int
    genes: GeneReport
    obs_kinds: dict[str, str]
    warnings: tuple[str, ...]


def describe_sources(
    uris: Sequence[str], options: ReadOptions, vocabulary: GeneVocabulary
) -> list[SourcePlan | InputError]:
    """Describe all sources, a guarded Ray task each, in their order; a bad one gives its error."""
    return look_at_all(partial(describe_source, options=options, vocabulary=vocabulary), uris)


def look_at_all(describe: Callable[[str], PlanT], uris: Sequence[str]) -> list[PlanT | InputError]:
    """Look at all sources, a guarded Ray task each; return what was found or was wrong, in their order."""
    if len(uris) == 1:  # the slip of a user with one file need not wait for Ray
        try:
            format_of(uris[0])
            stamp_of(uris[0])
        except InputError as error:
            return [error]
    ensure_ray()
    found = dict(call_guarded(describe, uris, subject=str, time_limit_s=_OPEN_LIMIT_S))
    return [found[uri] for uri in uris]


def sift(
    uris: Sequence[str], described: Sequence[PlanT | InputError], on_bad_file: str
) -> tuple[list[PlanT], list[FailedSource]]:
    """Part the sound sources from those that are left out, with the reasons.

    Raises
    ------
    InputError
        A source broke a rule and `on_bad_file` is `fail`, or none is sound.
    """
    errors = [found for found in described if isinstance(found, InputError)]
    plans = [found for found in described if not isinstance(found, InputError)]
    if errors and (on_bad_file == "fail" or not plans):
        raise combined(errors)
    bad = [(uri, found) for uri, found in zip(uris, described, strict=True) if isinstance(found, InputError)]
    return plans, [FailedSource(uri=uri, error=str(error)) for uri, error in bad]


def first_cells(source: CountSource) -> CountBlock:
    """Return the cells whose counts are looked at before anything is written.

    Raises
    ------
    InputError
        There is none.
    """
    if source.n_cells == 0:
        raise InputError(source.uri, "a source needs at least one cell", "none", "Leave it out.")
    return next(source.blocks(0, min(source.n_cells, FIRST_CELLS), FIRST_CELLS))


def describe_source(uri: str, options: ReadOptions, vocabulary: GeneVocabulary) -> SourcePlan:
    """Open a source and check all that can be told without reading it through, and its first cells.

    Raises
    ------
    InputError
        The source breaks a rule.
    """
    with open_source(uri, options.matrix) as source:
        kinds = wanted_kinds(source, options)
        stamp = stamp_of(uri)
        mapping = read_mapping(uri, stamp.version, options.matrix, options.gene_ids, vocabulary)
        return describe_open(source, options, format_of(uri), stamp, kinds, mapping)


def wanted_kinds(source: CountSource, options: ReadOptions) -> dict[str, str]:
    """Return the kinds of the wanted obs columns of an open source.

    Raises
    ------
    InputError
        One is missing, or bears a name that corpora use themselves.
    """
    kinds = {name: kind for name, kind in source.obs_kinds().items() if name in options.obs_columns}
    if options.missing_obs == "fail":
        kinds = require_obs(source, options.obs_columns)
    clash = sorted(set(kinds) & set(schema.RESERVED_COLUMNS))
    if clash:
        raise InputError(source.uri, "an obs column may not bear a name of the corpus", listing(clash), "Rename it.")
    return kinds


def describe_open(
    source: CountSource,
    options: ReadOptions,
    kind: str,
    stamp: storage.FileStamp,
    obs_kinds: dict[str, str],
    mapping: gene_ids.ColumnMapping,
) -> SourcePlan:
    """Check the first cells of an open source and put together what is known of it; see `describe_source`."""
    block = first_cells(source)
    n_counts = check_block(block, source).n_counts
    if options.n_counts_column:
        require_obs(source, [options.n_counts_column])
        total_counts(source, options.n_counts_column, block.start, block.start + block.n_cells, n_counts)
    suspected = suspicions(block, n_counts)
    warnings = (*left_out_warning(source), *gene_ids.few_genes_warning(mapping.report), *suspected)
    return SourcePlan(source.uri, kind, stamp, source.n_cells, mapping.report, obs_kinds, warnings)


class HasObs(Protocol):
    """Something with obs columns of known kinds: a described source, a corpus's manifest."""

    @property
    def obs_kinds(self) -> Mapping[str, str]: ...  # noqa: D102


def common_kinds(plans: Sequence[HasObs], columns: Sequence[str]) -> dict[str, str]:
    """Return one kind for each obs column; where files differ, numbers become real and all else text.

    Raises
    ------
    InputError
        No file has one of them.
    """
    kinds = {}
    for column in columns:
        found = {plan.obs_kinds[column] for plan in plans if column in plan.obs_kinds}
        if not found:
            rule = "some file must have each obs column asked for"
            raise InputError("--obs-columns", rule, f"none with {column!r}", "Correct --obs-columns.")
        kinds[column] = found.pop() if len(found) == 1 else "real" if found == {"integer", "real"} else "text"
    return kinds


@lru_cache(maxsize=8)
def read_mapping(
    uri: str,
    version: str,  # part of the key: another version of a file has another mapping
    matrix: str,
    column: str | None,
    vocabulary: GeneVocabulary,
) -> gene_ids.ColumnMapping:
    """Map a file's columns, once a worker process: the next units of the file find the mapping here."""
    with open_source(uri, matrix) as source:
        return gene_ids.map_columns(*gene_ids.column_names(source, column), vocabulary, uri)
