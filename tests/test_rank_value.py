"""Rank value encoding against a plain reference, by eye and at random."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from cellray.rank_value import UNKNOWN_GENE, ColumnGenes, encode_rows
from cellray.vocabulary import TokenLayout


def encode(x: NDArray[np.generic], tokens: list[int], medians: list[float], layout: TokenLayout) -> list[list[int]]:
    matrix = sparse.csr_matrix(x)
    genes = ColumnGenes(np.array(tokens, np.int32), np.array(medians, np.float64))
    cells = encode_rows(matrix.data, matrix.indices, matrix.indptr, genes, layout)
    return [row.tolist() for row in np.split(cells.input_ids, cells.offsets[1:-1])]


def reference(row: NDArray[np.generic], tokens: list[int], medians: list[float], size: int) -> list[int]:
    """Sort by count / median, largest first, ties by token."""
    genes = [(-float(x) / m, t) for x, t, m in zip(row, tokens, medians, strict=True) if x > 0 and t != UNKNOWN_GENE]
    return [token for _, token in sorted(genes)][:size]


def test_four_genes_by_eye() -> None:
    # count / median: 4/2 = 2, 3/1 = 3, 0, 10/20 = 0.5
    assert encode(np.array([[4.0, 3.0, 0.0, 10.0]]), [7, 8, 9, 10], [2, 1, 1, 20], TokenLayout(2048)) == [[8, 7, 10]]


def test_special_tokens_frame_the_cut_row() -> None:
    x = np.array([[1, 2, 3, 4], [0, 0, 0, 0]], np.float32)
    assert encode(x, [4, 5, 6, 7], [1, 1, 1, 1], TokenLayout(4, cls_id=2, eos_id=3)) == [[2, 7, 6, 3], []]


def test_ties_go_to_the_smaller_token_whatever_the_columns_order() -> None:
    assert encode(np.array([[2, 1, 2, 1]]), [9, 3, 5, 4], [1, 1, 1, 1], TokenLayout(9)) == [[5, 9, 3, 4]]


def test_unknown_genes_are_left_out_and_counted_before_the_cut() -> None:
    matrix = sparse.csr_matrix(np.array([[5, 4, 3, 2]], np.int64))
    genes = ColumnGenes(np.array([UNKNOWN_GENE, 2, 3, 4], np.int32), np.ones(4))
    cells = encode_rows(matrix.data, matrix.indices, matrix.indptr, genes, TokenLayout(2))
    assert cells.input_ids.tolist() == [2, 3]
    assert cells.n_genes.tolist() == [3]
    assert cells.input_ids.dtype == np.uint16


def test_keys_that_differ_in_the_last_bit_only_are_told_apart() -> None:
    median = np.full(64, 1.0)
    median[::2] = np.nextafter(1.0, 2.0)  # a larger median: a smaller key
    median[0] = 2.0**40  # stretches the range of keys, so that the digits sorted by see no difference
    expected = [*range(3, 66, 2), *range(4, 66, 2), 2]
    assert encode(np.ones((1, 64)), list(range(2, 66)), median.tolist(), TokenLayout(99)) == [expected]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint16])
@pytest.mark.parametrize("shuffled", [False, True])
def test_random_cells_match_the_reference(dtype: type, shuffled: bool) -> None:
    rng = np.random.default_rng(1)
    x = (rng.geometric(0.3, (40, 900)) * (rng.random((40, 900)) < 0.5)).astype(dtype)
    tokens = np.arange(2, 902)
    if shuffled:
        tokens = rng.permutation(tokens)
    tokens[rng.random(900) < 0.1] = UNKNOWN_GENE
    medians = rng.lognormal(0, 2, 900)
    medians[100:300] = 1.0
    got = encode(x, tokens.tolist(), medians.tolist(), TokenLayout(300))
    assert got == [reference(row, tokens.tolist(), medians.tolist(), 300) for row in x]


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**6),
            st.floats(1e-300, 1e300, allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_any_counts_and_medians_match_the_reference(genes: list[tuple[int, float]]) -> None:
    x = np.array([[float(count) for count, _ in genes]])
    tokens, medians = list(range(2, 2 + len(genes))), [median for _, median in genes]
    for size in (2048, 5):
        assert encode(x, tokens, medians, TokenLayout(size)) == [reference(x[0], tokens, medians, size)]


@pytest.mark.parametrize("n_distinct", [1, 2, 40])
def test_many_equal_keys_go_by_token(n_distinct: int) -> None:
    rng = np.random.default_rng(n_distinct)
    tokens = rng.permutation(np.arange(2, 702)).tolist()
    medians = rng.integers(1, n_distinct + 1, 700).astype(float).tolist()
    x = rng.integers(0, 3, (5, 700))
    found = encode(x, tokens, medians, TokenLayout(999))
    assert found == [reference(row, tokens, medians, 999) for row in x]


@pytest.mark.parametrize("size", [1, 7, 100, 2047, 2999, 3000])
def test_cells_of_more_genes_than_fit(size: int) -> None:
    rng = np.random.default_rng(size)
    x = rng.geometric(0.3, (3, 3000)).astype(np.float32)
    tokens, medians = list(range(2, 3002)), rng.lognormal(0, 1.5, 3000).round(1 + size % 3) + 0.1
    found = encode(x, tokens, medians.tolist(), TokenLayout(size))
    assert found == [reference(row, tokens, medians.tolist(), size) for row in x]
