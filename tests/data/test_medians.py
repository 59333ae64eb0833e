"""Nonzero medians against numpy, and the vocabulary built from them."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray.data.medians import MedianConfig, build_vocabulary, grouped_median
from cellray.errors import InputError
from tests.conftest import GENES, random_counts

pytestmark = pytest.mark.usefixtures("ray_session")
Make = Callable[..., Path]


def test_grouped_median_by_eye() -> None:
    medians = grouped_median(np.array([1, 0, 1, 1, 3]), np.array([5.0, 2.0, 1.0, 3.0, 4.0]), 4)
    assert np.array_equal(medians, [2.0, 3.0, np.nan, 4.0], equal_nan=True)
    assert grouped_median(np.array([0, 0]), np.array([1.0, 2.0]), 1).tolist() == [1.5]


def test_medians_are_those_of_numpy_over_all_files(make_h5ad: Make) -> None:
    paths = [make_h5ad("a.h5ad", cells=60, seed=1), make_h5ad("b.h5ad", cells=33, seed=2)]
    vocabulary = build_vocabulary(MedianConfig(source=tuple(map(str, paths)), generation="v2", input_size=64))
    scaled = np.concatenate([x / x.sum(1, keepdims=True) for x in (anndata.read_h5ad(p).X.toarray() for p in paths)])
    scaled = scaled.astype(np.float64) * 10_000
    for i, gene in enumerate(GENES):
        assert vocabulary.medians[gene] == pytest.approx(np.median(scaled[scaled[:, i] > 0, i]), rel=1e-6)
    assert list(vocabulary.genes.values()) == list(range(4, 44))
    assert vocabulary.input_size == 64


def test_unseen_genes_get_no_token_and_filtered_cells_do_not_count(make_h5ad: Make) -> None:
    x = np.array([[2, 2, 0], [1, 3, 0], [0, 0, 9]], np.float32)
    obs = {"filter_pass": [True, True, False], "total": [4.0, 8.0, 9.0]}
    path = str(make_h5ad(x=sparse.csr_matrix(x), obs=obs))
    vocabulary = build_vocabulary(MedianConfig(source=(path,)))
    assert dict(vocabulary.medians) == {GENES[0]: (5000 + 2500) / 2, GENES[1]: (5000 + 7500) / 2}
    totals = build_vocabulary(MedianConfig(source=(path,), n_counts_column="total"))
    assert dict(totals.medians) == {GENES[0]: (5000 + 1250) / 2, GENES[1]: (5000 + 3750) / 2}


def test_symbols_are_taken_where_there_is_nothing_else(make_h5ad: Make) -> None:
    names = pd.DataFrame(index=["TP53", "MYC", "C1orf112"])
    path = str(make_h5ad(x=random_counts(9, 3, density=1), var=names))
    vocabulary = build_vocabulary(MedianConfig(source=(path,)))
    assert vocabulary.id_type == "symbol"
    assert list(vocabulary.genes) == ["C1orf112", "MYC", "TP53"]
    with pytest.raises(InputError, match="one kind of gene id"):
        build_vocabulary(MedianConfig(source=(path, str(make_h5ad("b.h5ad")))))


def test_a_wrong_generation_and_totals_that_are_none(make_h5ad: Make) -> None:
    with pytest.raises(ValueError, match="'v1' or 'v2'"):
        MedianConfig(generation="v3")
    path = str(make_h5ad(x=random_counts(2, 40), obs={"total": [0.0, 3.0]}))
    with pytest.raises(InputError, match="'total' must hold positive totals"):
        build_vocabulary(MedianConfig(source=(path,), n_counts_column="total"))
