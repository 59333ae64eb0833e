"""The attention of training: transformers' fused one, plus what that leaves out.

Registered with transformers under the name `ATTENTION`. It is `sdpa` but for two cases: rows of several cells, each of
which sees itself only (`cellray.model.packed`), and dropout on a CPU (`cellray.model.cpu_attention`).
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cellray.model.cpu_attention import attention_with_dropout

ATTENTION = "cellray"
"""The name of this attention in a transformers configuration; it is not written into model directories."""

_HALVES = (torch.bfloat16, torch.float16)  # what flash attention computes in


def use_attention(model: PreTrainedModel) -> None:
    """Let a model compute its attention here; weights and results stay."""
    model.set_attn_implementation(ATTENTION)


def attention(
    module: nn.Module,
    query_nhld: Tensor,
    key_nhld: Tensor,
    value_nhld: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,  # noqa: ANN401  # whatever else transformers hands on
) -> tuple[Tensor, None]:
    """Return the values mixed by attention, in the form transformers asks for.

    Parameters
    ----------
    query_nhld, key_nhld, value_nhld
        Cells x heads x tokens x head size; one row of several cells where `cu_seq_lens_q` is given.
    attention_mask
        True where a query may see a key, broadcast to cells x heads x tokens x tokens; None = everywhere.
    dropout
        Share of the probabilities set to zero.
    scaling
        Factor of the scores; by default 1 / sqrt(head size).
    cu_seq_lens_q, max_length_q
        Where each cell begins, and the row's end, int32; the longest cell's tokens.

    Returns
    -------
    tuple
        Cells x tokens x heads x head size, and None for the probabilities.
    """
    states = query_nhld, key_nhld, value_nhld
    if cu_seq_lens_q is not None:
        assert max_length_q is not None
        assert attention_mask is None, "a row of several cells has no padding to mask"
        scale = scaling or query_nhld.shape[-1] ** -0.5
        return _of_packed(states, cu_seq_lens_q, max_length_q, dropout, scale), None
    if query_nhld.device.type == "cpu" and dropout > 0 and query_nhld.dtype not in _HALVES:
        return _dense(states, attention_mask, dropout, scaling or query_nhld.shape[-1] ** -0.5).transpose(1, 2), None
    return sdpa_attention_forward(module, *states, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def _of_packed(states: tuple[Tensor, ...], cu_lengths: Tensor, longest: int, dropout: float, scale: float) -> Tensor:
    query_1hld = states[0]
    if query_1hld.device.type != "cpu" and query_1hld.dtype in _HALVES:
        query_thd, key_thd, value_thd = (x[0].transpose(0, 1) for x in states)
        return variable_length_attention(query_thd, key_thd, value_thd, cu_lengths, longest, dropout, scale)[None]
    lengths = cu_lengths.diff().tolist()
    pieces = zip(*(torch.split(x, lengths, dim=2) for x in states), strict=True)
    mixed_1hld = torch.cat([_dense(cell, None, dropout, scale) for cell in pieces], dim=2)
    return mixed_1hld.transpose(1, 2)


def variable_length_attention(
    query_thd: Tensor,
    key_thd: Tensor,
    value_thd: Tensor,
    cu_lengths: Tensor,
    longest: int,
    dropout: float,
    scale: float,
) -> Tensor:
    """Return attention within each cell of a row by torch's flash attention; half precision on a GPU.

    `varlen_attn` fixes dropout at 0. With dropout, the operator beneath it is called, as torch's own nested tensors do;
    it draws the mask inside the kernel.
    """
    if dropout == 0:
        assert math.isclose(scale, query_thd.shape[-1] ** -0.5), "varlen_attn's own scale"
        mixed_thd = varlen_attn(query_thd, key_thd, value_thd, cu_lengths, cu_lengths, longest, longest)
        assert isinstance(mixed_thd, Tensor)
        return mixed_thd
    flash = partial(torch.ops.aten._flash_attention_forward, query_thd, key_thd, value_thd)
    out: tuple[Tensor, ...] = flash(
        cu_lengths, cu_lengths, longest, longest, dropout, is_causal=False, return_debug_mask=False, scale=scale
    )
    return out[0]


def _dense(states: tuple[Tensor, ...], mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    query, key, value = states
    if query.device.type == "cpu" and dropout > 0 and query.dtype not in _HALVES:
        mixed_nhld: Tensor = attention_with_dropout(query, key, value, mask, dropout, scale)
        return mixed_nhld
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
