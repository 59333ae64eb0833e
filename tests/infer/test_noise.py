"""The noise of a screen: what copies differ by when the model computes them in a higher precision."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from cellray.infer.noise import COPIES, in_float64, rounding_noise, unperturbed_distance
from cellray.infer.perturbed import Perturber
from cellray.model.block_attention import in_precision
from cellray.model.encoder import CellEncoder
from cellray.model.masked_lm import new_masked_lm
from cellray.perturbation import Delete, make_edit, perturb_cell
from cellray.vocabulary import GeneVocabulary


@pytest.mark.parametrize("pooling", ["cell", "cls"])
def test_noise_is_the_largest_difference_of_the_sample(vocabulary_v2: GeneVocabulary, pooling: str) -> None:
    encoder = CellEncoder(new_masked_lm("tiny", vocabulary_v2, 16, 0).bert.eval(), 0)
    layout = vocabulary_v2.layout(16)
    states = {"A": np.ones(encoder.width, np.float32)}
    genes_n = np.array([7, 9, 5, 12, 8, 6], np.uint16)
    copies = list(perturb_cell(genes_n, genes_n.astype(np.int32)[:, None], Delete(), 14, len(vocabulary_v2)))
    cells = [(genes_n, copies)]
    rounded = deepcopy(encoder)
    in_precision(rounded.bert, torch.bfloat16)

    def perturber(of: CellEncoder) -> Perturber:
        return Perturber(of, pooling, vocabulary_v2, layout, states, 64)

    found, exact = perturber(rounded).measure(cells), perturber(encoder).measure(cells)
    noise = rounding_noise(perturber(rounded), encoder, cells, found)
    sample = np.linspace(0, 5, COPIES).astype(int)
    assert noise.copies == COPIES
    assert noise.similarity == pytest.approx(np.abs(found.similarity_r - exact.similarity_r)[sample].max(), abs=2e-7)
    assert noise.shift == pytest.approx(np.abs(found.shift_rs - exact.shift_rs)[sample].max(), abs=2e-7)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with in_float64(encoder):
        assert next(encoder.parameters()).dtype == torch.float64
        usual = rounding_noise(perturber(encoder), encoder, cells, exact)
    assert usual.similarity < 1e-6 < noise.similarity
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    again = perturber(encoder).measure(cells)
    assert again.similarity_r.tobytes() == exact.similarity_r.tobytes()


@pytest.mark.parametrize("pooling", ["cell", "cls"])
@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_an_unperturbed_copy_differs_by_rounding_alone(
    vocabulary_v2: GeneVocabulary, pooling: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = CellEncoder(new_masked_lm("tiny", vocabulary_v2, 16, 0).bert.eval(), 0)
    genes_n = np.arange(4, 18, dtype=np.uint16)  # a full row: what is put in pushes the last gene out
    listed = np.array([[20], [21]] if kind == "overexpress" else [[4], [9]], np.int32)
    copies = list(perturb_cell(genes_n, listed, make_edit(kind), 14, len(vocabulary_v2)))
    perturber = Perturber(encoder, pooling, vocabulary_v2, vocabulary_v2.layout(16), {}, 64)
    seen: list[int] = []
    hidden = Perturber._hidden
    monkeypatch.setattr(Perturber, "_hidden", lambda self, ids: (seen.append(len(ids)), hidden(self, ids))[1])
    assert unperturbed_distance(perturber, genes_n, copies) < 1e-6
    assert seen == [1, 3]  # the reference, then all three rows at once
    in_precision(encoder.bert, torch.bfloat16)
    assert unperturbed_distance(perturber, genes_n, copies) < 0.02


def test_no_copies_no_noise(vocabulary: GeneVocabulary) -> None:
    encoder = CellEncoder(new_masked_lm("tiny", vocabulary, 16, 0).bert.eval(), 0)
    perturber = Perturber(encoder, "cell", vocabulary, vocabulary.layout(16), {}, 64)
    noise = rounding_noise(perturber, encoder, [], perturber.measure([]))
    assert (noise.copies, noise.similarity, noise.shift) == (0, 0, 0)
