"""Attention with dropout on a CPU, a block of queries at a time.

torch's fused attention for CPUs knows no dropout: `scaled_dot_product_attention` then keeps several tensors of tokens x
tokens for the backward pass, the largest things of a training step by far. Here a block's probabilities are computed
again in the backward pass (the idea of FlashAttention, Dao et al. 2022); what stays is one bit of dropout a pair, in a
byte. The dropout mask is drawn exactly as torch does it, so a seed gives the results it gives there.

Knows nothing of models; `cellray.model.attention` decides when it is used.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_ELEMENTS = 1 << 19
"""Most probabilities computed at a time: 2 MB in float32, so that a block stays in the cache."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the loops below are as fast uncompiled
def attention_with_dropout(
    query_nhld: Tensor, key_nhld: Tensor, value_nhld: Tensor, allowed: Tensor | None, dropout: float, scale: float
) -> Tensor:
    """Return dropout(softmax(scale query key^T)) value.

    Parameters
    ----------
    query_nhld, key_nhld, value_nhld
        Cells x heads x tokens x head size.
    allowed
        Which keys a query may see, at least one; bool, broadcast to cells x heads x tokens x tokens. None = all.
    dropout
        Share of the probabilities set to zero; the others are scaled by 1 / (1 - dropout).
    scale
        Factor of the scores.

    Returns
    -------
    Tensor
        Cells x heads x tokens x head size.
    """
    cells, heads, tokens, _ = query_nhld.shape
    allowed_bxl = None
    if allowed is not None:  # a mask of keys alone stays one row a head
        allowed_bxl = allowed.expand(cells, heads, -1, -1).reshape(cells * heads, allowed.shape[2], -1)
    flat = (x.reshape(cells * heads, x.shape[2], -1) for x in (query_nhld, key_nhld, value_nhld))
    out_bld: Tensor = _BlockedAttention.apply(*flat, allowed_bxl, dropout, scale)  # type: ignore[no-untyped-call]
    return out_bld.view(cells, heads, tokens, -1)


class _BlockedAttention(torch.autograd.Function):
    """Attention of b = cells x heads rows; the scale is put into the queries, dropout's into the values."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # autograd's context
        query_bld: Tensor,
        key_bld: Tensor,
        value_bld: Tensor,
        allowed_bxl: Tensor | None,
        dropout: float,
        scale: float,
    ) -> Tensor:
        shape = (*query_bld.shape[:2], key_bld.shape[1])
        dropped_bll = torch.empty(shape, dtype=torch.bool).bernoulli_(1 - dropout).logical_not_()
        scaled_bld, value_bld = query_bld * scale, value_bld / (1 - dropout)
        out_bld = torch.empty_like(query_bld)
        for rows, queries in _blocks(shape):
            p_bll = _probabilities(scaled_bld[rows, queries], key_bld[rows], allowed_bxl, rows, queries)
            torch.bmm(p_bll.masked_fill_(dropped_bll[rows, queries], 0), value_bld[rows], out=out_bld[rows, queries])
        ctx.save_for_backward(scaled_bld, key_bld, value_bld, out_bld, dropped_bll, allowed_bxl)
        ctx.dropout, ctx.scale = dropout, scale
        return out_bld

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bld: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        scaled_bld, key_bld, value_bld, out_bld, dropped_bll, allowed_bxl = ctx.saved_tensors
        grad_bld = grad_bld.contiguous()
        grads = torch.empty_like(scaled_bld), torch.zeros_like(key_bld), torch.zeros_like(value_bld)
        mean_bl1 = (grad_bld * out_bld).sum(-1, keepdim=True)  # = sum over keys of p dL/dp, as in FlashAttention
        for rows, queries in _blocks(dropped_bll.shape):
            at, keys = (rows, queries), key_bld[rows]
            p_bll = _probabilities(scaled_bld[at], keys, allowed_bxl, rows, queries)
            score_bll = torch.bmm(grad_bld[at], value_bld[rows].mT).masked_fill_(dropped_bll[at], 0)
            score_bll.sub_(mean_bl1[at]).mul_(p_bll)
            grads[0][at] = torch.bmm(score_bll, keys)
            grads[1][rows].baddbmm_(score_bll.mT, scaled_bld[at])
            grads[2][rows].baddbmm_(p_bll.masked_fill_(dropped_bll[at], 0).mT, grad_bld[at])
        return grads[0].mul_(ctx.scale), grads[1], grads[2].div_(1 - ctx.dropout), None, None, None


def _probabilities(
    scaled_bld: Tensor, key_bld: Tensor, allowed_bxl: Tensor | None, rows: slice, queries: slice
) -> Tensor:
    scores_bll = torch.bmm(scaled_bld, key_bld.mT)
    if allowed_bxl is not None:
        every = allowed_bxl.shape[1] == 1
        scores_bll.masked_fill_(~allowed_bxl[rows, slice(None) if every else queries], -torch.inf)
    return torch.softmax(scores_bll, dim=-1)


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Cut rows x queries into blocks of at most `BLOCK_ELEMENTS` probabilities, whole rows where they are short."""
    rows, queries, keys = shape
    wide = max(1, BLOCK_ELEMENTS // (queries * keys))
    # two rows at least, so that both a short and a long row keep several threads busy
    high = queries if wide > 1 else max(1, BLOCK_ELEMENTS // (4 * keys))
    wide = wide if wide > 1 else 4
    for row in range(0, rows, wide):
        for query in range(0, queries, high):
            yield slice(row, row + wide), slice(query, query + high)
