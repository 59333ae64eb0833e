"""Attention in bfloat16 on a CPU, 1.5 times as fast as torch's: scores of a block of queries, softmax, product.

torch's fused kernel is no faster there than in float32. Here both products are bfloat16 matrix products, in blocks
small enough for their scores to stay in a core's cache. The price: scores are rounded to bfloat16 before the softmax;
in shifts of a whole model that was not to be told from its other rounding, with scores of up to 16. Float32, CUDA and
rows with padding go to torch's own. Knows no model.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, BertModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCKS = "cellray_blocks"
"""Name of this attention in transformers' table."""
_SCORES = 1 << 20
"""Scores computed at once; two bytes each."""
_LANES = 32
"""Numbers of a vector register: rows of a multiple of it are worked on twice as fast as others."""


def attend_by_blocks(
    module: nn.Module,
    query_nhld: Tensor,
    key_nhld: Tensor,
    value_nhld: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,  # noqa: ANN401  # what transformers hands on
) -> tuple[Tensor, None]:
    """Return softmax(q k' * scaling) v, in the form transformers asks for.

    Parameters
    ----------
    query_nhld, key_nhld, value_nhld
        Rows x heads x tokens x size of a head.
    attention_mask
        None: all tokens see each other.
    scaling
        Of the scores; by default 1 / sqrt(size of a head).

    Returns
    -------
    tuple[Tensor, None]
        Rows x tokens x heads x size of a head.
    """
    ours = query_nhld.dtype == torch.bfloat16 and query_nhld.device.type == "cpu"
    if not ours or attention_mask is not None or dropout:
        return sdpa_attention_forward(
            module, query_nhld, key_nhld, value_nhld, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    rows, heads, tokens, size = query_nhld.shape
    query_mld = (query_nhld * (size**-0.5 if scaling is None else scaling)).flatten(0, 1)
    padding = (0, 0, 0, -tokens % _LANES)
    key_mdl = pad(key_nhld.flatten(0, 1), padding).transpose(1, 2)
    value_mld = pad(value_nhld.flatten(0, 1), padding)
    keys = key_mdl.shape[2]
    together, queries = min(rows * heads, max(1, _SCORES // keys**2)), min(tokens, max(1, _SCORES // keys))
    score_mqk, weight_mqk = (query_mld.new_empty(together, queries, keys) for _ in range(2))
    out_mld = torch.empty_like(query_mld)
    for first in range(0, rows * heads, together):
        for start in range(0, tokens, queries):
            block_mqd = query_mld[first : first + together, start : start + queries]
            shape = (slice(block_mqd.shape[0]), slice(block_mqd.shape[1]))
            score, weight = score_mqk[shape], weight_mqk[shape]
            torch.bmm(block_mqd, key_mdl[first : first + together], out=score)
            score[:, :, tokens:] = -torch.inf  # of keys that are padding
            torch.softmax(score, dim=-1, out=weight)
            out_mld[first : first + together, start : start + queries] = torch.bmm(
                weight, value_mld[first : first + together]
            )
    return out_mld.view(rows, heads, tokens, size).transpose(1, 2), None


AttentionInterface.register(BLOCKS, attend_by_blocks)
AttentionMaskInterface.register(BLOCKS, sdpa_mask)


def in_precision(bert: BertModel, dtype: torch.dtype) -> None:
    """Convert a model's weights in place, and choose the attention that is fastest with them."""
    bert.to(dtype)  # type: ignore[arg-type]  # its signature is lost in a wrapper
    if dtype == torch.bfloat16:
        bert.set_attn_implementation(BLOCKS)
