"""Padding, batching and the held-out split."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellray.data.collate import TokenRows, length_grouped_batches, token_budget_batches
from cellray.data.corpora.split import held_out

ROWS = [[5, 6, 7], [8], [9, 10]]


def rows_of(values: list[list[int]]) -> TokenRows:
    return TokenRows.from_arrow(pa.array(values, pa.list_(pa.uint16())))


def test_padding_by_eye() -> None:
    assert rows_of(ROWS).pad(np.array([1, 0]), pad_id=0).tolist() == [[8, 0, 0], [5, 6, 7]]


def test_slices_and_pieces_of_a_column_are_understood() -> None:
    column = pa.chunked_array([pa.array(ROWS, pa.list_(pa.uint16())).slice(1), pa.array(ROWS, pa.list_(pa.uint16()))])
    rows = TokenRows.from_arrow(column)
    assert rows.lengths.tolist() == [1, 2, 3, 1, 2]
    assert rows.pad(np.array([1, 2]), 0).tolist() == [[9, 10, 0], [5, 6, 7]]
    sliced = TokenRows.from_arrow(pa.array(ROWS, pa.list_(pa.uint16())).slice(2))
    assert sliced.pad(np.array([0]), 0).tolist() == [[9, 10]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 200))
def test_budget_batches_hold_each_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_budget_batches(np.array(lengths), budget))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget


def test_grouped_batches_waste_little_and_use_rows_once() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 1000, 1003)
    batches = length_grouped_batches(lengths, 10, rng)
    used = np.concatenate(batches)
    assert len(used) == len(np.unique(used)) == 1000
    padded = sum(lengths[b].max() * len(b) for b in batches)
    assert padded < 1.03 * lengths[used].sum()
    other = length_grouped_batches(lengths, 10, np.random.default_rng(1))
    assert [b.tolist() for b in other] != [b.tolist() for b in batches]


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_the_split_is_a_function_of_the_cell_alone(fraction: float) -> None:
    whole = held_out(0, 20_000, fraction, seed=3)
    pieces = np.concatenate([held_out(first, 2500, fraction, seed=3) for first in range(0, 20_000, 2500)])
    assert np.array_equal(whole, pieces)
    assert abs(whole.mean() - fraction) < 0.01
    assert not np.array_equal(whole, held_out(0, 20_000, fraction, seed=4))
