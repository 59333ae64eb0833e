"""Attention by blocks in bfloat16: what float64 gives for the same scores, and the model's results."""

import pytest
import torch
from torch import nn

from cellray.model import block_attention
from cellray.model.block_attention import attend_by_blocks, in_precision
from cellray.model.encoder import hidden_states
from cellray.model.masked_lm import new_masked_lm
from cellray.vocabulary import GeneVocabulary


@pytest.mark.parametrize("tokens", [1, 31, 64, 200])
@pytest.mark.parametrize("scores", [1, 5_000, 1 << 20])
def test_what_float64_gives_for_rounded_scores(monkeypatch: pytest.MonkeyPatch, tokens: int, scores: int) -> None:
    monkeypatch.setattr(block_attention, "_SCORES", scores)  # one query at a time, a few, all heads
    q, k, v = ((2 * torch.randn(3, 2, tokens, 16, generator=_seeded(i))).bfloat16() for i in range(3))
    rounded_nhqk = (q.double() @ k.double().mT / 4).bfloat16().double()
    expected = (torch.softmax(rounded_nhqk, dim=-1) @ v.double()).transpose(1, 2)
    found, _ = attend_by_blocks(nn.Module(), q, k, v, None)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 2**-7 * v.abs().max()


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("lengths", [(12, 12), (12, 7)])
def test_a_model_in_bfloat16(vocabulary: GeneVocabulary, lengths: tuple[int, int]) -> None:
    bert = new_masked_lm("tiny", vocabulary, 16, 0).bert.eval()
    ids_nl = torch.zeros(2, 12, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids_nl[row, :length] = torch.arange(2, 2 + length)
    with torch.inference_mode():
        exact = hidden_states(bert, ids_nl, 0)
        in_precision(bert, torch.bfloat16)
        rounded = hidden_states(bert, ids_nl, 0)
    assert rounded.dtype == torch.bfloat16
    assert bert.config._attn_implementation == block_attention.BLOCKS
    assert (rounded - exact)[ids_nl != 0].abs().max() < 0.05
