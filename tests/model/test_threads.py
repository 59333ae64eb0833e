"""Results show nothing of the number of torch's threads, in rows of any size."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import numpy as np
import pytest
import torch

from cellray.infer.perturbed import Measures, Perturber
from cellray.model.annotator import AnnotatedEncoder
from cellray.model.encoder import CellEncoder, first_hidden_states, hidden_states
from cellray.model.heads import HeadSpec
from cellray.model.masked_lm import new_masked_lm
from cellray.model.threads import steady_sums
from cellray.perturbation import Delete, perturb_cell
from cellray.vocabulary import GeneVocabulary

T = TypeVar("T")
SIZES = [(1, 6), (1, 40), (2, 5), (5, 14), (7, 100), (11, 33)]


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Set the threads back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def with_threads(count: int, compute: Callable[[], T]) -> T:
    torch.set_num_threads(count)
    with torch.inference_mode():
        return compute()


@pytest.mark.parametrize("of", [hidden_states, first_hidden_states])
def test_hidden_states(vocabulary_v2: GeneVocabulary, of: Callable[..., torch.Tensor]) -> None:
    bert = new_masked_lm("tiny", vocabulary_v2, 128, 0).bert.eval()
    for size in SIZES:
        input_ids = torch.randint(4, 20, size, generator=torch.Generator().manual_seed(0))
        one, two, four = (with_threads(n, lambda: of(bert, input_ids, 0)) for n in (1, 2, 4))  # noqa: B023
        assert torch.equal(one, two), size
        assert torch.equal(one, four), size


@pytest.mark.parametrize("pooling", ["cell", "cls"])
def test_measures_of_a_screen(vocabulary_v2: GeneVocabulary, pooling: str) -> None:
    encoder = CellEncoder(new_masked_lm("tiny", vocabulary_v2, 16, 0).bert.eval(), 0)
    states = {"A": np.ones(encoder.width, np.float32), "B": np.arange(encoder.width, dtype=np.float32)}
    perturber = Perturber(encoder, pooling, vocabulary_v2, vocabulary_v2.layout(16), states, 64)
    cells = [np.arange(4, 4 + genes, dtype=np.uint16) for genes in (3, 6, 9, 14)]
    copies = [list(perturb_cell(c, c.astype(np.int32)[:, None], Delete(), 14, len(vocabulary_v2))) for c in cells]

    def measure() -> Measures:
        return perturber.measure(list(zip(cells, copies, strict=True)))

    one, two = with_threads(1, measure), with_threads(2, measure)
    assert one.similarity_r.tobytes() == two.similarity_r.tobytes()
    assert one.shift_rs.tobytes() == two.shift_rs.tobytes()


@pytest.mark.parametrize("pooling", ["cell", "cls", "attention"])
def test_answers(vocabulary_v2: GeneVocabulary, pooling: str) -> None:
    heads = [HeadSpec("state", "classification", "cell", ("a", "b", "c")), HeadSpec("age", "regression", "cell")]
    bert = new_masked_lm("tiny", vocabulary_v2, 128, 0).bert
    model = AnnotatedEncoder(bert, heads, pooling, vocabulary_v2).eval()
    for size in SIZES:
        input_ids = torch.randint(4, 20, size, generator=torch.Generator().manual_seed(0))
        one, two = (with_threads(n, lambda: model(input_ids)) for n in (1, 2))  # noqa: B023
        assert all(torch.equal(one[name], two[name]) for name in one), size


def test_threads_come_back() -> None:
    torch.set_num_threads(2)
    with torch.inference_mode():
        with suppress(ZeroDivisionError), steady_sums(5):
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
        with steady_sums(64):
            assert torch.get_num_threads() == 2
    with steady_sums(5):  # gradients are wanted: training
        assert torch.get_num_threads() == 2
