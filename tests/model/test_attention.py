"""Attention of training against torch's own; packed rows against padded ones."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from cellray.model import cpu_attention
from cellray.model.attention import ATTENTION, use_attention, variable_length_attention
from cellray.model.checkpoint import save_model
from cellray.model.cpu_attention import attention_with_dropout
from cellray.model.packed import PackedBatch, pack, packed_hidden, unpad
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary


def states(cells: int, heads: int, tokens: int, size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(cells * tokens)
    return [torch.randn(cells, heads, tokens, size, dtype=dtype, requires_grad=True) for _ in range(3)]


def out_and_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("block", [8, 100, 1 << 20])  # less than a row, some rows, everything
@pytest.mark.parametrize("shape", [(1, 2, 17, 4), (5, 3, 6, 8), (2, 1, 1, 4)])
@pytest.mark.parametrize("masked", ["no", "keys", "pairs"])
def test_attention_with_dropout_is_torchs(
    shape: tuple[int, int, int, int], block: int, masked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "BLOCK_ELEMENTS", block)
    cells, _, tokens, _ = shape
    query_key_value = states(*shape)
    pairs = torch.rand(cells, 1, tokens, tokens) < 0.7
    pairs |= torch.eye(tokens, dtype=torch.bool)
    keys = torch.arange(tokens)[None, None, None] < torch.randint(1, tokens + 1, (cells, 1, 1, 1))
    allowed = {"no": None, "keys": keys, "pairs": pairs}[masked]
    torch.manual_seed(1)
    ours = attention_with_dropout(*query_key_value, allowed, 0.3, 0.2)
    torch.manual_seed(1)
    theirs = scaled_dot_product_attention(*query_key_value, attn_mask=allowed, dropout_p=0.3, scale=0.2)
    found, expected = (out_and_gradients(out, query_key_value) for out in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def model(vocabulary: GeneVocabulary, dropout: float = 0.0) -> BertForMaskedLM:
    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary, 16)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    return BertForMaskedLM(config).train()


PADDED = torch.tensor([[9, 5, 30, 7, 3, 4, 11], [8, 3, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0], [2, 3, 4, 5, 6, 0, 0]])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("padded", [False, True])
def test_a_model_with_this_attention_is_transformers_own(
    vocabulary: GeneVocabulary, dropout: float, *, padded: bool
) -> None:
    ids = PADDED if padded else PADDED[:1]
    theirs, ours = model(vocabulary, dropout), model(vocabulary, dropout)
    use_attention(ours)
    logits = []
    for each in (theirs, ours):
        torch.manual_seed(3)
        out = each(ids, attention_mask=(ids != 0) if padded else None).logits
        (out[ids != 0] ** 2).mean().backward()
        logits.append(out)
    torch.testing.assert_close(logits[1][ids != 0], logits[0][ids != 0], rtol=1e-5, atol=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_a_saved_model_knows_nothing_of_it(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    trained = model(vocabulary)
    use_attention(trained)
    save_model(trained, vocabulary, {}, str(tmp_path / "m"))
    assert ATTENTION not in (tmp_path / "m" / "config.json").read_text()
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "m").config._attn_implementation == "sdpa"


def test_packing() -> None:
    packed = pack([torch.tensor([9, 5, 30]), torch.tensor([8]), torch.tensor([6, 7])])
    assert packed.input_ids_nl.tolist() == [[9, 5, 30, 8, 6, 7]]
    assert packed.position_ids_nl.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert packed.cu_lengths.tolist() == [0, 3, 4, 6]
    assert packed.cu_lengths.dtype == torch.int32
    assert (packed.longest, packed.cells) == (3, 3)
    same = unpad(PADDED, 0)
    again = pack([row[row != 0] for row in PADDED]).to(torch.device("cpu"))
    for name in ("input_ids_nl", "position_ids_nl", "cu_lengths"):
        assert torch.equal(getattr(same, name), getattr(again, name)), name
    assert same.longest == again.longest == 7


def test_packed_hidden_states_and_gradients_are_the_padded_ones(vocabulary: GeneVocabulary) -> None:
    padded, packed = model(vocabulary), model(vocabulary)
    use_attention(packed)
    present = PADDED != 0
    weights = torch.randn(int(present.sum()), 128)
    expected = padded.bert(PADDED, attention_mask=present).last_hidden_state[present]
    found = packed_hidden(packed.bert, unpad(PADDED, 0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for hidden_td in (expected, found):
        (hidden_td * weights).sum().backward()
    for a, b in zip(packed.bert.parameters(), padded.bert.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_cells_of_a_row_do_not_see_each_other(vocabulary: GeneVocabulary) -> None:
    bert = model(vocabulary).bert
    use_attention(bert)
    first, second, other = torch.tensor([9, 5, 30]), torch.tensor([8, 4]), torch.tensor([6, 7, 11, 12])
    alone = packed_hidden(bert, pack([first]))
    for row in ([first, second], [first, other, second]):
        torch.testing.assert_close(packed_hidden(bert, pack(row))[:3], alone, rtol=0, atol=1e-6)


def test_packed_dropout_has_the_stated_mean(vocabulary: GeneVocabulary) -> None:
    packed = model(vocabulary, 0.1)
    use_attention(packed)
    batch = unpad(PADDED, 0)
    torch.manual_seed(0)
    first, second = packed_hidden(packed.bert, batch), packed_hidden(packed.bert, batch)
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    assert torch.equal(packed_hidden(packed.bert, batch), first)
    packed.eval()
    assert torch.equal(packed_hidden(packed.bert, batch), packed_hidden(packed.bert, batch))


def test_another_attention_is_refused(vocabulary: GeneVocabulary) -> None:
    with pytest.raises(AssertionError, match="see each other"):
        packed_hidden(model(vocabulary).bert, unpad(PADDED, 0))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_flash_attention_takes_what_a_packed_row_gives(dropout: float) -> None:
    """The operators of a GPU are called on tensors without storage: arguments and shapes, no values."""
    batch: PackedBatch = unpad(PADDED, 0)
    tokens = batch.input_ids_nl.shape[1]
    make = {"dtype": torch.bfloat16, "device": "meta"}
    query_thd, key_thd, value_thd = (torch.empty(tokens, 4, 64, **make, requires_grad=True) for _ in range(3))
    cu_lengths = batch.cu_lengths.to("meta")
    scale = 1 / math.sqrt(64)
    out_thd = variable_length_attention(query_thd, key_thd, value_thd, cu_lengths, batch.longest, dropout, scale)
    assert out_thd.shape == (tokens, 4, 64)
    assert out_thd.dtype == torch.bfloat16
    out_thd.sum().backward()
    assert query_thd.grad is not None
    assert query_thd.grad.shape == query_thd.shape
