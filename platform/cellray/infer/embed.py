"""Embeddings of a token corpus on Ray Data: actors that hold the model, batches by length, one part a row range."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.collate import TokenRows, token_budget_batches
from cellray.data.corpora.corpus import Corpus
from cellray.data.parts import PartWriter, Unit
from cellray.data.publishing import finished, publish_manifest
from cellray.data.session import default_threads, ensure_ray, plain_errors
from cellray.data.units import ActorPool, require_records, run_units_on_actors
from cellray.errors import InputError
from cellray.model.encoder import CellEncoder, check_layer, load_encoder
from cellray.model.pooling import CELL_POOLINGS, Pooling, check_pooling, is_gene_token
from cellray.models import ModelReference, open_model
from cellray.schema import EmbeddingManifest

logger = logging.getLogger(__name__)

PER_GENE = "gene"
_CELLS_PER_GENE_TABLE = 32  # bounds memory: each cell gives thousands of vectors
TOKEN_BUDGET = {"cpu": 2048, "gpu": 65536}
"""Default budgets: a CPU is fastest while a batch's activations stay in its caches, a GPU when it is full."""


class EmbedConfig(JobConfig):
    """Embed every cell of a token corpus."""

    corpus: str = Field(description="token corpus, from jobs.tokenize_corpus")
    model: str = Field(
        description="model directory, from jobs.pretrain or an official Geneformer one; or models:/NAME@ALIAS"
    )
    output: str = Field(description="directory or s3:// URI of the embeddings (parquet)")
    layer: int = Field(-1, description="hidden state: 0 = last, -1 = second to last, ...")
    pooling: Pooling = Field(
        "cell", description="cell = mean over genes, cls = the <cls> row, gene = a row for each gene"
    )
    h5ad: str | None = Field(None, description="also write an .h5ad here: obs of the sources, obsm['X_cellray']")
    umap: str | None = Field(None, description="also draw the UMAP to this .png, coloured by --label")
    label: str | None = Field(None, description="obs column that colours the UMAP; must be in the corpus")
    token_budget: int | None = Field(
        None,
        ge=1,
        description="tokens computed at once with padding, default: 2,048 on CPU, 65,536 on GPU [tokens]",
    )
    cells_per_part: int = Field(2048, ge=1, description="most cells of a parquet part [cells]")
    actors: tuple[int, int] = Field((1, 1), description="least and most model replicas, as 1,8")
    cpus_per_actor: float = Field(1, gt=0, description="CPUs each replica reserves [CPUs]")
    threads: int | None = Field(
        None,
        ge=1,
        description="torch threads of a replica on CPU, default: all cores for one replica, else cpus-per-actor",
    )
    gpus_per_actor: float = Field(
        0, ge=0, description="GPUs each replica reserves; above 0 the model runs on CUDA [GPUs]"
    )
    tracking_uri: str | None = Field(
        None,
        description="MLflow that knows models:/ names; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db",
    )

    @field_validator("actors", mode="before")
    @classmethod
    def _one_number(cls, value: object) -> object:
        """Take one number for both bounds."""
        if isinstance(value, int | str) or (isinstance(value, list | tuple) and len(value) == 1):
            only = value if isinstance(value, int | str) else value[0]
            return (only, only)
        return value

    @model_validator(mode="after")
    def _sensible(self) -> "EmbedConfig":
        low, high = self.actors
        if not 1 <= low <= high:
            raise ValueError(f"--actors {low},{high}: at least 1, and not more at least than at most")
        if self.pooling == PER_GENE and (self.h5ad or self.umap):
            raise ValueError("--h5ad and --umap need one embedding a cell: --pooling cell or cls")
        if (self.umap is None) != (self.label is None):
            raise ValueError("--umap and --label go together")
        return self


def embed_rows(
    encoder: CellEncoder, rows: TokenRows, pooling: str, gene_v: torch.Tensor, token_budget: int
) -> list[NDArray[np.float32]]:
    """Embed token rows.

    Parameters
    ----------
    encoder
        The model's layers.
    rows
        Token rows in any order.
    pooling
        `cell` or `cls` (one vector a cell) or `gene` (one vector a gene token).
    gene_v
        Which token ids are genes, from `cellray.model.pooling.is_gene_token`, on the encoder's device.
    token_budget
        Tokens computed at once.

    Returns
    -------
    list[NDArray[np.float32]]
        For each row its embedding, shape (hidden,), or for `gene` (gene tokens, hidden), in the order of the tokens.
    """
    out: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows.lengths)
    for chosen in token_budget_batches(rows.lengths, token_budget):
        input_ids_nl = torch.from_numpy(rows.pad(chosen, encoder.pad_id)).to(gene_v.device)
        gene_nl = gene_v[input_ids_nl]
        with torch.inference_mode():
            hidden_nld = encoder(input_ids_nl)
            if pooling == PER_GENE:
                per_gene = hidden_nld[gene_nl].float().cpu().split(gene_nl.sum(1).tolist())
                result = [tensor.numpy() for tensor in per_gene]
            else:
                result = list(CELL_POOLINGS[pooling](hidden_nld, gene_nl).cpu().numpy())
        for index, embedding in zip(chosen, result, strict=True):
            out[index] = embedding
    return out


@dataclass(frozen=True)
class EmbedOptions:
    """What a replica needs; small, since it travels to each of them."""

    corpus: str
    model: ModelReference
    layer: int
    pooling: str
    token_budget: int
    obs_columns: tuple[str, ...]
    threads: int
    gpu: bool


class EmbedWorker:
    """Holds a model and embeds one row range after the other."""

    def __init__(self, options: EmbedOptions) -> None:
        torch.set_num_threads(options.threads)
        self._options = options
        device = _accelerator() if options.gpu else torch.device("cpu")
        self._encoder = load_encoder(options.model.open(), options.layer, device)
        self._corpus = Corpus.open(options.corpus)
        self._gene_v = is_gene_token(self._corpus.vocabulary, device)
        self._gene_names = self._corpus.vocabulary.gene_of_token

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        options = self._options
        columns = [schema.INPUT_IDS, schema.CELL_ID, schema.SOURCE_ROW, *options.obs_columns]
        table = self._corpus.read(unit.uri, unit.start, unit.stop, columns)
        obs = table.select(options.obs_columns).schema
        per_gene = options.pooling == PER_GENE
        self._schema = schema.embedding_schema(self._encoder.width, obs, per_gene=per_gene)
        part = open_part(self._schema)
        step = _CELLS_PER_GENE_TABLE if per_gene else max(1, table.num_rows)
        for start in range(0, table.num_rows, step):
            cells = table.slice(start, step)
            rows = TokenRows.from_arrow(cells[schema.INPUT_IDS])
            embeddings = embed_rows(self._encoder, rows, options.pooling, self._gene_v, options.token_budget)
            part.counts["tokens"] += len(rows.input_ids)
            part.write(
                self._gene_table(cells, rows, embeddings) if per_gene else self._table(cells, np.stack(embeddings))
            )

    def _gene_table(self, cells: pa.Table, rows: TokenRows, embeddings: list[NDArray[np.float32]]) -> pa.Table:
        """Return a row for each gene of each cell."""
        cell = np.repeat(np.arange(cells.num_rows), [len(e) for e in embeddings])
        tokens = rows.input_ids[self._gene_v.cpu().numpy()[rows.input_ids]]
        names = pa.array([self._gene_names[int(token)] for token in tokens], pa.string())
        return self._table(cells.take(pa.array(cell)), np.concatenate(embeddings), names)

    def _table(self, cells: pa.Table, embedding_nd: NDArray[np.float32], gene: pa.Array | None = None) -> pa.Table:
        """Put embeddings beside what names them."""
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(embedding_nd.reshape(-1)), self._encoder.width)
        names = [cells[schema.CELL_ID], cells[schema.SOURCE_ROW], *([] if gene is None else [gene])]
        return pa.table([*names, vectors, *(cells[c] for c in self._options.obs_columns)], schema=self._schema)


def _accelerator() -> torch.device:
    """Return the device a replica that reserves a GPU computes on.

    Raises
    ------
    InputError
        The worker sees none.
    """
    device = torch.accelerator.current_accelerator()
    if device is None:
        raise InputError("--gpus-per-actor", "needs a GPU that torch can use", "none on the worker", "Set it to 0.")
    return device


@plain_errors()
def embed_cells(config: EmbedConfig) -> EmbeddingManifest:
    """Embed a corpus and publish the embeddings with their manifest.

    A finished result of the same request is returned as it is; after an interruption only the missing parts are made.

    Raises
    ------
    InputError
        Corpus or model are unfinished or do not fit together, or the output holds something else.
    """
    corpus = Corpus.open(config.corpus)
    model, reference = open_model(config.model, config.tracking_uri)
    check_pooling(config.pooling, corpus.vocabulary)
    model.require_vocabulary(corpus.vocabulary, f"corpus {corpus.uri}", corpus.manifest.encoding.input_size)
    check_layer(model, config.layer)
    if config.label is not None:
        corpus.require_column(config.label, "--label")
    output = storage.absolute(config.output)
    budget = config.token_budget or TOKEN_BUDGET["gpu" if config.gpus_per_actor else "cpu"]
    parameters = {"model": model.digest, "layer": config.layer, "pooling": config.pooling, "budget": budget}
    units = corpus.plan_units(config.cells_per_part, **parameters)
    request = schema.request_digest(artefact="embeddings", units=[unit.key for unit in units])
    if done := finished(output, request, EmbeddingManifest):
        return done
    load_encoder(model, config.layer)  # weights that do not fit fail before actors start
    ensure_ray()
    options = EmbedOptions(
        corpus=corpus.uri,
        model=reference,
        layer=config.layer,
        pooling=config.pooling,
        token_budget=budget,
        obs_columns=tuple(corpus.manifest.obs_kinds),
        threads=config.threads or default_threads(config.actors[1], config.cpus_per_actor),
        gpu=config.gpus_per_actor > 0,
    )
    pool = ActorPool(*config.actors, num_cpus=config.cpus_per_actor, num_gpus=config.gpus_per_actor)
    parts = require_records(run_units_on_actors("embed", output, units, lambda: EmbedWorker(options), pool))
    manifest = EmbeddingManifest(
        request=request,
        parts=parts,
        software=schema.software_versions("torch", "transformers", "pyarrow"),
        corpus=corpus.uri,
        corpus_digest=corpus.manifest.digest,
        model=reference.uri,
        model_digest=model.digest,
        layer=config.layer,
        pooling=config.pooling,
        width=int(model.config.hidden_size),
    )
    publish_manifest(output, manifest)
    return manifest
