"""An encoder in two steps, whose tokens can be faded out and moved by numbers that derivatives are taken of.

Each token has a gate g, 1 in the plain model. In every layer and head the weight of the token as a key is multiplied by
it before the weights are brought to sum 1: log g is added to its scores. At g = 0 no token sees it, which is what
deleting it does to the others, but for their positions. Gates of a pooling are whoever pools' business.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name
from transformers import BertModel


def placed_embeddings(bert: BertModel, input_ids_nl: Tensor, position_nl: Tensor) -> Tensor:
    """Return what enters the first layer for tokens at given positions, without dropout. Cells x tokens x hidden."""
    embeddings: Any = bert.embeddings
    kind_d = embeddings.token_type_embeddings.weight[0]
    sum_nld = embeddings.word_embeddings(input_ids_nl) + kind_d + embeddings.position_embeddings(position_nl)
    placed_nld: Tensor = embeddings.LayerNorm(sum_nld)
    return placed_nld


def gated_layers(bert: BertModel, placed_nld: Tensor, log_gate_nl: Tensor | None = None) -> Tensor:
    """Return the last hidden states of rows without padding. Shape (cells, tokens, hidden).

    Parameters
    ----------
    bert
        The layers up to the wanted one, without dropout.
    placed_nld
        From `placed_embeddings`.
    log_gate_nl
        log g of each token as a key, of all layers and heads; None: all gates are 1. The fused attention gives no
        derivative of what is added to its scores, so log g travels as one more dimension of the keys, which meets a 1
        in every query: no matrix of all pairs of tokens is held, forward or backward.
    """
    for layer in bert.encoder.layer:
        placed_nld = _gated_layer(layer, placed_nld, log_gate_nl)
    return placed_nld


def _gated_layer(layer: Any, hidden_nld: Tensor, log_gate_nl: Tensor | None) -> Tensor:  # noqa: ANN401  # a BertLayer
    own = layer.attention.self
    heads, size = own.num_attention_heads, own.attention_head_size
    query, key, value = (
        linear(hidden_nld).unflatten(-1, (heads, size)).transpose(1, 2) for linear in (own.query, own.key, own.value)
    )
    if log_gate_nl is not None:
        gate_nhl1 = log_gate_nl[:, None, :, None].expand(*key.shape[:-1], 1).to(key.dtype)
        query = torch.cat([query, torch.full_like(gate_nhl1, size**0.5)], dim=-1)  # the scale leaves a 1 of it
        key = torch.cat([key, gate_nhl1], dim=-1)
        value = F.pad(value, (0, 1))  # the fused attention wants one size of all three
    mixed_nhld = F.scaled_dot_product_attention(query, key, value, scale=size**-0.5)[..., :size]
    attended_nld = layer.attention.output(mixed_nhld.transpose(1, 2).flatten(2), hidden_nld)
    return layer.feed_forward_chunk(attended_nld)  # type: ignore[no-any-return]
