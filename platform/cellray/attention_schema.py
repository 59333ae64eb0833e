"""The tables and the manifest of attention weights; see `cellray.schema` for what all artefacts share."""

from typing import Literal

import pyarrow as pa

from cellray.schema import CELL_ID, SOURCE_ROW, Manifest, PartRecord

LABEL = "label"
LAYER, HEAD = "layer", "head"
QUERY, KEY = "query", "key"
QUERY_RANK, KEY_RANK = "query_rank", "key_rank"
QUERY_NAME, KEY_NAME = "query_name", "key_name"
WEIGHT = "weight"
CELLS = "cells"
SUM, MEAN, MAX = "sum", "mean", "max"
ENTROPY, UNIFORM_ENTROPY = "entropy", "uniform_entropy"
SELF_WEIGHT, SPECIAL_WEIGHT, KEPT_WEIGHT = "self_weight", "special_weight", "kept_weight"
RANK_MASS, EVEN_MASS = "rank_mass", "even_mass"
RANK_BINS = 20
"""Equal steps of a key's relative rank among its cell's genes, highest expression first. A gene belongs to one step, so
steps of one cell hold unequal numbers of genes, and in a cell of fewer genes than steps some hold none."""


def is_special(name: str) -> bool:
    """Whether a query or key is a special token, no gene."""
    return name.startswith("<")


PAIR_TABLE, HEAD_TABLE = "pairs.parquet", "heads.parquet"
"""Tables over all cells, below the directory of the artefact."""

TopBy = Literal["cell", "query"]

_PLACE = [
    pa.field(LABEL, pa.string()),
    pa.field(LAYER, pa.int16(), nullable=False),
    pa.field(HEAD, pa.int16(), nullable=False),
]


def weight_schema() -> pa.Schema:
    """Return the schema of the largest weights: a row for each cell, layer, head, query and key.

    Layers and heads count from 0 at the bottom, as transformers' `attentions` do. Ranks count a cell's genes from 0,
    the highest value; a special token has rank -1 and its name in place of a gene.
    """
    return pa.schema(
        [
            pa.field(CELL_ID, pa.string(), nullable=False),
            pa.field(SOURCE_ROW, pa.int64(), nullable=False),
            *_PLACE,
            pa.field(QUERY, pa.string(), nullable=False),
            pa.field(KEY, pa.string(), nullable=False),
            pa.field(QUERY_RANK, pa.int32(), nullable=False),
            pa.field(KEY_RANK, pa.int32(), nullable=False),
            pa.field(WEIGHT, pa.float32(), nullable=False),
        ]
    )


def pair_schema() -> pa.Schema:
    """Return the schema of pairs over cells: `cells` have both genes; sum, mean and max are over these cells.

    Names are the genes' symbols, null where none is known; results of earlier versions lack them.
    """
    return pa.schema(
        [
            *_PLACE,
            pa.field(QUERY, pa.string(), nullable=False),
            pa.field(KEY, pa.string(), nullable=False),
            pa.field(CELLS, pa.int64(), nullable=False),
            pa.field(SUM, pa.float64(), nullable=False),
            pa.field(MEAN, pa.float64(), nullable=False),
            pa.field(MAX, pa.float32(), nullable=False),
            pa.field(QUERY_NAME, pa.string()),
            pa.field(KEY_NAME, pa.string()),
        ]
    )


def head_schema() -> pa.Schema:
    """Return the schema of heads: means over cells of the means over a cell's gene queries.

    `entropy` of a query's weights over all keys, in nats; `uniform_entropy`: what even weights would have, ln(tokens);
    `self_weight` = on the query itself, `special_weight` = on special tokens, `kept_weight` = in the rows that were
    written, `rank_mass` = on genes by their relative rank, in `RANK_BINS` steps; `even_mass` = what even weights over
    all tokens of the cell would put there, the share of its tokens in each step. Results of earlier versions lack it.
    """
    numbers = (ENTROPY, UNIFORM_ENTROPY, SELF_WEIGHT, SPECIAL_WEIGHT, KEPT_WEIGHT)
    return pa.schema(
        [
            *_PLACE,
            pa.field(CELLS, pa.int64(), nullable=False),
            *(pa.field(name, pa.float64(), nullable=False) for name in numbers),
            *(pa.field(name, pa.list_(pa.float64(), RANK_BINS), nullable=False) for name in (RANK_MASS, EVEN_MASS)),
        ]
    )


class AttentionManifest(Manifest):
    """Manifest of attention weights. Its parts hold the largest weights, its tables what was summed over cells.

    Attributes
    ----------
    layers, heads
        Those computed, from 0.
    top_k, top_by
        How many weights were written, of each cell, layer and head (`cell`), or of each of their queries (`query`).
    special_tokens
        Whether special tokens are among the queries and keys that are told. Weights are never brought to sum 1 anew.
    listed
        Whether the user listed the genes; then no others are told.
    genes
        Those of the table of pairs (with special tokens, where these are told): its keys.
    queries
        Genes whose weights are told; none: all, and those of the table of pairs are its `genes`.
    genes_seen
        Genes that the cells have.
    label, labels
        Obs column that the tables are parted by, and its values; None: not parted.
    skipped
        Why cells were left out: reason to cells.
    counted
        `cells`; `pairs`: query and key of a cell that could be told; `pairs_summed`: of these, the ones in the table;
        `weights`: `pairs` in all layers and heads, of which the parts' rows were written.
    tables
        Pairs and heads over all cells.
    """

    artefact: Literal["attention weights"] = "attention weights"
    corpus: str
    corpus_digest: str
    model: str
    model_digest: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    top_k: int
    top_by: TopBy
    special_tokens: bool
    listed: bool
    genes: tuple[str, ...]
    queries: tuple[str, ...] = ()
    genes_seen: int
    label: str | None = None
    labels: tuple[str, ...] = ()
    skipped: dict[str, int]
    counted: dict[str, int]
    tables: tuple[PartRecord, ...]

    @property
    def all_parts(self) -> tuple[PartRecord, ...]:
        """Parts of weights, and the tables."""
        return (*self.parts, *self.tables)
