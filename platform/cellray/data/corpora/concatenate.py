"""Several corpora as one: a manifest that refers to their shards, or, on request, a copy of them.

Of the shards only the cells' names are read: they keep their bytes, and what differs between the corpora's obs columns
is levelled when they are read (`Corpus.read`). Knows nothing of Ray.
"""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import Field

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus
from cellray.data.corpora.names import repeated_names
from cellray.data.plan import common_kinds
from cellray.data.publishing import finished, publish_manifest
from cellray.errors import InputError, listing
from cellray.schema import CorpusManifest, Parent, PartRecord
from cellray.vocabulary import check_match

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22
_AT_ONCE = 8


class ConcatConfig(JobConfig):
    """Make one token corpus of several, without rewriting their shards."""

    corpus: tuple[str, ...] = Field(description="token corpora in the order wanted, comma-separated")
    output: str = Field(description="directory or s3:// URI of the new corpus")
    obs_columns: tuple[str, ...] = Field(
        (), description="obs columns to keep, comma-separated; default: those that all corpora have"
    )
    allow_repeated: bool = Field(
        False, description="take corpora that share a source: parts of a split, or cells that may count twice"
    )
    copy_shards: bool = Field(
        False, description="copy the shards, so that the new corpus stands without the others; default: refer to them"
    )


@dataclass(frozen=True)
class Concatenation:
    """What came out: the new manifest, and the obs columns that only some of the corpora have."""

    manifest: CorpusManifest
    left_out: tuple[str, ...]


def concat_corpora(config: ConcatConfig) -> Concatenation:
    """Concatenate corpora and publish the new corpus's manifest.

    A finished corpus of the same request is returned as it is.

    Raises
    ------
    InputError
        There are not two corpora, they differ in vocabulary or encoding, they share a source, a shard is missing or
        (with `copy_shards`) damaged, or the output holds something else.
    """
    if len(config.corpus) < 2:
        raise InputError("--corpus", "names two corpora or more", f"{len(config.corpus)}", "Name them all.")
    corpora = [Corpus.open(uri) for uri in config.corpus]
    _require_alike(corpora)
    if not config.allow_repeated:
        _require_distinct(corpora)
    kinds = _kinds(corpora, config.obs_columns)
    left_out = tuple(sorted({name for corpus in corpora for name in corpus.manifest.obs_kinds} - set(kinds)))
    output = storage.absolute(config.output)
    parts = _shifted(corpora)
    request = schema.request_digest(
        artefact="concatenated corpus",
        parts=[[part.sha256, part.source, None if config.copy_shards else part.path] for part in parts],
        parents=[corpus.manifest.digest for corpus in corpora],
        obs_kinds=list(kinds.items()),
    )
    if done := finished(output, request, CorpusManifest):
        return Concatenation(done, left_out)
    _require_present(parts)
    storage.write_bytes(storage.join(output, schema.VOCABULARY), corpora[0].vocabulary.to_json())
    if config.copy_shards:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            parts = list(threads.map(lambda part: _copied(part, output), parts))
    sources = tuple(source for corpus in corpora for source in corpus.manifest.sources)
    manifest = CorpusManifest(
        request=request,
        parts=tuple(parts),
        software=schema.software_versions(),
        encoding=corpora[0].manifest.encoding,
        vocabulary_digest=corpora[0].vocabulary.digest,
        obs_kinds=kinds,
        sources=sources,
        failed=tuple(failed for corpus in corpora for failed in corpus.manifest.failed),
        repeated_names=repeated_names(output, parts, sources),
        parents=tuple(Parent(uri=corpus.uri, digest=corpus.manifest.digest) for corpus in corpora),
        made_by="concatenation",
    )
    publish_manifest(output, manifest)
    return Concatenation(manifest, left_out)


def _require_alike(corpora: Sequence[Corpus]) -> None:
    """Check that the same tokens mean the same in all corpora and that rows are cut alike."""
    first = corpora[0]
    for corpus in corpora[1:]:
        check_match(f"corpus {corpus.uri}", corpus.vocabulary, f"corpus {first.uri}", first.vocabulary)
        if corpus.manifest.encoding != first.manifest.encoding:
            sizes = (corpus.manifest.encoding.input_size, first.manifest.encoding.input_size)
            raise InputError(
                corpus.uri,
                f"its rows must be encoded as those of {first.uri}",
                f"input size {sizes[0]:,} against {sizes[1]:,}",
                "Tokenize one of them again with the other's --input-size.",
            )


def _require_distinct(corpora: Sequence[Corpus]) -> None:
    """Check that no source was tokenized into two of the corpora."""
    owner: dict[tuple[str, str], str] = {}
    for corpus in corpora:
        for source in {(source.uri, source.version) for source in corpus.manifest.sources}:
            if source in owner:
                raise InputError(
                    source[0],
                    "a source may be in one of the corpora only, or its cells would be there twice",
                    f"it in {owner[source]} and {corpus.uri}",
                    "Leave one out; if these hold different cells of it, as parts of a split do, add --allow-repeated.",
                )
            owner[source] = corpus.uri


def _kinds(corpora: Sequence[Corpus], wanted: Sequence[str]) -> dict[str, str]:
    """Return the obs columns of the new corpus: those asked for, or all that every corpus has."""
    for corpus in corpora:
        for column in wanted:
            corpus.require_column(column, "--obs-columns")
    everywhere = [c for c in corpora[0].manifest.obs_kinds if all(c in other.manifest.obs_kinds for other in corpora)]
    return common_kinds([corpus.manifest for corpus in corpora], list(wanted) or everywhere)


def _shifted(corpora: Sequence[Corpus]) -> list[PartRecord]:
    """Return all shards with absolute paths, their sources numbered through."""
    parts, first = list[PartRecord](), 0
    for corpus in corpora:
        parts.extend(
            part.model_copy(update={"path": corpus.part_uri(part), "source": part.source + first})
            for part in corpus.manifest.parts
        )
        first += len(corpus.manifest.sources)
    return parts


def _require_present(parts: Sequence[PartRecord]) -> None:
    """Check that all shards are there: better now than when they are read."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        there = threads.map(storage.exists, (part.path for part in parts))
        missing = [part.path for part, found in zip(parts, there, strict=True) if not found]
    if missing:
        fix = "Restore them or make that corpus again."
        raise InputError("--corpus", "every shard must be there", f"{listing(missing, 3)} missing", fix)


def _copied(part: PartRecord, output: str) -> PartRecord:
    """Copy a shard byte for byte, named by its content, and check its digest on the way; keep one that is there."""
    path = f"{schema.PARTS}/{part.sha256[:32]}.parquet"
    target = storage.join(output, path)
    if not storage.exists(target):
        fs, source = storage.filesystem(part.path)
        digest = hashlib.sha256()
        with storage.atomic_file(target) as temporary, fs.open(source, "rb") as read, temporary.open("wb") as write:
            while piece := read.read(_CHUNK):
                digest.update(piece)
                write.write(piece)
            if digest.hexdigest() != part.sha256:
                fix = "Restore it or make its corpus again."
                raise InputError(part.path, "a shard must be the one in its manifest", "other bytes", fix)
    return part.model_copy(update={"path": path})
