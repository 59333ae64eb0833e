"""Steps without a label: they report no loss, and their gradients are 0, not undefined."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn
from transformers import BertConfig

from cellray.model.heads import NO_LABEL, HeadSpec, head_loss
from cellray.train.checkpoints import Checkpoints
from cellray.train.contracts import Batch
from cellray.train.loop import Loop, LoopConfig
from cellray.train.throughput import StepWork
from tests.train.local import CPU, LocalSession

WEIGHTS = torch.tensor([1.0, 3.0])


class Told(nn.Module):
    """Tells a token's class from its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Embedding(8, 2, _weight=torch.arange(16.0).reshape(8, 2) / 10)

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        token_nl, class_nl = batch
        return head_loss(
            HeadSpec("kind", "classification", "gene", ("a", "b")), self.layer(token_nl), class_nl, WEIGHTS
        )


@dataclass
class ByToken:
    """Tokens 2 and 3 are of class 0 and 1, the others have no label."""

    module: nn.Module
    work = StepWork(BertConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, vocab_size=8))
    vocabulary_head = False

    def prepare(self, batch: Batch, generator: Generator) -> tuple[Tensor, Tensor]:
        label = torch.full((8,), NO_LABEL)
        label[2], label[3] = 0, 1
        return batch.input_ids_nl, label[batch.input_ids_nl]

    def validate(self, module: nn.Module, batches: Iterable[Batch], world_size: int) -> dict[str, float]:
        return {}


def step_of(*tokens: int) -> list[Batch]:
    return [Batch(torch.tensor([tokens]), np.array([len(tokens)]), np.array([0]))]


def train(steps: list[list[Batch]], folder: Path, log_every: int = 1) -> tuple[Loop, LocalSession, Tensor]:
    module, session = Told(), LocalSession()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.0)
    config = LoopConfig(len(steps), "constant_with_warmup", 0, 1.0, len(steps), log_every, 0)
    loop = Loop(ByToken(module), module, optimizer, config, CPU, session)
    checkpoints = Checkpoints(str(folder))
    loop.run(steps, [], checkpoints)
    checkpoints.finish()
    return loop, session, module.layer.weight.detach()


def test_a_step_without_a_label_reports_no_loss(tmp_path: Path) -> None:
    _, session, weights = train([step_of(2, 3), step_of(4, 5), step_of(3, 3)], tmp_path)
    assert sorted(session.history("train_loss")) == [1, 3]
    assert session.history("grad_norm")[2] == 0.0
    assert len(session.reports) == 3
    assert weights.isfinite().all()


def test_a_loss_is_the_mean_over_the_labels_since_the_last_report(tmp_path: Path) -> None:
    """Both classes weigh as they do; the step without a label counts for nothing."""
    _, session, _ = train([step_of(4), step_of(2, 3), step_of(5, 6)], tmp_path, log_every=3)
    odds = torch.log1p(torch.exp(torch.tensor(0.1)))  # class 0 is less likely by a logit of 0.1
    expected = (1 * odds + 3 * (odds - 0.1)) / 4
    assert session.history("train_loss") == {3: pytest.approx(expected.item(), rel=1e-5)}


def test_weights_stay_where_nothing_was_learnt_yet(tmp_path: Path) -> None:
    _, session, weights = train([step_of(4, 5), step_of(6)], tmp_path)
    assert torch.equal(weights, Told().layer.weight.detach())
    assert session.history("train_loss") == {}
