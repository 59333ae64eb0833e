"""Batches of a real corpus: the same cells in each step for any number of workers, from any step on."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellray.data.corpora.corpus import Corpus
from cellray.train import feed as module
from cellray.train import order as order_module
from cellray.train.feed import Feed, spans
from cellray.train.loop import Batch
from cellray.train.order import TrainingOrder
from cellray.vocabulary import GeneVocabulary
from tests.data.corpora import rows_of, tokenized


@pytest.fixture
def order(
    make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainingOrder:
    monkeypatch.setattr(module, "SPAN_CELLS", 16)
    monkeypatch.setattr(order_module, "POOL_CELLS", 60)
    paths = [make_h5ad(f"{i}.h5ad", cells=90, seed=i) for i in range(2)]
    tokenized(paths, vocabulary, tmp_path / "corpus", cells_per_shard=40)
    return TrainingOrder(spans(Corpus.open(str(tmp_path / "corpus"))), 12, 0.1, 7)


def cells(batches: list[Batch]) -> list[list[list[int]]]:
    """Return each batch's rows without padding, sorted."""
    return [sorted(row[row > 0].tolist() for row in batch.input_ids_nl) for batch in batches]


def take(order: TrainingOrder, steps: int, step: int = 0, rank: int = 0, world_size: int = 1) -> list[list[list[int]]]:
    return cells(list(itertools.islice(Feed(order, rank, world_size, 0).batches(step), steps)))


def test_an_epoch_and_the_held_out_cells_are_the_corpus(order: TrainingOrder, tmp_path: Path) -> None:
    corpus = Corpus.open(str(tmp_path / "corpus"))
    whole = sorted(row["input_ids"] for row in rows_of(corpus))  # type: ignore[type-var]
    held = cells(Feed(order, 0, 1, 0).held_out(5))
    for epoch in range(2):
        first = sum(order.steps(e) for e in range(epoch))
        seen = take(order, order.steps(epoch), step=first)
        assert sorted(row for batch in (*seen, *held) for row in batch) == whole
    assert sum(batch.tokens for batch in Feed(order, 0, 1, 0).held_out(5)) == sum(len(r) for b in held for r in b)


def test_workers_share_each_step(order: TrainingOrder) -> None:
    alone = take(order, 30)
    for workers in (2, 3):
        shares = [take(order, 30, rank=rank, world_size=workers) for rank in range(workers)]
        assert [sorted(itertools.chain(*step)) for step in zip(*shares, strict=True)] == alone
        assert all(len(share) >= 1 for step in shares for share in step)
    held = [cells(Feed(order, rank, 2, 0).held_out(4)) for rank in range(2)]
    assert sorted(row for share in held for batch in share for row in batch) == sorted(
        row for batch in cells(Feed(order, 0, 1, 0).held_out(4)) for row in batch
    )


def test_going_on_from_any_step(order: TrainingOrder) -> None:
    straight = take(order, 40)
    for step in (1, order.pools(0)[1].first_step, order.steps(0) - 1, order.steps(0), order.steps(0) + 3):
        assert take(order, 40 - step, step=step) == straight[step:], step


def test_lengths_of_a_batch_are_alike(order: TrainingOrder) -> None:
    widths = [batch.input_ids_nl.shape[1] for batch in itertools.islice(Feed(order, 0, 1, 0).batches(0), 13)]
    assert np.ptp(widths) > 0
