"""A cell whose attention weights come block by block: its largest weights so far, and what is measured of each head.

Knows tokens and blocks; corpora, files and other cells it does not know.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellray.attention_schema import RANK_BINS, TopBy
from cellray.infer.attention_sums import MEASURES
from cellray.infer.attention_top import largest

NO_RANK = -1
"""Rank of special tokens."""


@dataclass(frozen=True)
class Wanted:
    """How many layers and heads there are, how many weights are kept, and of what each."""

    layers: int
    heads: int
    top_k: int
    top_by: TopBy


class Kept(NamedTuple):
    """Weights that were kept, entry by entry: indices of layer and head, tokens of the cell, weight."""

    layer: NDArray[np.int64]
    head: NDArray[np.int64]
    query: NDArray[np.int64]
    key: NDArray[np.int64]
    weight: NDArray[np.float32]

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "Kept":
        """Return some entries."""
        layer, head, query, key, weight = self
        return Kept(layer[chosen], head[chosen], query[chosen], key[chosen], weight[chosen])


_NONE = Kept(*(np.empty(0, np.int64),) * 4, np.empty(0, np.float32))


class CellAttention:
    """What is made of one cell's weights.

    Parameters
    ----------
    wanted
        What is kept.
    gene_l
        Whether each token of the cell is a gene.
    told_l, asking_l
        Whether it may be told as a key, and as a query; None: as a query, too.
    """

    def __init__(
        self,
        wanted: Wanted,
        gene_l: NDArray[np.bool_],
        told_l: NDArray[np.bool_],
        asking_l: NDArray[np.bool_] | None = None,
    ) -> None:
        self.gene_l, self.told, self._wanted = gene_l, np.flatnonzero(told_l), wanted
        self.asking = self.told if asking_l is None else np.flatnonzero(asking_l)
        self.genes = int(gene_l.sum())
        self.rank_l = np.where(gene_l, np.cumsum(gene_l) - 1, NO_RANK).astype(np.int32)
        self._bin_g = self.rank_l[gene_l] * RANK_BINS // max(1, self.genes)
        self._even_b = np.bincount(self._bin_g, minlength=RANK_BINS) / max(1, len(gene_l))
        self._sum_lhm = np.zeros((wanted.layers, wanted.heads, MEASURES + RANK_BINS))
        self._kept: list[Kept] = []

    def add(self, layer: int, first: int, weight_hqk: Tensor) -> None:
        """Take what is wanted from the weights of some queries, `first` and those after it, over all tokens."""
        queries = np.arange(first, first + weight_hqk.shape[1])
        self._measure(layer, first, queries[self.gene_l[queries]], weight_hqk)
        own = np.intersect1d(queries, self.asking)
        if self._wanted.top_k and len(own):
            by_query = self._wanted.top_by == "query"
            found = largest(chosen(weight_hqk, own - first, self.told), self._wanted.top_k, by_query=by_query)
            layer_e = np.full(len(found.head), layer)
            self._kept.append(Kept(layer_e, found.head, own[found.query], self.told[found.key], found.weight))

    def _measure(self, layer: int, first: int, own: NDArray[np.int64], weight_hqk: Tensor) -> None:
        """Add gene queries to what is measured of each head."""
        if not len(own):
            return
        weight_hqk = chosen(weight_hqk, own - first, np.arange(weight_hqk.shape[2]))
        entropy_hq, by_key_hk = torch.special.entr(weight_hqk).sum(-1), weight_hqk.sum(1)
        self_hq = weight_hqk[:, torch.arange(len(own)), torch.from_numpy(own)]
        sum_hm, by_key = self._sum_lhm[layer], by_key_hk.cpu().numpy().astype(np.float64)
        sum_hm[:, 0] += entropy_hq.cpu().numpy().sum(axis=1, dtype=np.float64)
        sum_hm[:, 1] += len(own) * np.log(len(self.gene_l))
        sum_hm[:, 2] += self_hq.cpu().numpy().sum(axis=1, dtype=np.float64)
        sum_hm[:, 3] += by_key[:, ~self.gene_l].sum(axis=1)
        for head, weight_k in enumerate(by_key):  # no matrix product: its last bits would depend on threads
            sum_hm[head, MEASURES:] += np.bincount(self._bin_g, weight_k[self.gene_l], RANK_BINS)

    def kept(self) -> Kept:
        """Return the largest weights: by layer and head, then the largest first, or by query with its largest first.

        Equal weights come by query, then by key.
        """
        found = Kept(*(np.concatenate(columns) for columns in zip(_NONE, *self._kept, strict=True)))
        if self._wanted.top_by == "query":
            return found.take(np.lexsort((found.key, -found.weight, found.query, found.head, found.layer)))
        found = found.take(np.lexsort((found.key, found.query, -found.weight, found.head, found.layer)))
        map_e = found.layer * self._wanted.heads + found.head
        return found.take(np.arange(len(map_e)) - np.searchsorted(map_e, map_e) < self._wanted.top_k)

    def measures(self, kept: Kept) -> NDArray[np.float64]:
        """Return the means over the cell's gene queries, then its tokens' shares. Layers x heads x `PER_HEAD`."""
        sum_lhm = self._sum_lhm.copy()
        gene = self.gene_l[kept.query]
        np.add.at(sum_lhm[:, :, 4], (kept.layer[gene], kept.head[gene]), kept.weight[gene].astype(np.float64))
        even_lhb = np.broadcast_to(self._even_b, (*sum_lhm.shape[:2], RANK_BINS))
        return np.concatenate([sum_lhm / max(1, self.genes), even_lhb], axis=2)


def chosen(weight_hqk: Tensor, query: NDArray[np.int64], key: NDArray[np.int64]) -> Tensor:
    """Return the weights of some queries and keys; without a copy where these are all."""
    if len(query) < weight_hqk.shape[1]:
        weight_hqk = weight_hqk[:, torch.from_numpy(query).to(weight_hqk.device)]
    if len(key) < weight_hqk.shape[2]:
        weight_hqk = weight_hqk[:, :, torch.from_numpy(key).to(weight_hqk.device)]
    return weight_hqk
