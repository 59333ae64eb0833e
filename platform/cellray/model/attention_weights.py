"""The attention weights of a model, softmax(q k' / sqrt(size)) of each head, in blocks of queries.

The hidden states come from the layers as they are (torch's fused attention, which tells no weights); queries and keys
of a wanted layer are computed once more, and the weights of some queries of one cell at a time. So memory holds a block
of weights, never heads x tokens x tokens. Padding is cut off, which is what masking it comes to. No dropout.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BertModel

from cellray.model.threads import steady_sums

SCORES = 1 << 22
"""Weights of a block at most, but for a single query of all heads; 4 bytes each, and some copies of it."""


@dataclass(frozen=True)
class WeightBlock:
    """Weights of some queries of one cell.

    Attributes
    ----------
    layer
        From 0, the lowest.
    row
        Of the batch.
    first
        Token of the first query.
    weight_hqk
        Chosen heads x queries x tokens of the cell, float32; each query's weights sum to 1.
    """

    layer: int
    row: int
    first: int
    weight_hqk: Tensor


def attention_weights(
    bert: BertModel,
    input_ids_nl: Tensor,
    pad_id: int,
    layers: Sequence[int],
    heads: Sequence[int],
    scores: int = SCORES,
) -> Iterator[WeightBlock]:
    """Yield the attention weights of padded token rows: layer by layer, row by row, block by block.

    Parameters
    ----------
    bert
        In evaluation mode, with all layers up to the highest wanted one; no higher one is run.
    input_ids_nl
        Cells x tokens, int64, padded at the end.
    pad_id
        Token id of padding.
    layers, heads
        Which ones, from 0, ascending.
    scores
        Weights of a block at most, but for a single query of all heads.
    """
    assert not bert.training, "dropout would show in the weights"
    present_nl = input_ids_nl != pad_id
    lengths = present_nl.sum(1).tolist()
    mask = None if bool(present_nl.all()) else present_nl[:, None, None, :]  # over heads and queries
    with torch.inference_mode(), steady_sums(input_ids_nl.numel()):
        hidden_nld: Tensor = bert.embeddings(input_ids=input_ids_nl)
    for number, layer in enumerate(bert.encoder.layer[: max(layers) + 1]):
        if number in layers:
            query_nhld, key_nhld = _queries_and_keys(layer, hidden_nld, heads)
            for row, length in enumerate(lengths):
                query_hld, key_hld = query_nhld[row, :, :length], key_nhld[row, :, :length]
                step = max(1, scores // (len(heads) * length))
                for first in range(0, length, step):
                    yield WeightBlock(number, row, first, _weights(query_hld[:, first : first + step], key_hld))
        if number < max(layers):
            with torch.inference_mode(), steady_sums(input_ids_nl.numel()):
                hidden_nld = layer(hidden_nld, mask)


def _queries_and_keys(layer: Any, hidden_nld: Tensor, heads: Sequence[int]) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Return the queries, scaled by 1 / sqrt(size), and the keys of some heads. Cells x heads x tokens x size."""
    own, chosen = layer.attention.self, list(heads)
    shape = own.num_attention_heads, own.attention_head_size
    with torch.inference_mode(), steady_sums(hidden_nld.shape[:2].numel()):
        query_nhld, key_nhld = (
            linear(hidden_nld).unflatten(-1, shape).transpose(1, 2)[:, chosen] for linear in (own.query, own.key)
        )
        return query_nhld * own.attention_head_size**-0.5, key_nhld


def _weights(query_hqd: Tensor, key_hkd: Tensor) -> Tensor:
    with torch.inference_mode(), steady_sums(query_hqd.shape[1]):
        return torch.bmm(query_hqd, key_hkd.transpose(1, 2)).float().softmax(dim=-1)
