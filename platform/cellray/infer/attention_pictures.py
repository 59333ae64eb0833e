"""Pictures of finished attention weights: which numbers of which table are drawn how."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

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
    KEY_NAME,
    LAYER,
    MEAN,
    QUERY,
    QUERY_NAME,
    RANK_MASS,
    SELF_WEIGHT,
    SPECIAL_WEIGHT,
    UNIFORM_ENTROPY,
    AttentionManifest,
    is_special,
)
from cellray.data.corpora.corpus import Corpus
from cellray.data.medians.gene_tables import read_gene_names
from cellray.errors import InputError
from cellray.infer.attention_pairs import over_groups, over_heads
from cellray.infer.attention_plan import symbols_of
from cellray.infer.attention_tables import Attention

MOST_GENES = 40
"""Genes of the matrix, of those whose pairs have the largest mean weights."""
TOP_PAIRS = 40
CSV_PAIRS = 1000
_OLD = (
    "attention_heads.png: weight by rank is not drawn, as an earlier version wrote these weights without even_mass; "
    "write them anew into another --output"
)


class _Drawn(NamedTuple):
    """What pictures of pairs are made of: all pairs, the strongest first of two genes, symbols, least cells."""

    manifest: AttentionManifest
    pairs: pd.DataFrame
    apart: pd.DataFrame
    symbols: dict[str, str]
    least: int


def draw_attention(uri: str, folder: str, gene_names: str | None = None, min_cells: int | None = None) -> list[str]:
    """Draw finished attention weights, and write the strongest pairs as CSV; groups of cells are taken together.

    Parameters
    ----------
    uri, folder
        Where the weights are, and where the pictures go.
    gene_names
        Table of Ensembl IDs and symbols; None: those that the vocabulary and the table of pairs have.
    min_cells
        Pairs that fewer cells have are left out; None: see `least_cells`.

    Returns
    -------
    What was drawn and what was not, a line each.
    """
    attention = Attention.open(uri)
    drawn = []

    def target(name: str) -> str:
        return storage.join(storage.absolute(folder), f"attention_{name}")

    def write(name: str, draw: Callable[[Path], None]) -> None:
        with storage.atomic_file(target(f"{name}.png")) as path:
            draw(path)
        drawn.append(f"{target(f'{name}.png')}: picture")

    old = _heads(attention, write)
    drawn.extend(old)
    table = attention.pairs()
    symbols = _symbols(attention, table, gene_names)
    least = least_cells(attention.manifest.counted["cells"]) if min_cells is None else min_cells
    every = over_groups(table, [QUERY, KEY])
    pairs = every[every[CELLS] >= least]
    apart = over_heads(pairs[pairs[QUERY] != pairs[KEY]], [QUERY, KEY])
    drawn.append(_left_out(every, len(apart), least))
    if len(apart):
        own = _Drawn(attention.manifest, pairs, apart, symbols, least)
        _matrix(own, write)
        _top_pairs(own, write)
        with storage.atomic_file(target("pairs.csv")) as path:
            _named(apart[:CSV_PAIRS], symbols).to_csv(path, index=False)
        drawn.append(f"{target('pairs.csv')}: the {min(CSV_PAIRS, len(apart)):,} strongest pairs")
    return drawn


Write = Callable[[str, Callable[[Path], None]], None]


def least_cells(cells: int) -> int:
    """Return how many cells must have a pair that is drawn, where nobody says: 10, or 5 % of fewer than 200 cells."""
    return max(1, min(10, cells // 20))


def _left_out(pairs: pd.DataFrame, kept: int, least: int) -> str:
    """Say how many pairs of two genes too few cells have."""
    cells = pairs[pairs[QUERY] != pairs[KEY]].groupby([QUERY, KEY], sort=False)[CELLS].max()
    few = f"{len(cells) - kept:,} of {len(cells):,} pairs of two genes in fewer than {least:,} cells (--min-cells)"
    if kept:
        return f"pictures leave out {few}"
    most = f": {few}, at most in {int(cells.max()):,}" if len(cells) else ": no cell has two genes of the table"
    return f"attention_matrix.png, attention_pairs.png and attention_pairs.csv: none, as no pair is left{most}"


def _symbols(attention: Attention, pairs: pd.DataFrame, gene_names: str | None) -> dict[str, str]:
    """Return the symbol of each gene: the user's, else those the table was written with, else the vocabulary's."""
    found: dict[str, str] = {}
    with suppress(InputError):  # the corpus may be gone; the pictures are good without
        found |= symbols_of(Corpus.open(attention.manifest.corpus).vocabulary, None)
    for gene, name in ((QUERY, QUERY_NAME), (KEY, KEY_NAME)):
        if name in pairs:
            own = pairs[[gene, name]].dropna().drop_duplicates(gene)
            found |= dict(zip(own[gene], own[name], strict=True))
    return found | (read_gene_names(gene_names) if gene_names else {})


def _named(pairs: pd.DataFrame, symbols: dict[str, str]) -> pd.DataFrame:
    """Return pairs with the symbols of their genes; empty where none is known."""
    pairs = pairs.copy()
    pairs.insert(1, QUERY_NAME, pairs[QUERY].map(symbols))
    pairs.insert(3, KEY_NAME, pairs[KEY].map(symbols))
    return pairs


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


def _matrix(of: _Drawn, write: Write) -> None:
    """Draw the means over layers and heads, between the genes of the pairs that are the strongest on the whole."""
    manifest, pairs, apart, symbols, least = of
    ranked = apart.sort_values(MEAN, ascending=False, kind="stable")
    if manifest.queries:
        rows, columns = (list(dict.fromkeys(ranked[side]))[:MOST_GENES] for side in (QUERY, KEY))
    else:
        both = dict.fromkeys(ranked[[QUERY, KEY]].to_numpy().ravel())
        rows = columns = list(both)[:MOST_GENES]
    rows, columns = (
        [g for g in every if g in set(own)]
        for every, own in ((manifest.queries or manifest.genes, rows), (manifest.genes, columns))
    )
    mean = pairs.groupby([QUERY, KEY], sort=False)[MEAN].mean()
    matrix = mean.unstack(KEY).reindex(index=rows, columns=columns).to_numpy(np.float64)
    names = [[symbols.get(gene, gene) for gene in side] for side in (rows, columns)]
    number = len(manifest.layers) * len(manifest.heads)
    size = f"{_genes(rows, manifest.queries)} x " if manifest.queries else ""
    title = (
        f"{size}{_genes(columns, manifest.genes)}: those of the strongest pairs\n"
        f"mean of {number} heads; white: fewer than {least:,} cells have both"
    )
    write("matrix", lambda path: plots.attention_matrix_png(matrix, names[0], names[1], path, title))


def _genes(shown: Sequence[str], every: Sequence[str]) -> str:
    """Say how many genes are shown, of how many; special tokens are none."""
    own, known = (sum(not is_special(name) for name in names) for names in (shown, every))
    more = f" and {len(shown) - own} special tokens" if own < len(shown) else ""
    return f"{own} of {known:,} genes{more}"


def _top_pairs(of: _Drawn, write: Write) -> None:
    """Draw the pairs of two genes with the largest mean in any layer and head."""
    manifest, pairs, apart, symbols, least = of
    shown = apart[:TOP_PAIRS]
    maps = [(layer, head) for layer in manifest.layers for head in manifest.heads]
    index = pd.MultiIndex.from_frame(shown[[QUERY, KEY]])
    own = pairs.set_index([QUERY, KEY]).loc[index].reset_index()
    top = own.pivot_table(MEAN, [QUERY, KEY], [LAYER, HEAD]).reindex(
        index=index, columns=pd.MultiIndex.from_tuples(maps)
    )
    names = [
        f"{symbols.get(q, q)} → {symbols.get(k, k)} ({cells:,})"
        for q, k, cells in shown[[QUERY, KEY, CELLS]].itertuples(index=False)
    ]
    title = f"The {len(top)} of {len(apart):,} pairs with the largest mean (cells)\nin {least:,} cells or more"
    write(
        "pairs",
        lambda path: plots.attention_pairs_png(
            top.to_numpy(np.float64), names, [f"{layer}.{head}" for layer, head in maps], path, title
        ),
    )
