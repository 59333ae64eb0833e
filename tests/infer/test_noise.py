"""The noise of a screen: what copies differ by when the model computes them in a higher precision."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from cellray.infer.noise import COPIES, precise, rounding_noise
from cellray.infer.perturbed import Perturber
from cellray.model.block_attention import in_precision
from cellray.model.encoder import CellEncoder
from cellray.model.masked_lm import new_masked_lm
from cellray.perturbation import Delete, perturb_cell
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
    usual = rounding_noise(perturber(encoder), precise(encoder), cells, exact)
    assert usual.similarity < 1e-6 < noise.similarity


def test_no_copies_no_noise(vocabulary: GeneVocabulary) -> None:
    encoder = CellEncoder(new_masked_lm("tiny", vocabulary, 16, 0).bert.eval(), 0)
    perturber = Perturber(encoder, "cell", vocabulary, vocabulary.layout(16), {}, 64)
    noise = rounding_noise(perturber, encoder, [], perturber.measure([]))
    assert (noise.copies, noise.similarity, noise.shift) == (0, 0, 0)
