"""Attention weights of a token corpus: the largest of each cell, and tables of pairs of genes and of heads over cells.

What a replica computes is `cellray.infer.attention_worker`'s.
"""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from cellray import schema, storage
from cellray.attention_schema import AttentionManifest, TopBy
from cellray.data.corpora.corpus import Corpus
from cellray.data.medians.gene_tables import read_symbols
from cellray.data.parts import Unit
from cellray.data.progress import Measure
from cellray.data.publishing import finished, publish_manifest
from cellray.data.session import plain_errors
from cellray.data.units import require_records, run_units_on_actors
from cellray.infer.attention_parts import PARTIAL, add_sums, find_with_sums
from cellray.infer.attention_plan import (
    EVERY,
    Panel,
    cell_groups,
    cells_of_tokens,
    check_size,
    chosen_numbers,
    chosen_units,
    frequent_genes,
    require_seen,
    symbols_of,
    token_names,
)
from cellray.infer.attention_sums import HeadSums, PairSums
from cellray.infer.attention_tables import Axes, write_heads, write_pairs
from cellray.infer.attention_worker import COUNTED, AttentionOptions, AttentionWorker
from cellray.infer.choice import choose_cells
from cellray.infer.design import tokens_of
from cellray.infer.replicas import ReplicaConfig, open_pair
from cellray.model.encoder import load_encoder
from cellray.model.pooling import is_gene_token
from cellray.schema import PartRecord

_ASKED = {"top_k", "top_by", "special_tokens", "label"}
logger = logging.getLogger(__name__)

_MOST_GENES = 200
_BUDGET = 4096  # a batch's largest weights are in memory together, so a GPU gets no more


class AttentionConfig(ReplicaConfig):
    """Write the attention weights of a model: the largest of each cell, and means over cells."""

    output: str = Field(description="directory or s3:// URI of the weights (parquet)")
    token_budget: int | None = Field(
        None,
        ge=1,
        description="tokens computed at once with padding, default: 2,048 on CPU, 4,096 on GPU [tokens]",
    )
    layers: tuple[str, ...] = Field((EVERY,), description="all, or numbers from 0, the lowest")
    heads: tuple[str, ...] = Field((EVERY,), description="all, or numbers from 0")
    top_k: int = Field(100, ge=0, description="largest weights to write; 0: the tables over cells alone [weights]")
    top_by: TopBy = Field("cell", description="cell: so many of each cell, layer and head; query: of each query, too")
    special_tokens: bool = Field(False, description="tell special tokens as queries and keys, too")
    queries: tuple[str, ...] = Field(
        (), description="Ensembl IDs or symbols: what these genes attend to, among all genes (or --genes); default: all"
    )
    genes: tuple[str, ...] = Field((), description="Ensembl IDs or symbols: tell pairs of these only; default: all")
    gene_names: str | None = Field(
        None,
        description="Ensembl IDs and symbols, read and told (.csv, .tsv, .parquet, .json); default: the vocabulary's",
    )
    most_genes: int | None = Field(
        None,
        ge=1,
        description="without --genes: pairs of those that most cells have, default: 200, with --queries all [genes]",
    )
    label: str | None = Field(None, description="obs column of the corpus that parts the tables over cells")
    max_cells: int | None = Field(None, ge=1, description="take so many cells, drawn evenly over --donor [cells]")
    donor: str | None = Field(None, description="obs column of donors, for --max-cells")
    seed: int = Field(0, ge=0, description="of the draw of cells")
    plots: str | None = Field(None, description="also draw pictures (.png, .csv of pairs) into this directory")
    min_cells: int | None = Field(
        None,
        ge=1,
        description="pictures: pairs in fewer cells are left out, default: 10, or 5 % of fewer than 200 [cells]",
    )

    @field_validator("genes", "queries", mode="before")
    @classmethod
    def _names_some(cls, value: object) -> object:
        """Refuse an empty name alone, as of an unset variable in a shell: all genes were not asked for."""
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list | tuple) and names and not any(str(name).strip() for name in names):
            raise ValueError("it names no gene; leave the option out for all genes")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> "AttentionConfig":
        if self.donor is not None and self.max_cells is None:
            raise ValueError("--donor needs --max-cells")
        return self

    @property
    def budget(self) -> int:
        """Tokens computed at once."""
        return self.token_budget or min(super().budget, _BUDGET)


@plain_errors()
def attention(config: AttentionConfig) -> AttentionManifest:
    """Compute attention weights and publish them with their tables and manifest.

    A finished result of the same request is returned as it is; after an interruption only the missing parts are made.

    Raises
    ------
    InputError
        Corpus, model, genes and labels do not fit together, the tables would be too large, or the output holds
        something else.
    """
    corpus, model, reference = open_pair(config)
    chosen_n, skipped = choose_cells(corpus, None, None, config.donor, config.max_cells, config.seed)
    panel, groups = _panel(config, corpus, chosen_n), cell_groups(corpus, config.label)
    symbols = symbols_of(corpus.vocabulary, config.gene_names)
    told: dict[str, Any] = {
        "layers": chosen_numbers("--layers", config.layers, model.n_layers),
        "heads": chosen_numbers("--heads", config.heads, int(model.config.num_attention_heads)),
        "tokens": panel.tokens,
        "only_listed": bool(config.genes),
        "group_names": groups.names,
        **({} if panel.queries is None else {"queries": panel.queries}),
        **config.model_dump(include=_ASKED),
    }
    device = "gpu" if config.gpus_per_actor else "cpu"  # their last bits differ
    parameters = {"model": model.digest, "budget": config.budget, "device": device, **told}
    units, first_of = chosen_units(corpus, config.cells_per_part, chosen_n, parameters)
    del told["label"]
    output = storage.absolute(config.output)
    options = AttentionOptions(
        replica=config.replica(corpus, reference),
        output=output,
        first_of=first_of,
        chosen_n=chosen_n,
        group_n=groups.code_n,
        **told,
    )
    check_size(options.shape, _genes_from(config))
    request = schema.request_digest(artefact="attention weights", units=[unit.key for unit in units])
    if done := finished(output, request, AttentionManifest):
        return done
    load_encoder(model, max(options.layers) + 1 - model.n_layers)  # weights that do not fit fail before actors start
    measure = Measure("cells", lambda unit: int(options.chosen_of(unit).sum()))
    results = run_units_on_actors(
        "attention", output, units, lambda: AttentionWorker(options), config.pool, measure, find_with_sums
    )
    about = {"request": request, "model_digest": model.digest, "genes_seen": panel.genes_seen, "skipped": skipped}
    manifest = _manifest(config, corpus, options, require_records(results), units, about, symbols)
    publish_manifest(output, manifest)
    storage.remove_directory(storage.join(output, PARTIAL))
    return manifest


def _manifest(
    config: AttentionConfig,
    corpus: Corpus,
    options: AttentionOptions,
    parts: tuple[PartRecord, ...],
    units: list[Unit],
    about: dict[str, Any],
    symbols: dict[str, str],
) -> AttentionManifest:
    """Add up the sums of all units, write the tables, and return the manifest."""
    names = token_names(corpus.vocabulary)
    queries, keys = ([names[token] for token in tokens] for tokens in (options.asking, options.tokens))
    axes = Axes(options.group_names, options.layers, options.heads, queries, keys, symbols)
    pairs, heads = PairSums(options.shape), HeadSums(options.shape)
    add_sums(units, options.output, "pairs", pairs)
    add_sums(units, options.output, "heads", heads)
    counted = {name: sum(part.counts[name] for part in parts) for name in COUNTED}
    return AttentionManifest(
        parts=parts,
        software=schema.software_versions("torch", "transformers", "pyarrow"),
        corpus=corpus.uri,
        corpus_digest=corpus.manifest.digest,
        model=options.replica.model.uri,
        **about,
        layers=options.layers,
        heads=options.heads,
        **config.model_dump(include=_ASKED),
        listed=bool(config.genes),
        genes=tuple(keys),
        queries=tuple(queries) if config.queries else (),
        labels=tuple(name for name in options.group_names if name is not None),
        counted={**counted, "weights": counted["pairs"] * options.shape.maps},
        tables=(write_pairs(options.output, pairs, axes), write_heads(options.output, heads, axes)),
    )


def _panel(config: AttentionConfig, corpus: Corpus, chosen_n: NDArray[np.bool_]) -> Panel:
    """Return the genes of the table of pairs, with special tokens where these are told."""
    vocabulary, cells = corpus.vocabulary, int(chosen_n.sum())
    symbols = None if config.gene_names is None else read_symbols(config.gene_names)
    cells_v = cells_of_tokens(corpus, chosen_n)
    cells_v[~is_gene_token(vocabulary).numpy()] = 0

    def listed(option: str, genes: tuple[str, ...]) -> tuple[int, ...]:
        tokens = tuple(tokens_of(vocabulary, genes, option, symbols))
        require_seen(option, cells_v, tokens, corpus, cells)
        return tokens

    most = config.most_genes or (None if config.queries else _MOST_GENES)
    keys = listed("--genes", config.genes) if config.genes else frequent_genes(cells_v, most)
    layout = vocabulary.layout()
    special = tuple(token for token in (layout.cls_id, layout.eos_id) if token is not None)
    if config.special_tokens and not special:
        logger.warning("--special-tokens: the vocabulary has neither <cls> nor <eos> (V1), so there are none to tell")
    queries = listed("--queries", config.queries) if config.queries else None
    return Panel((*keys, *(special if config.special_tokens else ())), int((cells_v > 0).sum()), queries)


def _genes_from(config: AttentionConfig) -> str:
    """Return the options that the number of genes comes from."""
    return ", ".join((*(["--queries"] if config.queries else []), "--genes" if config.genes else "--most-genes"))
