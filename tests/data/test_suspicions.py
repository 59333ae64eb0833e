"""Whole numbers that are no raw counts are told by their distributions; real ones are not suspected."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from cellray.data.sources.contract import CountBlock, open_source
from cellray.data.suspicions import suspicions


def raw_counts(cells: int = 200, genes: int = 2000) -> NDArray[np.float64]:
    """Return counts with the spread of real ones: cells differ in depth, genes in level."""
    rng = np.random.default_rng(0)
    depth, level = rng.lognormal(8, 0.4, (cells, 1)), rng.lognormal(0, 2, genes)
    return rng.poisson(depth * level / level.sum()).astype(np.float64)


def suspect(x: NDArray[np.float64]) -> list[str]:
    matrix = sparse.csr_matrix(x)
    block = CountBlock(matrix.data, matrix.indices, matrix.indptr, x.shape[1], 0)
    return suspicions(block, np.asarray(matrix.sum(axis=1)).ravel())


def scaled(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / x.sum(axis=1, keepdims=True) * 1e4


def test_raw_counts_are_not_suspected() -> None:
    assert suspect(raw_counts()) == []


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda x: np.minimum(x, 1), "looks binarised: no value above 1 in cells with"),
        (lambda x: np.rint(np.log1p(scaled(x))), "looks like rounded logarithms: no value above"),
        (lambda x: np.rint(scaled(x)), "looks normalised and rounded: cells total"),
    ],
)
def test_spoilt_counts_are(spoil: object, sentence: str) -> None:
    assert any(sentence in found for found in suspect(spoil(raw_counts())))  # type: ignore[operator]


@pytest.mark.parametrize("depth", [7.0, 8.5, 10.0])
def test_rounded_shares_of_any_depth(depth: float) -> None:
    rng = np.random.default_rng(1)
    totals, level = rng.lognormal(depth, 0.5, (200, 1)), rng.lognormal(0, 2, 4000)
    counts = rng.poisson(totals * level / level.sum()).astype(np.float64)
    assert suspect(counts) == []
    assert any("normalised and rounded" in found for found in suspect(np.rint(scaled(counts))))


def test_few_cells_or_genes_say_nothing() -> None:
    assert suspect(np.minimum(raw_counts(), 1)[:20]) == []
    assert suspect(np.minimum(raw_counts(), 1)[:, :100]) == []


@pytest.mark.parametrize("name", ["pbmc_facs", "kang_ifnb"])
def test_real_cells_are_not_suspected(shared: Path, name: str) -> None:
    path = shared / "data" / f"{name}.h5ad"
    with open_source(str(path)) as source:
        block = next(source.blocks(0, source.n_cells, 1024))
        matrix = sparse.csr_matrix((block.counts, block.columns, block.indptr), shape=(block.n_cells, block.n_columns))
        assert suspicions(block, np.asarray(matrix.sum(axis=1)).ravel()) == []
