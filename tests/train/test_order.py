"""The order of training: every cell once an epoch, whoever reads it and wherever one begins."""

import numpy as np
import pytest

from cellray.train import order as module
from cellray.train.order import AssignedPart, RandomPart, Span, TrainingOrder
from cellray.train.planning import count_steps
from cellray.train.pretrain import PretrainConfig

LENGTHS = np.random.default_rng(5).integers(10, 2000, 5000)


def spans(cells: int = 1000, size: int = 64) -> list[Span]:
    return [Span(f"shard-{a}", a, min(a + size, cells), a) for a in range(0, cells, size)]


def epoch_of(order: TrainingOrder, epoch: int) -> list[list[int]]:
    """Return the corpus numbers of each step's cells."""
    steps = []
    for pool in order.pools(epoch):
        cells = np.concatenate([np.arange(s.first, s.first + len(s))[order.selection(s)] for s in pool.spans])
        assert len(cells) == pool.cells
        steps += [cells[chosen].tolist() for chosen in order.batches(epoch, pool, LENGTHS[cells])]
    return steps


@pytest.fixture(params=[64, 200, 100_000])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TrainingOrder:
    monkeypatch.setattr(module, "POOL_CELLS", request.param)
    return TrainingOrder(spans(), 24, RandomPart(0.1, 3, held=False), seed=3)


def test_every_training_cell_once_an_epoch(order: TrainingOrder) -> None:
    training = {c for s in spans() for c in (np.arange(s.first, s.stop)[order.selection(s)]).tolist()}
    assert order.cells == len(training)
    assert 850 < len(training) < 950
    for epoch in range(3):
        steps = epoch_of(order, epoch)
        assert len(steps) == order.steps(epoch)
        assert sorted(cell for step in steps for cell in step) == sorted(training)
        assert all(12 <= len(step) <= 24 for step in steps)
    assert epoch_of(order, 0) == epoch_of(order, 0)
    assert epoch_of(order, 0) != epoch_of(order, 1)


def test_any_step_can_be_found(order: TrainingOrder) -> None:
    first, second = order.steps(0), order.steps(1)
    assert order.locate(0) == (0, 0)
    assert order.locate(first - 1) == (0, first - 1)
    assert order.locate(first) == (1, 0)
    assert order.locate(first + second + 5) == (2, 5)


def test_cells_of_a_step_have_similar_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL_CELLS", 1000)
    order = TrainingOrder(spans(), 20, RandomPart(0.0, 0, held=False), seed=0)
    spread = [np.ptp(LENGTHS[step]) for step in epoch_of(order, 0)]
    assert np.mean(spread) < np.ptp(LENGTHS[:1000]) / 20
    lengths = [LENGTHS[step].mean() for step in epoch_of(order, 0)]
    assert lengths != sorted(lengths)


def test_fewer_cells_than_a_pool_or_a_batch() -> None:
    order = TrainingOrder(spans(30), 50, RandomPart(0.0, 0, held=False), seed=0)
    assert [len(step) for step in epoch_of(order, 0)] == [30]
    assert order.locate(7) == (7, 0)


def test_held_out_cells_lie_in_the_spans_named() -> None:
    held = RandomPart(0.02, 1, held=True)
    order = TrainingOrder(spans(), 24, RandomPart(0.02, 1, held=False), seed=1)
    named = {span.first for span in order.spans_of(held)}
    for span in spans():
        assert (span.first in named) == (not order.selection(span).all())
        assert np.array_equal(held(span), ~order.selection(span))


def test_cells_can_be_assigned_one_by_one() -> None:
    part_n = np.random.default_rng(0).integers(-1, 3, 1000).astype(np.int8)
    part_n[:64] = 1  # the first span holds no cell of the part
    order = TrainingOrder(spans(), 24, AssignedPart(part_n, 0), seed=1)
    assert sorted(cell for step in epoch_of(order, 0) for cell in step) == np.flatnonzero(part_n == 0).tolist()


def test_many_epochs_are_not_counted_to_the_end() -> None:
    order = TrainingOrder(spans(), 24, RandomPart(0.1, 3, held=False), seed=3)
    base = PretrainConfig(corpus="c", output="o", epochs=1e9, max_steps=100)
    assert count_steps(order, base) == 100
    assert count_steps(order, base.model_copy(update={"epochs": 2.0, "max_steps": None})) == order.steps(
        0
    ) + order.steps(1)
