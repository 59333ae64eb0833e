"""How much of a measure is rounding: a few copies computed again in the next higher precision, and one unperturbed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cellray.infer.perturbed import Measures, Perturber
from cellray.model.encoder import CellEncoder
from cellray.perturbation import Copies

COPIES = 4
"""Copies that are computed again, of those that are handed over."""
_BESIDE = 7
"""Perturbed copies that are computed together with an unperturbed one."""
_NUMBER = -1
"""Of the unperturbed copy; no perturbation bears it."""


@dataclass(frozen=True)
class Noise:
    """Absolute differences of copies' measures from those in the higher precision.

    Attributes
    ----------
    copies
        How many were computed twice.
    similarity, shift
        Largest difference of a similarity, and of a shift towards any state.
    """

    copies: int
    similarity: float
    shift: float


@contextmanager
def in_float64(encoder: CellEncoder) -> Iterator[None]:
    """Let a float32 encoder compute in float64 meanwhile; no bit of its weights changes, and none is held twice."""
    encoder.to(torch.float64)
    try:
        yield
    finally:
        encoder.to(torch.float32)


def rounding_noise(
    perturber: Perturber,
    encoder: CellEncoder,
    cells: Sequence[tuple[NDArray[np.uint16], Sequence[Copies]]],
    found: Measures,
) -> Noise:
    """Compare some copies with what a more precise encoder gives.

    Pooling and cosines are in float32 both times; what differs are the hidden states, and the batch. Weights were
    rounded to the lower precision, too, so their part is in the noise.

    Parameters
    ----------
    perturber
        What was used.
    encoder
        The same layers in higher precision: float32 for bf16 and fp16, float64 for float32.
    cells, found
        What was measured, and the result.
    """
    count = len(found.cell_r)
    rows = np.unique(np.linspace(0, count - 1, min(COPIES, count)).astype(int)).tolist()
    similarity, shift = 0.0, 0.0
    for row in rows:
        genes_n, copies = cells[found.cell_r[row]]
        again = replace(perturber, encoder=encoder).measure([(genes_n, _only(copies, found.number_r[row]))])
        similarity = max(similarity, float(np.abs(np.nan_to_num(again.similarity_r[0] - found.similarity_r[row]))))
        shift = max(shift, float(np.abs(again.shift_rs[0] - found.shift_rs[row]).max(initial=0)))
    return Noise(len(rows), similarity, shift)


def unperturbed_distance(perturber: Perturber, genes_n: NDArray[np.uint16], copies: Sequence[Copies]) -> float:
    """Return how far from 1 the similarity of an unperturbed copy is, computed together with perturbed ones.

    Exact arithmetic gives 0. Its batch has another shape than the one in which the unperturbed row was embedded.

    Parameters
    ----------
    genes_n, copies
        A cell and its copies; the first few are computed beside.
    """
    first = copies[0]
    few = slice(_BESIDE)
    beside = Copies(first.numbers_p[few], first.tokens_pm[few], first.sources_pm[few], first.reference)
    own_n = genes_n[: first.reference]
    same = Copies(np.array([_NUMBER]), own_n[None], np.arange(len(own_n), dtype=np.int32)[None], first.reference)
    found = replace(perturber, effects=False).measure([(genes_n, [same, beside])])
    return float(np.abs(1 - found.similarity_r[found.number_r == _NUMBER])[0])


def _only(copies: Sequence[Copies], number: int) -> list[Copies]:
    """Return the one copy with a number."""
    for each in copies:
        if (own := each.numbers_p == number).any():
            return [Copies(each.numbers_p[own], each.tokens_pm[own], each.sources_pm[own], each.reference)]
    raise AssertionError(number)
