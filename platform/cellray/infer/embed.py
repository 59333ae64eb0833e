"""Embeddings of a token corpus on Ray Data: actors that hold the model, batches by length, one part a row range."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cellray import schema, storage
from cellray.data.collate import TokenRows, token_budget_batches
from cellray.data.parts import PartWriter, Unit
from cellray.data.publishing import finished, publish_manifest
from cellray.data.session import plain_errors
from cellray.data.units import require_records, run_units_on_actors
from cellray.infer.replicas import Replica, ReplicaConfig, open_pair
from cellray.model.encoder import CellEncoder, check_layer, first_hidden_states, load_encoder
from cellray.model.pooling import CELL_POOLINGS, Pooling, check_pooling, is_gene_token
from cellray.schema import EmbeddingManifest

logger = logging.getLogger(__name__)

PER_GENE = "gene"
_CELLS_PER_GENE_TABLE = 32  # bounds memory: each cell gives thousands of vectors


class EmbedConfig(ReplicaConfig):
    """Embed every cell of a token corpus."""

    output: str = Field(description="directory or s3:// URI of the embeddings (parquet)")
    layer: int = Field(-1, description="hidden state: 0 = last, -1 = second to last, ...")
    pooling: Pooling = Field(
        "cell", description="cell = mean over genes, cls = the <cls> row, gene = a row for each gene"
    )
    h5ad: str | None = Field(None, description="also write an .h5ad here: obs of the sources, obsm['X_cellray']")
    umap: str | None = Field(None, description="also draw the UMAP to this .png, coloured by --label")
    label: str | None = Field(None, description="obs column that colours the UMAP; must be in the corpus")

    @model_validator(mode="after")
    def _sensible(self) -> "EmbedConfig":
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
            if pooling == "cls":
                result = list(first_hidden_states(encoder.bert, input_ids_nl, encoder.pad_id).float().cpu().numpy())
            elif pooling == PER_GENE:
                per_gene = encoder(input_ids_nl)[gene_nl].float().cpu().split(gene_nl.sum(1).tolist())
                result = [tensor.numpy() for tensor in per_gene]
            else:
                result = list(CELL_POOLINGS[pooling](encoder(input_ids_nl), gene_nl).cpu().numpy())
        for index, embedding in zip(chosen, result, strict=True):
            out[index] = embedding
    return out


@dataclass(frozen=True)
class EmbedOptions:
    """What a replica needs; small, since it travels to each of them."""

    replica: Replica
    layer: int
    pooling: str
    obs_columns: tuple[str, ...]


class EmbedWorker:
    """Holds a model and embeds one row range after the other."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        self._corpus, model, device = options.replica.open()
        self._encoder = load_encoder(model, options.layer, device)
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
            embeddings = embed_rows(self._encoder, rows, options.pooling, self._gene_v, options.replica.token_budget)
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


@plain_errors()
def embed_cells(config: EmbedConfig) -> EmbeddingManifest:
    """Embed a corpus and publish the embeddings with their manifest.

    A finished result of the same request is returned as it is; after an interruption only the missing parts are made.

    Raises
    ------
    InputError
        Corpus or model are unfinished or do not fit together, or the output holds something else.
    """
    corpus, model, reference = open_pair(config)
    check_pooling(config.pooling, corpus.vocabulary)
    check_layer(model, config.layer)
    if config.label is not None:
        corpus.require_column(config.label, "--label")
    output = storage.absolute(config.output)
    parameters = {"model": model.digest, "layer": config.layer, "pooling": config.pooling, "budget": config.budget}
    units = corpus.plan_units(config.cells_per_part, **parameters)
    request = schema.request_digest(artefact="embeddings", units=[unit.key for unit in units])
    if done := finished(output, request, EmbeddingManifest):
        return done
    load_encoder(model, config.layer)  # weights that do not fit fail before actors start
    replica, obs_columns = config.replica(corpus, reference), tuple(corpus.manifest.obs_kinds)
    options = EmbedOptions(replica, config.layer, config.pooling, obs_columns)
    parts = require_records(run_units_on_actors("embed", output, units, lambda: EmbedWorker(options), config.pool))
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
