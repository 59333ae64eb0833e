"""The sketch of all genes: against exact medians, against the library `ddsketch`, in any order of merging."""

import itertools

import numpy as np
import pytest
from ddsketch import DDSketch
from ddsketch.mapping import LogarithmicMapping
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellray.data.medians.sketch import ACCURACY, VALUE_RANGE, GeneSketch, SketchBuilder, bucket_of, merge
from cellray.data.sources.contract import CountBlock
from tests.conftest import random_counts

MARGIN = 1 + 1e-9  # rounding


def sketch(x: sparse.csr_matrix, totals: np.ndarray | None = None, **options: int) -> GeneSketch:
    """Sketch all cells of a matrix."""
    builder = SketchBuilder(x.shape[1], **options)
    totals = np.asarray(x.sum(1), np.float64).ravel() if totals is None else totals
    columns, passed = np.arange(x.shape[1], dtype=np.int32), np.ones(x.shape[0], bool)
    block = CountBlock(x.data, x.indices, x.indptr, x.shape[1], 0)
    assert builder.add(block, columns, passed, totals) == np.count_nonzero(x.data)
    return builder.finish()


def exact(x: sparse.csr_matrix, totals: np.ndarray | None = None) -> np.ndarray:
    dense = x.toarray().astype(np.float64)
    totals = dense.sum(1) if totals is None else totals
    scaled = dense / totals[:, None] * 10_000
    return np.array([np.median(values[values > 0]) if (values > 0).any() else np.nan for values in scaled.T])


def same(a: GeneSketch, b: GeneSketch) -> bool:
    return all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ("first_g", "bucket_e", "count_e"))


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0], ids=["even", "skewed", "heavy tails"])
def test_medians_err_by_at_most_what_is_promised(spread: float) -> None:
    rng = np.random.default_rng(3)
    x = random_counts(301, 60, density=0.3)
    x.data = np.ceil(x.data * rng.lognormal(0, spread, x.nnz))
    x.data[x.indices == 59] = 0
    x.eliminate_zeros()
    found, wanted = sketch(x).medians(), exact(x)
    assert np.isnan(found[59])
    assert np.isnan(wanted[59])
    assert (np.abs(found[:59] / wanted[:59] - 1) <= ACCURACY * MARGIN).all()
    assert sketch(x).n_values().tolist() == np.diff(x.tocsc().indptr).tolist()


@settings(max_examples=150)
@given(st.lists(st.integers(1, 2**53), min_size=1, max_size=9), st.floats(1e-6, 1e18))
def test_any_few_values_of_a_gene(counts: list[int], total: float) -> None:
    """One value, an even and an odd number, equal ones, the largest counts."""
    x = sparse.csr_matrix(np.array(counts, np.float64)[:, None])
    totals = np.full(len(counts), total)
    (found,) = sketch(x, totals).medians()
    assert found == pytest.approx(np.median(np.array(counts) / total * 10_000), rel=ACCURACY * MARGIN)


def test_buckets_are_those_of_the_library() -> None:
    """At the ends of the range, everywhere between them and on both sides of each bucket's edge."""
    mapping = LogarithmicMapping(ACCURACY)
    rng = np.random.default_rng(0)
    inner = np.exp(rng.uniform(*np.log(VALUE_RANGE), 20_000))
    edges = [mapping.value(key) * (1 + mapping.gamma) / 2 for key in range(-3000, 3000, 7)]
    around = [np.nextafter(edge, way) for edge in edges for way in (0, np.inf)]
    values = [*VALUE_RANGE, *inner, *edges, *around]
    assert [bucket_of(float(value)) for value in values] == [mapping.key(float(value)) for value in values]
    assert max(abs(mapping.key(value)) for value in VALUE_RANGE) < 2**15


def test_quantile_is_that_of_the_library() -> None:
    x = random_counts(501, 5, density=0.8)
    medians = sketch(x).medians()
    scaled = x.toarray() / x.sum(1).A1[:, None] * 10_000
    for gene in range(5):
        values = scaled[scaled[:, gene] > 0, gene]
        values = values[: len(values) - 1 + len(values) % 2]  # an odd number: the library averages nothing
        theirs = DDSketch(ACCURACY)
        for value in values:
            theirs.add(float(value))
        column = sparse.csr_matrix(values[:, None])
        (ours,) = sketch(column, np.full(len(values), 10_000.0)).medians()
        assert ours == pytest.approx(theirs.get_quantile_value(0.5), rel=1e-12)
        assert medians[gene] == pytest.approx(np.median(values), rel=0.2)


def test_how_the_cells_are_cut_and_merged_cannot_be_seen() -> None:
    x = random_counts(200, 30, seed=5)
    x.data *= np.random.default_rng(1).integers(1, 400, x.nnz)
    whole = sketch(x)
    parts = [sketch(x[a:b]) for a, b in itertools.pairwise([0, 1, 50, 51, 120, 200])]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 4, 1, 0, 2]):
        assert same(merge([parts[i] for i in order]), whole)
    assert same(merge([merge(parts[:2]), merge(parts[2:])]), whole)
    assert same(merge([GeneSketch.empty(30), whole]), whole)
    for size in (1, 100, 1000):  # buffers that are too small for a block, or fill up
        builder = SketchBuilder(30, buffer_values=size)
        for row in range(0, 200, 7):
            part = x[row : row + 7]
            block = CountBlock(part.data, part.indices, part.indptr, 30, row)
            builder.add(block, np.arange(30, dtype=np.int32), np.ones(part.shape[0], bool), part.sum(1).A1)
        assert same(builder.finish(), whole)


def test_left_out_cells_columns_and_stored_zeros_do_not_count() -> None:
    x = sparse.csr_matrix(np.array([[1, 2, 4], [8, 8, 0], [5, 5, 5]], np.int32))
    x.data[0] = 0
    block = CountBlock(x.data, x.indices, x.indptr, 3, 0)
    builder = SketchBuilder(2)
    passed = np.array([True, True, False])
    assert builder.add(block, np.array([0, -1, 1], np.int32), passed, np.full(3, 10_000.0)) == 2
    found = builder.finish()
    assert found.n_values().tolist() == [1, 1]
    assert found.medians() == pytest.approx([8, 4], rel=ACCURACY)
