"""Gates and positions of tokens: a closed gate is a token that is not there, and slopes are those of differences."""

import pytest
import torch
from transformers import BertModel

from cellray.model.gates import gated_layers, placed_embeddings
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary

SHUT = -1e4


@pytest.fixture
def bert(vocabulary: GeneVocabulary) -> BertModel:
    torch.manual_seed(0)
    return BertModel(bert_config("tiny", vocabulary, 16), add_pooling_layer=False).double().eval()


IDS = torch.tensor([[9, 4, 17, 22, 5, 30, 11]])
PLACES = torch.arange(7)[None]


@torch.no_grad()
def test_open_gates_change_nothing(bert: BertModel) -> None:
    plain = bert(input_ids=IDS).last_hidden_state
    placed = placed_embeddings(bert, IDS, PLACES)
    for gates in (None, torch.zeros(1, 7, dtype=torch.float64)):
        torch.testing.assert_close(gated_layers(bert, placed, gates), plain)


@torch.no_grad()
def test_a_shut_gate_is_a_token_that_others_do_not_see(bert: BertModel) -> None:
    gates = torch.zeros(1, 7, dtype=torch.float64)
    gates[0, 2] = SHUT
    kept = [0, 1, 3, 4, 5, 6]
    without = bert(input_ids=IDS[:, kept], position_ids=PLACES[:, kept]).last_hidden_state
    torch.testing.assert_close(gated_layers(bert, placed_embeddings(bert, IDS, PLACES), gates)[:, kept], without)


def test_slopes_are_those_of_finite_differences(bert: BertModel) -> None:
    direction = torch.randn(7, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    placed = placed_embeddings(bert, IDS, PLACES).detach()

    def number(gates: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        return (gated_layers(bert, moved, gates)[0] * direction).sum()

    gates, leaf = torch.zeros(1, 7, dtype=torch.float64, requires_grad=True), placed.clone().requires_grad_()
    of_gates, of_tokens = torch.autograd.grad(number(gates, leaf), [gates, leaf])
    step, way = 1e-5, torch.randn(placed.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for token in range(7):
            up, down = torch.zeros(2, 1, 7, dtype=torch.float64)
            up[0, token], down[0, token] = step, -step
            difference = (number(up, placed) - number(down, placed)) / (2 * step)
            assert float(of_gates[0, token]) == pytest.approx(float(difference), rel=1e-6, abs=1e-8)
        shut = torch.zeros(1, 7, dtype=torch.float64)
        difference = (number(shut, placed + step * way) - number(shut, placed - step * way)) / (2 * step)
    assert float((of_tokens * way).sum()) == pytest.approx(float(difference), rel=1e-6)
    assert float(of_gates.sum()) == pytest.approx(0, abs=1e-9)  # all gates alike are no gates
