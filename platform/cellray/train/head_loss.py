"""Cross-entropy behind a linear layer, for some rows at a time, so that the table of all logits never exists.

Logits are by far the largest thing a vocabulary head makes. Since the loss is one number, each chunk's gradients can be
computed at once, in the forward pass, and its logits thrown away: no work is done twice (the way of Liger-Kernel's
fused linear cross-entropy, Hsu et al. 2024). Knows nothing of genes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellray.model.device import is_accelerator

CHUNK_ELEMENTS = {False: 1 << 22, True: 1 << 27}
"""Most logits at a time, on a CPU (16 MB in float32, which its cache holds) and on an accelerator (512 MB)."""


def linear_cross_entropy(
    hidden_md: Tensor, weight_vd: Tensor, bias_v: Tensor, labels_m: Tensor, chunk_rows: int | None = None
) -> Tensor:
    """Return the summed cross-entropy of `hidden_md weight_vd^T + bias_v`, in nats, float32.

    Parameters
    ----------
    hidden_md
        What the layer works on, rows x hidden; none gives 0.
    weight_vd, bias_v
        The layer: classes x hidden, classes.
    labels_m
        The right class of each row.
    chunk_rows
        Rows at a time; by default so many that there are `CHUNK_ELEMENTS` logits.
    """
    device = hidden_md.device.type
    if torch.is_autocast_enabled(device):  # the casts' own backward passes return gradients in the weights' type
        dtype = torch.get_autocast_dtype(device)
        hidden_md, weight_vd, bias_v = hidden_md.to(dtype), weight_vd.to(dtype), bias_v.to(dtype)
    rows = chunk_rows or max(1, CHUNK_ELEMENTS[is_accelerator(hidden_md.device)] // len(weight_vd))
    wanted = torch.is_grad_enabled()
    loss: Tensor = _LinearCrossEntropy.apply(hidden_md, weight_vd, bias_v, labels_m, rows, wanted)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are those of the summed loss; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # autograd's context
        hidden_md: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor,
        labels_m: Tensor,
        chunk_rows: int,
        wanted: bool,
    ) -> Tensor:
        loss = hidden_md.new_zeros((), dtype=torch.float32)
        # sums over chunks are kept in float32 whatever the products are computed in
        grads = (
            torch.empty_like(hidden_md),
            torch.zeros_like(weight_vd, dtype=torch.float32),
            torch.zeros_like(bias_v, dtype=torch.float32),
        )
        for start in range(0, len(hidden_md), chunk_rows):
            rows = slice(start, start + chunk_rows)
            with torch.autocast(hidden_md.device.type, enabled=False):
                logits_mv = torch.addmm(bias_v, hidden_md[rows], weight_vd.T).float()
                label_m1 = labels_m[rows, None]
                norm_m1 = logits_mv.logsumexp(dim=1, keepdim=True)
                loss += (norm_m1 - logits_mv.gather(1, label_m1)).sum()
                if wanted:
                    _add_gradients(grads, rows, logits_mv.sub_(norm_m1).exp_(), label_m1, hidden_md, weight_vd)
        if wanted:
            ctx.save_for_backward(*grads)
            ctx.dtype = hidden_md.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        scaled = [(saved * grad).to(ctx.dtype) for saved in ctx.saved_tensors]
        return *scaled, None, None, None


def _add_gradients(
    grads: tuple[Tensor, Tensor, Tensor],
    rows: slice,
    p_mv: Tensor,
    label_m1: Tensor,
    hidden_md: Tensor,
    weight_vd: Tensor,
) -> None:
    """Add one chunk's gradients: of a row's logits it is the probabilities, less one at the right class."""
    grad_hidden, grad_weight, grad_bias = grads
    p_mv.scatter_add_(1, label_m1, -torch.ones_like(label_m1, dtype=p_mv.dtype))
    grad_bias += p_mv.sum(dim=0)
    p_mv = p_mv.to(hidden_md.dtype)
    grad_hidden[rows] = p_mv @ weight_vd
    if grad_weight.dtype == hidden_md.dtype:
        grad_weight.addmm_(p_mv.T, hidden_md[rows])
    else:
        grad_weight += p_mv.T @ hidden_md[rows]
