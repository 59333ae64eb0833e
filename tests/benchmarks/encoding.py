"""Rank value encoding on one core: the compiled kernel against a row loop over a scipy matrix."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellray.rank_value import ColumnGenes, encode_rows
from cellray.vocabulary import TokenLayout
from tests.benchmarks.compare import in_turns, report

CELLS, GENES, PER_CELL, ROUNDS = 1000, 20_000, 2000, 7


def synthetic_cells(seed: int = 0) -> tuple[sparse.csr_matrix, ColumnGenes]:
    """Return counts with `PER_CELL` genes in each cell, and medians spread as real ones are."""
    rng = np.random.default_rng(seed)
    columns = np.concatenate([np.sort(rng.choice(GENES, PER_CELL, replace=False)) for _ in range(CELLS)])
    counts = rng.geometric(0.5, CELLS * PER_CELL).astype(np.float32)
    x = sparse.csr_matrix((counts, columns, np.arange(CELLS + 1) * PER_CELL), shape=(CELLS, GENES))
    return x, ColumnGenes(np.arange(2, GENES + 2, dtype=np.int32), rng.lognormal(0, 1, GENES))


def row_loop(x: sparse.csr_matrix, genes: ColumnGenes) -> list[NDArray[np.int32]]:
    """Encode as one would by hand: slice a row, divide, argsort."""
    n_counts = np.asarray(x.sum(axis=1), np.float64).ravel()
    rows = []
    for i in range(x.shape[0]):
        row = x[i]
        keys = row.data.astype(np.float64) / n_counts[i] * 10_000 / genes.median_g[row.indices]
        rows.append(genes.token_g[row.indices][np.argsort(-keys, kind="stable")][:2048])
    return rows


def main() -> None:
    """Check that both give the same rows, then time them."""
    x, genes = synthetic_cells()

    def kernel() -> list[NDArray[np.uint16]]:
        cells = encode_rows(x.data, x.indices, x.indptr, genes, TokenLayout(2048))
        return np.split(cells.input_ids, cells.offsets[1:-1])

    different = sum(not np.array_equal(a, b) for a, b in zip(kernel(), row_loop(x, genes), strict=True))
    assert different == 0, f"{different} of {CELLS} cells differ"
    report(f"encode cells of {PER_CELL:,} genes", CELLS, in_turns(kernel, lambda: row_loop(x, genes), ROUNDS), 4)


if __name__ == "__main__":
    main()
