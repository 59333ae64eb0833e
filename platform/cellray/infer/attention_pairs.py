"""Pairs of genes over heads and groups of cells: how much on the whole, where the most. Knows tables, no files."""

from collections.abc import Sequence

import pandas as pd

from cellray.attention_schema import CELLS, HEAD, LAYER, MEAN, SUM

TOP_MEAN, TOP_LAYER, TOP_HEAD = "top_mean", "top_layer", "top_head"


def over_groups(pairs: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    """Return pairs with their means over the cells of all groups: `sum` / `cells`, both added up.

    Parameters
    ----------
    pairs
        See `cellray.attention_schema.pair_schema`.
    genes
        Columns that tell pairs apart.
    """
    found = pairs.groupby([LAYER, HEAD, *genes], sort=False)[[SUM, CELLS]].sum().reset_index()
    return found.assign(**{MEAN: found[SUM] / found[CELLS]})


def over_heads(pairs: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    """Return a row for each pair of `over_groups`, those first whose mean is the largest in any head.

    Columns: the genes', `cells` that have both, `mean` over layers and heads, and where it is the largest: `top_mean`,
    `top_layer`, `top_head`.
    """
    by = list(genes)
    top = pairs.sort_values(MEAN, ascending=False, kind="stable").drop_duplicates(by).set_index(by)
    found = pairs.groupby(by, sort=False).agg(**{CELLS: (CELLS, "max"), MEAN: (MEAN, "mean")}).reindex(top.index)
    found = found.assign(**{TOP_MEAN: top[MEAN], TOP_LAYER: top[LAYER], TOP_HEAD: top[HEAD]})
    return found.reset_index()
