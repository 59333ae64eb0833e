"""Requests and answers of the server, as pydantic models with worked examples; OpenAPI shows them as they stand here.

Knows nothing of models, files or HTTP. What the models cannot tell by themselves (a gene listed twice, an index out of
range) is checked where cells become arrays, in `cellray.api.wire`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pooling = Literal["cell", "cls", "gene"]
Kind = Literal["delete", "overexpress", "inhibit", "activate"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]
Column = list[str | None] | list[int | None] | list[float | None]
"""A column of a table: text, whole numbers or numbers; null where there is none."""

CELL_ID_LENGTH = 512
"""Most characters of a cell's id."""
GENE_LENGTH = 128
"""Most characters of a gene's id."""
CellId = Annotated[str, Field(max_length=CELL_ID_LENGTH)]
Gene = Annotated[str, Field(max_length=GENE_LENGTH)]

_SHARED = {"genes": ["ENSG00000136574", "ENSG00000089225", "ENSG00000092054"]}
_CELLS = {**_SHARED, "cells": [{"id": "c1", "counts": [3, 1, 12]}, {"id": "c2", "indices": [0, 2], "counts": [5, 7]}]}
_STAMP = {"name": "default", "uri": "models:/heart/3", "digest": "9f2c" + 60 * "0", "vocabulary_digest": "41aa" * 16}
_NOTES = [
    {"id": "c1", "genes_given": 3, "genes_mapped": 3, "tokens": 3, "truncated": False},
    {"id": "c2", "genes_given": 2, "genes_mapped": 2, "tokens": 2, "truncated": False},
]


def _example(*values: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(values)})


class Message(BaseModel):
    """Base of all requests and answers: frozen, nothing unknown, no text where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class CellCounts(Message):
    """Raw counts of one cell: of its own `genes`, of `indices` into the request's genes, or one for each of those."""

    id: CellId = Field(description="name of the cell; comes back with the answer")
    genes: list[Gene] | None = Field(None, description="gene ids of this cell, one for each count")
    indices: list[int] | None = Field(None, description="places in the request's `genes`, one for each count")
    counts: list[float] = Field(description="raw counts: whole numbers >= 0")

    @model_validator(mode="after")
    def _one_way(self) -> "CellCounts":
        if self.genes is not None and self.indices is not None:
            raise ValueError("a cell has `genes` or `indices` or neither, not both")
        named = self.genes if self.genes is not None else self.indices
        if named is not None and len(named) != len(self.counts):
            raise ValueError(f"{len(named)} genes for {len(self.counts)} counts")
        return self


class CellsRequest(Message):
    """Cells and the model to ask about them."""

    model: str = Field("default", description="a name from GET /v1/models")
    genes: list[Gene] | None = Field(
        None, description="Ensembl IDs (or symbols the model knows) that the cells share; send them once"
    )
    cells: list[CellCounts] = Field(min_length=1)


class CellsResponse(Message):
    """Cells of a file, in the form that requests take, with what the file tells of them."""

    model_config = _example(
        {
            "about": "",
            **_SHARED,
            "symbols": ["GATA4", "TBX5", "MYH6"],
            "cells": [{"id": "c1", "indices": [0, 1, 2], "counts": [3, 1, 12]}],
            "obs": {"cell_type": ["cardiomyocyte"], "n_counts": [16]},
            "obs_left_out": 0,
        }
    )

    about: str = Field("", description="where the cells come from; empty for a file that was sent")
    genes: list[Gene]
    symbols: list[str] | None = Field(None, description="names of the genes for people, where the file tells them")
    cells: list[CellCounts]
    obs: dict[str, Column] = Field(description="the file's columns about cells, in order, with a value a cell")
    obs_left_out: int = Field(0, description="columns beyond the most that are told")


class EmbeddingRequest(CellsRequest):
    """Ask for embeddings."""

    model_config = _example(_CELLS, {**_CELLS, "pooling": "gene", "layer": 0})

    pooling: Pooling = Field("cell", description="cell = mean over genes, cls = the <cls> row, gene = a row a gene")
    layer: int = Field(-1, description="hidden state: 0 = last, -1 = second to last, ...")


class PredictionRequest(CellsRequest):
    """Ask a fine-tuned model what it tells of cells."""

    model_config = _example(_CELLS)


class PerturbationRequest(CellsRequest):
    """Perturb genes of cells in silico."""

    model_config = _example(
        {**_CELLS, "kind": "delete", "perturb": "all", "top": 20},
        {**_CELLS, "kind": "overexpress", "perturb": ["ENSG00000136574"], "start": "sick", "goal": "healthy"},
    )

    kind: Kind = Field("delete", description="what happens to the genes")
    quartiles: int = Field(1, ge=1, le=3, description="quartiles of rank to move by; for inhibit and activate")
    perturb: Literal["all"] | list[Gene] = Field(
        "all", description="all genes of each cell, one by one; or genes, one by one unless together or pairs"
    )
    together: bool = Field(False, description="perturb the listed genes together")
    pairs: bool = Field(False, description="perturb all pairs of the listed genes, and each of them")
    anchor: list[Gene] = Field([], description="genes perturbed together with each of the others")
    start: str | None = Field(None, description="state of the model's configuration: shifts towards it are told")
    goal: str | None = Field(None, description="state that the strongest are chosen by")
    alternatives: list[str] = Field([], description="further states to tell shifts towards")
    layer: int = Field(-1, description="hidden state; states are of one layer")
    pooling: Literal["cell", "cls"] = Field("cell", description="cell (mean over genes) or cls (V2 models)")
    top: int | None = Field(
        100, ge=1, description="rows of each cell: the strongest by the shift to the goal, else by effect; null: all"
    )
    background: bool | None = Field(
        None, description="true: as a job; false: refuse what is too much to wait for; null: the server decides"
    )


class ModelStamp(Message):
    """Which model answered, for good."""

    name: str
    uri: str = Field(description="directory name, or models:/NAME/VERSION")
    digest: str = Field(description="SHA-256 of the weights")
    vocabulary_digest: str


class CellNote(Message):
    """What became of one cell."""

    id: str
    genes_given: int = Field(description="counts above zero")
    genes_mapped: int = Field(description="of these, genes that the model knows; 0: no embedding")
    tokens: int = Field(description="tokens the model saw, special tokens included")
    truncated: bool = Field(description="whether genes were cut off at the model's input size")


class GeneEmbeddings(Message):
    """Embeddings of a cell's genes, in rank order."""

    id: str
    genes: list[str]
    embeddings: list[list[float]]


class EmbeddingResponse(Message):
    """Embeddings of cells, or of their genes. Binary: table id, (gene,) embedding."""

    model_config = _example(
        {"model": _STAMP, "pooling": "cell", "layer": -1, "notes": _NOTES, "embeddings": [[0.12, -1.4], [0.1, -1.3]]}
    )

    model: ModelStamp
    pooling: Pooling
    layer: int
    notes: list[CellNote]
    embeddings: list[list[float] | None] | None = Field(
        None, description="one a cell, in the request's order, null for a cell without a known gene; not for `gene`"
    )
    genes: list[GeneEmbeddings] | None = Field(None, description="for pooling `gene`")


class PredictionResponse(Message):
    """What a fine-tuned model tells. Binary: the table."""

    model_config = _example(
        {
            "model": _STAMP,
            "notes": _NOTES,
            "table": {
                "cell_id": ["c1", "c2"],
                "disease": ["sick", "healthy"],
                "disease.probability": [0.9, 0.6],
                "disease.probability.sick": [0.9, 0.4],
                "disease.probability.healthy": [0.1, 0.6],
            },
        }
    )

    model: ModelStamp
    notes: list[CellNote]
    table: dict[str, Column] | None = Field(None, description="columns, in order; null for a cell without known genes")


class PerturbationResponse(Message):
    """Effects of perturbations, the strongest of each cell first. Binary: the table."""

    model_config = _example(
        {
            "model": _STAMP,
            "notes": _NOTES,
            "counts": {"perturbations": 3, "perturbations that do not apply to a cell": 0},
            "table": {
                "cell_id": ["c1", "c1", "c2"],
                "perturbation": [5, 9, 5],
                "genes": ["ENSG00000136574", "ENSG00000089225", "ENSG00000136574"],
                "rank": [0, 2, 1],
                "cell_genes": [3, 3, 2],
                "similarity": [0.981, 0.995, 0.99],
            },
        }
    )

    model: ModelStamp
    notes: list[CellNote]
    counts: dict[str, int] = Field(
        description="perturbations computed, those that did not apply to a cell, and rows left out where `top` cut some"
    )
    table: dict[str, Column] | None = Field(
        None, description="columns, in order: cell_id, perturbation, genes, rank, cell_genes, similarity, shift:STATE"
    )


class JobStatus(Message):
    """How far a long request is."""

    model_config = _example(
        {"id": "7d0f3a", "state": "running", "progress": 0.25, "done": 512, "total": 2048, "seconds_left": 41.0}
    )

    id: str
    state: JobState
    progress: float = Field(ge=0, le=1)
    done: int = Field(description="perturbations of cells that were looked at")
    total: int
    seconds_left: float | None = Field(None, description="an estimate; null before there is one")
    result: str | None = Field(None, description="where the result is, once it is done")
    error: str | None = Field(None, description="why it failed, or why its result is gone")
    created: str | None = Field(None, description="when it was asked for: ISO 8601, UTC")
    key: str | None = Field(None, description="name of the key that asked; told to keys with the scope admin alone")


class HeadInfo(Message):
    """One thing that a fine-tuned model tells."""

    name: str
    kind: str
    level: str
    classes: list[str]


class LimitsInfo(Message):
    """What a request may hold, by the names of the server's options; null: an older server does not tell."""

    body_mb: float = Field(description="of a body, decompressed [MB]")
    json_mb: float | None = Field(None, description="of a JSON body [MB]")
    response_mb: float | None = Field(None, description="of the numbers of an answer [MB]")
    cells_per_request: int
    genes_per_cell: int = Field(description="counts of a cell")
    genes_per_request: int | None = Field(None, description="names of genes of a request, or columns of an .h5ad")
    counts_per_request: int | None = Field(None, description="counts of all cells of a request")
    max_queued_cells: int | None = Field(
        None, description="cells of all requests that this model takes at a time; half of them find room soonest"
    )
    perturbation_tokens: int = Field(description="tokens computed at once; more becomes a job")
    job_tokens: int = Field(description="most tokens of a job")
    jobs_per_key: int | None = Field(None, description="jobs of one key that wait or run")
    job_ttl_s: float | None = Field(None, description="how long results of jobs are kept [s]")
    request_timeout_s: float


class ModelInfo(Message):
    """A model that is served."""

    name: str
    uri: str
    digest: str
    vocabulary_digest: str
    layers: int
    width: int = Field(description="size of an embedding")
    input_size: int = Field(description="most tokens of a cell")
    genes: int = Field(description="genes with a median")
    poolings: list[Pooling]
    heads: list[HeadInfo]
    states: list[str]
    limits: LimitsInfo


class ModelsResponse(Message):
    """All models that are served."""

    models: list[ModelInfo]


class HealthResponse(Message):
    """Answer of /healthz and /readyz."""

    status: Literal["ok", "starting", "draining"]
    models: dict[str, bool] = Field({}, description="of each model, whether a replica answers")


class Limit(Message):
    """A limit that a request broke."""

    name: str
    value: float


class ErrorDetail(Message):
    """What went wrong."""

    code: str = Field(description="one word to branch on, as limit_exceeded, queue_full, invalid_request")
    message: str = Field(description="which rule, what was found, what to do")
    limit: Limit | None = None
    retry_after_s: float | None = None
    request_id: str | None = None


class ErrorBody(Message):
    """Body of every answer with an error status."""

    model_config = _example(
        {
            "error": {
                "code": "limit_exceeded",
                "message": "a request may hold 512 cells; found 600. Send them in several requests.",
                "limit": {"name": "cells_per_request", "value": 512},
                "request_id": "5b1e",
            }
        }
    )

    error: ErrorDetail
