"""Attention weights: those that transformers' eager attention tells, whatever the batch, the blocks and the threads."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from cellray.infer.attention_top import largest
from cellray.model.attention_weights import attention_weights

PAD, LENGTHS, HEADS, LAYERS = 0, (40, 33, 7, 1), (0, 1, 2, 3), (0, 1, 2)


@pytest.fixture(scope="module")
def model() -> BertForMaskedLM:
    """Return a model whose weights are far from even."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, pad_token_id=PAD, hidden_act="relu", attn_implementation="eager",
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight *= 8
            layer.attention.self.key.weight *= 8
    return model


@pytest.fixture(scope="module")
def input_ids_nl() -> torch.Tensor:
    rng = np.random.default_rng(0)
    ids = torch.full((len(LENGTHS), max(LENGTHS)), PAD)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.from_numpy(rng.permutation(np.arange(1, 60))[:length])
    return ids


def whole(
    model: BertForMaskedLM, ids: torch.Tensor, layers: Sequence[int] = LAYERS, heads: Sequence[int] = HEADS, **more: int
) -> dict[tuple[int, int], np.ndarray]:
    """Put blocks together: (layer, row) to heads x queries x keys."""
    model.bert.set_attn_implementation("sdpa")
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for block in attention_weights(model.bert, ids, PAD, layers, heads, **more):
        pieces = found.setdefault((block.layer, block.row), [])
        assert block.first == sum(piece.shape[1] for piece in pieces)
        pieces.append(block.weight_hqk.numpy())
    return {key: np.concatenate(pieces, axis=1) for key, pieces in found.items()}


@pytest.mark.parametrize("scores", [1 << 22, 4 * 40 * 3, 1])
def test_they_are_those_of_eager_attention(model: BertForMaskedLM, input_ids_nl: torch.Tensor, scores: int) -> None:
    found = whole(model, input_ids_nl, scores=scores)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        mask = input_ids_nl != PAD
        expected = model(input_ids=input_ids_nl, attention_mask=mask, output_attentions=True).attentions
    assert set(found) == {(layer, row) for layer in LAYERS for row in range(len(LENGTHS))}
    for (layer, row), weight_hqk in found.items():
        length = LENGTHS[row]
        np.testing.assert_allclose(weight_hqk, expected[layer][row, :, :length, :length].numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(weight_hqk.sum(-1), 1, atol=1e-6)
    assert max(weight.max() for (_, row), weight in found.items() if row == 0) > 0.2  # far from 1 / 40


def test_alone_is_as_in_a_batch(model: BertForMaskedLM, input_ids_nl: torch.Tensor) -> None:
    together = whole(model, input_ids_nl)
    for row, length in enumerate(LENGTHS):
        alone = whole(model, input_ids_nl[row : row + 1, :length])
        for layer in LAYERS:
            np.testing.assert_allclose(alone[layer, 0], together[layer, row], rtol=0, atol=1e-6)


def test_chosen_layers_and_heads_are_those_of_all(model: BertForMaskedLM, input_ids_nl: torch.Tensor) -> None:
    every, some = whole(model, input_ids_nl), whole(model, input_ids_nl, (1,), (0, 3))
    assert set(some) == {(1, row) for row in range(len(LENGTHS))}
    for (layer, row), weight_hqk in some.items():
        np.testing.assert_array_equal(weight_hqk, every[layer, row][[0, 3]])


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_threads_do_not_show(model: BertForMaskedLM, input_ids_nl: torch.Tensor) -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(whole(model, input_ids_nl, scores=4 * 40 * 11))
    for key, weight_hqk in found[0].items():
        np.testing.assert_array_equal(weight_hqk, found[1][key])


@pytest.mark.parametrize("k", [0, 1, 7, 30, 1000])
@pytest.mark.parametrize("by_query", [False, True])
def test_the_largest_are_those_of_a_stable_sort(k: int, *, by_query: bool) -> None:
    """Few distinct values: nearly all are tied."""
    weight_hqk = np.random.default_rng(k).integers(0, 4, (3, 8, 11)).astype(np.float32)
    found = largest(torch.from_numpy(weight_hqk), k, by_query=by_query)
    rows = weight_hqk.reshape(24, 11) if by_query else weight_hqk.reshape(3, 88)
    expected = [
        (row, place) for row, values in enumerate(rows) for place in sorted(np.argsort(-values, kind="stable")[:k])
    ]
    flat = (found.head * 8 + found.query) * 11 + found.key
    width = rows.shape[1]
    assert [(int(i) // width, int(i) % width) for i in flat] == expected
    np.testing.assert_array_equal(found.weight, weight_hqk.reshape(-1)[flat])
