"""Batches of a real corpus: the same cells in each step for any number of workers, from any step on."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.train import feed as module
from cellray.train import order as order_module
from cellray.train.contracts import Batch
from cellray.train.feed import Feed, spans
from cellray.train.order import RandomPart, TrainingOrder
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
    return TrainingOrder(spans(Corpus.open(str(tmp_path / "corpus"))), 12, RandomPart(0.1, 7, held=False), 7)


def feed_of(order: TrainingOrder, rank: int = 0, world_size: int = 1, pass_tokens: int = 10**6) -> Feed:
    return Feed(order, RandomPart(0.1, 7, held=True), rank, world_size, 0, pass_tokens)


def rows(batches: list[Batch]) -> list[list[int]]:
    """Return the rows of batches without padding, sorted."""
    return sorted(row[row > 0].tolist() for batch in batches for row in batch.input_ids_nl if batch.lengths_n[0] > 0)


def take(order: TrainingOrder, steps: int, step: int = 0, **share: int) -> list[list[list[int]]]:
    return [rows(passes) for passes in itertools.islice(feed_of(order, **share).steps(step), steps)]


def test_an_epoch_and_the_held_out_cells_are_the_corpus(order: TrainingOrder, tmp_path: Path) -> None:
    corpus = Corpus.open(str(tmp_path / "corpus"))
    whole = sorted(row["input_ids"] for row in rows_of(corpus))  # type: ignore[type-var]
    held = rows(feed_of(order).held_out())
    for epoch in range(2):
        first = sum(order.steps(e) for e in range(epoch))
        seen = take(order, order.steps(epoch), step=first)
        assert sorted([row for step in seen for row in step] + held) == whole
    assert sum(batch.tokens for batch in feed_of(order).held_out()) == sum(map(len, held))


def test_cells_are_numbered_as_they_lie_in_the_corpus(order: TrainingOrder, tmp_path: Path) -> None:
    whole = [row["input_ids"] for row in rows_of(Corpus.open(str(tmp_path / "corpus")))]
    batches = [b for passes in itertools.islice(feed_of(order, pass_tokens=60).steps(0), 20) for b in passes]
    for batch in (*batches, *feed_of(order).held_out()):
        for row, length, cell in zip(batch.input_ids_nl, batch.lengths_n, batch.cells_n, strict=True):
            assert row[:length].tolist() == whole[cell]
            assert not row[length:].any()


def test_workers_share_each_step(order: TrainingOrder) -> None:
    alone = take(order, 30)
    for workers in (2, 3):
        shares = [take(order, 30, rank=rank, world_size=workers) for rank in range(workers)]
        assert [sorted(itertools.chain(*step)) for step in zip(*shares, strict=True)] == alone
        assert all(len(share) >= 1 for step in shares for share in step)


@pytest.mark.parametrize("pass_tokens", [1, 40, 90])
def test_a_step_is_cut_into_passes_of_bounded_size(order: TrainingOrder, pass_tokens: int) -> None:
    for workers in (1, 2):
        shares = [
            list(itertools.islice(feed_of(order, rank, workers, pass_tokens).steps(0), 20)) for rank in range(workers)
        ]
        assert [sorted(itertools.chain(*map(rows, step))) for step in zip(*shares, strict=True)] == take(order, 20)
        for step in zip(*shares, strict=True):
            assert len({len(passes) for passes in step}) == 1  # as many on each worker
            assert all(len(b.cells_n) for passes in step for b in passes)
            sizes = [b.input_ids_nl.numel() for passes in step for b in passes if len(b.cells_n) > 1]
            assert all(size <= max(pass_tokens, 16) + 16 for size in sizes)


def test_workers_share_the_held_out_cells_in_equally_many_batches(order: TrainingOrder) -> None:
    alone = rows(feed_of(order).held_out())
    for workers, pass_tokens in ((2, 40), (3, 40), (7, 10**6), (40, 60)):
        shares = [feed_of(order, rank, workers, pass_tokens).held_out() for rank in range(workers)]
        assert sorted(row for share in shares for row in rows(share)) == alone
        assert len({len(share) for share in shares}) == 1
        assert sorted(c for share in shares for b in share for c in b.cells_n if c >= 0) == sorted(
            c for b in feed_of(order).held_out() for c in b.cells_n
        )


def test_going_on_from_any_step(order: TrainingOrder) -> None:
    straight = take(order, 40)
    for step in (1, order.pools(0)[1].first_step, order.steps(0) - 1, order.steps(0), order.steps(0) + 3):
        assert take(order, 40 - step, step=step) == straight[step:], step


def test_lengths_of_a_batch_are_alike(order: TrainingOrder) -> None:
    widths = [passes[0].input_ids_nl.shape[1] for passes in itertools.islice(feed_of(order).steps(0), 13)]
    assert np.ptp(widths) > 0


def test_an_error_of_the_reader_comes_out(order: TrainingOrder, tmp_path: Path) -> None:
    for shard in (tmp_path / "corpus" / "shards").iterdir():
        shard.unlink()
    with pytest.raises(InputError, match="a finished result must hold all its parts"):
        take(order, 1)
