"""Pictures of finished attention weights: which numbers of which table are drawn how."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray import plots, storage
from cellray.attention_schema import (
    CELLS,
    ENTROPY,
    EVEN_MASS,
    HEAD,
    KEPT_WEIGHT,
    KEY,
    LAYER,
    MEAN,
    QUERY,
    RANK_MASS,
    SELF_WEIGHT,
    SPECIAL_WEIGHT,
    SUM,
    UNIFORM_ENTROPY,
)
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.infer.attention_tables import Attention

MOST_GENES = 40
"""Genes of the matrix, of those whose pairs have the largest mean weights."""
TOP_PAIRS = 40
_OLD = (
    "attention_heads.png: weight by rank is not drawn, as an earlier version wrote these weights without even_mass; "
    "write them anew into another --output"
)


def draw_attention(uri: str, folder: str) -> list[str]:
    """Draw finished attention weights; groups of cells are drawn together. Returns what was drawn, a line each."""
    attention = Attention.open(uri)
    symbols = _symbols(attention)
    drawn = []

    def write(name: str, draw: Callable[[Path], None]) -> None:
        target = storage.join(storage.absolute(folder), f"attention_{name}.png")
        with storage.atomic_file(target) as path:
            draw(path)
        drawn.append(f"{target}: picture")

    drawn.extend(_heads(attention, write))
    pairs = _over_groups(attention.pairs())
    if len(pairs):
        _matrix(attention, pairs, symbols, write)
        _top_pairs(attention, pairs, symbols, write)
    return drawn


Write = Callable[[str, Callable[[Path], None]], None]


def _symbols(attention: Attention) -> dict[str, str]:
    """Return the symbol of each gene, where the corpus is still there and knows it."""
    try:
        corpus = Corpus.open(attention.manifest.corpus)
    except InputError:  # the pictures are good without
        return {}
    return {gene: symbol for symbol, gene in corpus.vocabulary.symbols.items()}


def _over_groups(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs with their means over the cells of all groups."""
    found = pairs.groupby([LAYER, HEAD, QUERY, KEY], sort=False)[[SUM, CELLS]].sum().reset_index()
    return found.assign(**{MEAN: found[SUM] / found[CELLS]})


def _heads(attention: Attention, write: Write) -> list[str]:
    """Draw measures of heads; returns what is to be said of the picture."""
    manifest, table = attention.manifest, attention.heads()
    shape = (-1, len(manifest.layers), len(manifest.heads))
    cells = table[CELLS].to_numpy().reshape(shape)
    total = cells.sum(axis=0)

    def mean(name: str) -> np.ndarray:
        return np.asarray((table[name].to_numpy().reshape(shape) * cells).sum(axis=0) / total)

    times_even_lb = times_even(table)
    measures = {"entropy / that of even weights": mean(ENTROPY) / np.maximum(mean(UNIFORM_ENTROPY), 1e-12)}
    measures["weight on itself"] = mean(SELF_WEIGHT)
    if mean(SPECIAL_WEIGHT).any():
        measures["weight on special tokens"] = mean(SPECIAL_WEIGHT)
    if manifest.top_k:
        measures["weight in the rows written"] = mean(KEPT_WEIGHT)
    title = f"Attention heads, means over {int(total.max()):,} cells"
    write(
        "heads",
        lambda path: plots.attention_heads_png(measures, times_even_lb, manifest.layers, manifest.heads, path, title),
    )
    return [] if times_even_lb is not None else [_OLD]


def times_even(table: pd.DataFrame) -> NDArray[np.float64] | None:
    """Return the weight on genes by their rank, relative to that of even weights. Layers, ascending, x steps of rank.

    With m the weight of a cell's queries on a step's genes and e the share of the cell's tokens in that step, it is
    sum(m) / sum(e), the sums over all cells of all groups and the layer's heads: 1 where weights are even, whatever the
    cells' lengths. Cells count alike where they have many genes. A mean of the cells' own m / e would not be defined
    for steps that hold none of a short cell's genes, and elsewhere would weigh a step of one gene like one of hundreds.

    Parameters
    ----------
    table
        Of heads, see `cellray.attention_schema.head_schema`.

    Returns
    -------
    Ratios; NaN where no cell has a gene of that rank; None where the table was written before `even_mass` was.
    """
    if EVEN_MASS not in table:
        return None
    ratios = []
    for _, own in table.groupby(LAYER):
        mass_b, even_b = (own[CELLS].to_numpy() @ np.stack(own[name].to_list()) for name in (RANK_MASS, EVEN_MASS))
        ratios.append(np.divide(mass_b, even_b, out=np.full_like(mass_b, np.nan), where=even_b > 0))
    return np.stack(ratios)


def _matrix(attention: Attention, pairs: pd.DataFrame, symbols: dict[str, str], write: Write) -> None:
    """Draw the means over layers and heads."""
    manifest = attention.manifest
    mean = pairs.groupby([QUERY, KEY], sort=False)[MEAN].mean()
    apart = mean[mean.index.get_level_values(0) != mean.index.get_level_values(1)].sort_values(ascending=False)
    ranked = dict.fromkeys(name for pair in apart.index for name in pair)
    wanted = set(list(ranked)[:MOST_GENES]) or set(manifest.genes[:MOST_GENES])
    genes = [gene for gene in manifest.genes if gene in wanted]
    matrix = mean.unstack(KEY).reindex(index=genes, columns=genes).to_numpy(np.float64)
    names = [symbols.get(gene, gene) for gene in genes]
    number = len(manifest.layers) * len(manifest.heads)
    title = f"{len(genes)} of {len(manifest.genes):,} genes, mean of {number} heads and their cells"
    write("matrix", lambda path: plots.attention_matrix_png(matrix, names, path, title))


def _top_pairs(attention: Attention, pairs: pd.DataFrame, symbols: dict[str, str], write: Write) -> None:
    """Draw the pairs of two genes with the largest mean in any layer and head."""
    manifest = attention.manifest
    wide = pairs[pairs[QUERY] != pairs[KEY]].pivot_table(MEAN, [QUERY, KEY], [LAYER, HEAD], sort=False)
    if not len(wide):
        return
    maps = [(layer, head) for layer in manifest.layers for head in manifest.heads]
    cells = pairs.groupby([QUERY, KEY], sort=False)[CELLS].max()
    top = wide.reindex(columns=pd.MultiIndex.from_tuples(maps))
    top = top.loc[top.max(axis=1).sort_values(ascending=False, kind="stable").index[:TOP_PAIRS]]
    names = [f"{symbols.get(q, q)} → {symbols.get(k, k)} ({cells[q, k]:,})" for q, k in top.index]
    title = f"The {len(top)} pairs of {len(wide):,} with the largest mean (cells)"
    write(
        "pairs",
        lambda path: plots.attention_pairs_png(
            top.to_numpy(np.float64), names, [f"{layer}.{head}" for layer, head in maps], path, title
        ),
    )
