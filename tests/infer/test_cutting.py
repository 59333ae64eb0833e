"""Groups of a screen: the same whatever the units are, and units are whole groups."""

import numpy as np
import pytest

from cellray.infer.cutting import AT_ONCE, TOGETHER, cells_together, chunks, groups, unit_size


@pytest.mark.parametrize(("perturbations", "cells"), [(1, 64), (3, 21), (64, 1), (AT_ONCE, 1)])
def test_cells_with_few_perturbations_share_batches(perturbations: int, cells: int) -> None:
    assert cells_together(perturbations) == cells


def test_units_are_whole_groups() -> None:
    assert unit_size(1, 64, 2048, 16_384) == (2048, 16_384)
    assert unit_size(1, 64, 100, 16_384) == (64, 16_384)  # rounded down
    assert unit_size(1, 64, 3, 16_384) == (64, 16_384)  # but one group at least
    assert unit_size(2000, 1, 2048, 16_384) == (8, 16_384)
    assert unit_size(50_000, 1, 2048, 1500) == (1, AT_ONCE)


@pytest.mark.parametrize("together", [1, 4, TOGETHER])
def test_groups_do_not_depend_on_units(together: int) -> None:
    chosen = np.random.default_rng(0).random(200) < 0.4

    def cut(step: int) -> list[list[int]]:
        pieces = [(start, groups(start, chosen[start : start + step], together)) for start in range(0, 200, step)]
        return [[start + row for row in group] for start, found in pieces for group in found]

    whole = cut(200)
    assert [row for group in whole for row in group] == np.flatnonzero(chosen).tolist()
    assert all(len({row // together for row in group}) == 1 for group in whole)
    assert cut(together) == cut(3 * together) == whole


def test_chunks() -> None:
    assert list(chunks(0, 10)) == [(0, 10)]
    assert list(chunks(AT_ONCE, 3 * AT_ONCE + 5))[-1] == (3 * AT_ONCE, 3 * AT_ONCE + 5)
