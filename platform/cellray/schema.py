"""Column names, Arrow schemas and manifests of every artefact: the contracts between the stages.

A manifest is written last, in one step; a directory without one is not an artefact. Manifests hold nothing that
depends on when or by how many workers they were made, so equal work gives equal bytes.
"""

import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from cellray import storage
from cellray.errors import InputError, said
from cellray.formats import FORMAT_VERSION, require_known_version

MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
PARTS = "shards"
RECORDS = "records"
REQUEST = "request.json"

INPUT_IDS = "input_ids"
LENGTH = "length"
CELL_ID = "cell_id"
N_COUNTS = "n_counts"
SOURCE_ROW = "source_row"
EMBEDDING = "embedding"
GENE = "gene"
RESERVED_COLUMNS = (INPUT_IDS, LENGTH, CELL_ID, N_COUNTS, SOURCE_ROW, EMBEDDING, GENE)
"""Names an obs column may not bear."""

QUALITY_CONTROL = "quality control"
"""Why a cell was left out that the verdicts of quality control do not let pass."""

FILTER_PASS = "filter_pass"  # noqa: S105  # the official name of the obs column that selects cells

SOURCE = "source"
DATASET = "dataset"
MITO_COUNTS = "mito_counts"
MITO_FRACTION = "mito_fraction"
N_GENES = "n_genes"
DOUBLET_SCORE = "doublet_score"
REASON = "reason"

TOTAL_COUNT, MITOCHONDRIAL, DOUBLET = "total count out of bounds", "mitochondrial content out of bounds", "doublet"
QUALITY_REASONS = (
    "filter_pass of the file",
    "malignant or immortalised",
    "no counts",
    TOTAL_COUNT,
    MITOCHONDRIAL,
    "too few genes",
    DOUBLET,
)
"""Why a cell does not pass quality control. The rules apply in this order; a cell has the first reason that holds."""

OBS_TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "real": pa.float64(),
    "flag": pa.bool_(),
}
"""Kinds of obs columns and how they are stored."""


def token_schema(obs_kinds: Mapping[str, str]) -> pa.Schema:
    """Return the schema of a token shard: one row a cell, with the chosen obs columns after the fixed ones."""
    return pa.schema(
        [
            pa.field(INPUT_IDS, pa.list_(pa.uint16()), nullable=False),
            pa.field(LENGTH, pa.int32(), nullable=False),
            pa.field(CELL_ID, pa.string(), nullable=False),
            pa.field(N_COUNTS, pa.float64(), nullable=False),
            pa.field(SOURCE_ROW, pa.int64(), nullable=False),
            *(pa.field(name, OBS_TYPES[kind]) for name, kind in obs_kinds.items()),
        ]
    )


def embedding_schema(width: int, obs: pa.Schema, *, per_gene: bool) -> pa.Schema:
    """Return the schema of embeddings: one row a cell, or one row a cell and gene."""
    return pa.schema(
        [
            pa.field(CELL_ID, pa.string(), nullable=False),
            pa.field(SOURCE_ROW, pa.int64(), nullable=False),
            *([pa.field(GENE, pa.string(), nullable=False)] if per_gene else []),
            pa.field(EMBEDDING, pa.list_(pa.float32(), width), nullable=False),
            *obs,
        ]
    )


def quality_schema() -> pa.Schema:
    """Return the schema of quality control: one row for each cell of the sources, in their order.

    `mito_counts` and `mito_fraction` are null where the file has no mitochondrial gene, `doublet_score` where the cell
    was not scored, `reason` where the cell passed.
    """
    return pa.schema(
        [
            pa.field(CELL_ID, pa.string(), nullable=False),
            pa.field(SOURCE, pa.string(), nullable=False),
            pa.field(SOURCE_ROW, pa.int64(), nullable=False),
            pa.field(DATASET, pa.string(), nullable=False),
            pa.field(N_COUNTS, pa.float64(), nullable=False),
            pa.field(MITO_COUNTS, pa.float64()),
            pa.field(MITO_FRACTION, pa.float64()),
            pa.field(N_GENES, pa.int32(), nullable=False),
            pa.field(DOUBLET_SCORE, pa.float64()),
            pa.field(FILTER_PASS, pa.bool_(), nullable=False),
            pa.field(REASON, pa.string()),
        ]
    )


class Record(BaseModel):
    """Base of what manifests are made of: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GeneReport(Record):
    """How the columns of a source became tokens.

    Attributes
    ----------
    ids_from
        Where the gene ids were found.
    columns
        Of the matrix; each is counted once as `known`, `summed` (into another column of the same gene),
        `without_median` or `unknown`.
    versioned, retired, by_symbol
        Of the known and summed ones, those told by an id with a version, by an id that is no longer used, by a symbol.
    """

    ids_from: str
    columns: int
    known: int
    summed: int
    without_median: int
    unknown: int
    versioned: int = 0
    retired: int = 0
    by_symbol: int = 0


class PartRecord(Record):
    """One published parquet file.

    Attributes
    ----------
    path
        Below the artefact's directory; or, in a corpus that refers to another's shards, an absolute path or URI.
    rows
        Rows in the file.
    sha256
        Of the file's bytes.
    source
        Index of the source (corpus) or input shard (embeddings) it was made from.
    start, stop
        Row range of that source.
    counts
        Whatever else the stage counted, as cells dropped by reason and tokens.
    """

    path: str
    rows: int
    sha256: str
    source: int
    start: int
    stop: int
    counts: dict[str, int] = {}

    def uri_in(self, directory: str) -> str:
        """Return where the file lies, for an artefact at `directory`."""
        return storage.resolve(directory, self.path)


class SourceRecord(Record):
    """One file of counts: which version was read, its genes, and where every cell went.

    Attributes
    ----------
    cells, kept, dropped
        Every cell read is kept or dropped for one reason.
    stored_zeros
        Values that are stored although they are 0.
    duplicate_entries
        Values that were added to another of the same cell and column.
    missing
        Of each obs column that was kept, cells without a value, where there are any.
    """

    uri: str
    format: str
    matrix: str
    size: int
    version: str
    cells: int
    kept: int
    dropped: dict[str, int]
    genes: GeneReport
    stored_zeros: int
    duplicate_entries: int = 0
    missing: dict[str, int] = {}
    warnings: tuple[str, ...]


class RepeatedNames(Record):
    """Cell names that stand more than once; cells are told apart by source and row.

    Attributes
    ----------
    within
        Cells that bear the name of an earlier cell of the same source.
    across
        Names that stand in several sources.
    """

    within: int
    across: int


class FailedSource(Record):
    """One file that was left out, and why."""

    uri: str
    error: str


class Parent(Record):
    """A token corpus that another was made from: where it was and the digest of its manifest."""

    uri: str
    digest: str


class Encoding(Record):
    """Parameters of rank value encoding."""

    input_size: int
    special_tokens: dict[str, int]


class Manifest(Record):
    """What every artefact's manifest holds."""

    format_version: Literal[1] = 1
    request: str
    parts: tuple[PartRecord, ...]
    software: dict[str, str]

    @property
    def rows(self) -> int:
        """Rows in all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def all_parts(self) -> tuple[PartRecord, ...]:
        """Every part that a finished artefact holds."""
        return self.parts

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's content, the name of this artefact in lineage."""
        return storage.sha256_bytes(self.to_json())

    def to_json(self) -> bytes:
        """Serialise; equal manifests give equal bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read the manifest of the artefact at a URI.

        Raises
        ------
        InputError
            There is none, or it is of another kind.
        """
        path = storage.join(uri, MANIFEST)
        kind = cls.model_fields["artefact"].default
        if not storage.exists(path):
            raise InputError(
                uri,
                f"{_article(kind)} holds {MANIFEST}",
                "no such file",
                "It is not there or not finished: run its job again.",
            )
        value = storage.read_json(path)
        if isinstance(value, dict) and value.get("artefact") == kind:
            known = cls.model_fields[FORMAT_VERSION].default
            require_known_version(path, kind, value.get(FORMAT_VERSION), known, value.get("software"))
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"] == ("artefact",) or first["type"] == "missing":
                found = str(value.get("artefact", "something else") if isinstance(value, dict) else "something else")
                raise InputError(uri, f"it must be {_article(kind)}", found, "Check the path.") from None
            where = ".".join(map(str, first["loc"]))
            newer = first["type"] == "extra_forbidden"
            fix = "A newer cellray may have written it: upgrade." if newer else "Check the path."
            raise InputError(
                path, f"it must be the manifest of {_article(kind)}", f"{where}: {said(first)}", fix
            ) from None


_WITHOUT_ARTICLE = re.compile("quality control|.*[^u]s")  # what stands in the plural, as most names do


def _article(kind: str) -> str:
    """Return what an artefact is called, with its article where it has one."""
    if _WITHOUT_ARTICLE.fullmatch(kind):
        return kind
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


class CorpusManifest(Manifest):
    """Manifest of a token corpus."""

    artefact: Literal["token corpus"] = "token corpus"
    encoding: Encoding
    vocabulary_digest: str
    obs_kinds: dict[str, str]
    sources: tuple[SourceRecord, ...]
    failed: tuple[FailedSource, ...] = ()
    repeated_names: RepeatedNames | None = None
    parents: tuple[Parent, ...] = ()
    made_by: str = "tokenization"


class EmbeddingManifest(Manifest):
    """Manifest of embeddings."""

    artefact: Literal["embeddings"] = "embeddings"
    corpus: str
    corpus_digest: str
    model: str
    model_digest: str
    layer: int
    pooling: str
    width: int


def software_versions(*packages: str) -> dict[str, str]:
    """Return the versions that shape an artefact."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("cellray", *packages)}}


def request_digest(**parameters: Any) -> str:  # noqa: ANN401
    """Return the digest of everything that decides an artefact's content."""
    return storage.sha256_json(parameters)
