"""What is sent of an AnnData: its counts, whatever form they have, in pieces that fit, and no names of cells."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray.api.schema import LimitsInfo
from cellray.api.wire import CellTable, pack_cells
from cellray.client.cells import CellSource, Chunk, Most, most_of, size_of
from cellray.errors import InputError
from tests.conftest import random_counts

X_NG = random_counts(23, 9, seed=3).toarray()
GENES = [f"G{i}" for i in range(9)]


def adata_of(x: object, genes: list[str] = GENES) -> anndata.AnnData:
    obs = pd.DataFrame(index=[f"donor7_cell{i}" for i in range(len(X_NG))])
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))  # type: ignore[arg-type]


def dense(tables: list[CellTable], genes: list[str] = GENES) -> np.ndarray:
    """Return counts by gene, added up naively."""
    rows = []
    for table in tables:
        for start, stop in zip(table.indptr[:-1], table.indptr[1:], strict=True):
            row = dict.fromkeys(genes, 0.0)
            for column, count in zip(table.columns[start:stop], table.counts[start:stop], strict=True):
                row[table.genes[column]] += count
            rows.append(list(row.values()))
    return np.array(rows)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("most_cells", [1, 5, 23, 100])
def test_all_counts_are_sent_once(form: Callable[[np.ndarray], object], most_cells: int) -> None:
    chunks = list(CellSource(adata_of(form(X_NG.copy()))).chunks(Most(most_cells)))
    np.testing.assert_array_equal(dense([chunk.table for chunk in chunks]), X_NG)
    assert [len(chunk) for chunk in chunks[:-1]] == (len(chunks) - 1) * [most_cells]
    assert [name for chunk in chunks for name in chunk.table.ids] == [str(row) for row in range(23)]
    assert [chunk.start for chunk in chunks] == list(range(0, 23, most_cells))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_a_backed_file_is_read_piece_by_piece(form: Callable[[np.ndarray], object], tmp_path: Path) -> None:
    adata_of(form(X_NG)).write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    tables = [chunk.table for chunk in CellSource(backed).chunks(Most(4))]
    np.testing.assert_array_equal(dense(tables), X_NG)
    backed.file.close()


def test_only_genes_that_cells_have_are_named() -> None:
    x = np.zeros((2, 9))
    x[0, [1, 4]] = 2, 3
    [chunk] = CellSource(anndata.AnnData(x, var=pd.DataFrame(index=GENES))).chunks(Most(10))
    assert chunk.table.genes == ["G1", "G4"]
    assert chunk.table.indptr.tolist() == [0, 2, 2]


def test_zeros_that_are_stored_are_not_sent_and_stay() -> None:
    stored = sparse.csr_matrix((np.array([0.0, 5.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 9))
    adata = anndata.AnnData(stored, var=pd.DataFrame(index=GENES))
    [chunk] = CellSource(adata).chunks(Most(10))
    assert chunk.table.counts.tolist() == [5.0]
    assert adata.X.nnz == 2


def test_a_gene_with_several_columns_is_named_once() -> None:
    names = ["G0", "G1", "G0", *GENES[3:]]
    adata = adata_of(X_NG)
    adata.var["ensembl_id"] = names
    [chunk] = CellSource(adata).chunks(Most(100))
    assert len(set(chunk.table.genes)) == len(chunk.table.genes)
    summed = X_NG.copy()
    summed[:, 0] += summed[:, 2]
    np.testing.assert_array_equal(dense([chunk.table], GENES)[:, [0, 1, *range(3, 9)]], summed[:, [0, 1, *range(3, 9)]])


def test_pieces_fit_the_body() -> None:
    source = CellSource(adata_of(X_NG))
    chunks = list(source.chunks(Most(23, 500)))
    assert len(chunks) > 1
    assert all(size_of(chunk.table) <= 500 for chunk in chunks)
    np.testing.assert_array_equal(dense([chunk.table for chunk in chunks]), X_NG)
    assert len(list(source.chunks(Most(23, 1)))) == 23  # one cell is sent, however large


def test_the_size_is_about_that_of_the_body() -> None:
    chunk = CellSource(anndata.AnnData(random_counts(64, 3000, density=0.5))).rows(0, 64)
    assert size_of(chunk.table) == pytest.approx(len(pack_cells(chunk.table, {})), rel=0.1)


def test_halves_are_the_whole() -> None:
    chunk = CellSource(adata_of(X_NG)).rows(4, 11)
    first, second = chunk.halves()
    assert (first.start, len(first), second.start, len(second)) == (4, 3, 7, 4)
    np.testing.assert_array_equal(dense([first.table, second.table]), X_NG[4:11])
    assert isinstance(first, Chunk)


def test_counts_and_genes_are_where_the_caller_says() -> None:
    adata = adata_of(X_NG * 0.5)
    adata.layers["counts"] = X_NG
    adata.var["symbol"] = [f"S{i}" for i in range(9)]
    [chunk] = CellSource(adata, "layers/counts", "symbol").chunks(Most(100))
    symbols = [f"S{i}" for i in range(9)]
    np.testing.assert_array_equal(dense([chunk.table], symbols), X_NG)
    adata.var["ensembl_id"] = [f"E{i}" for i in range(9)]
    assert set(CellSource(adata).rows(0, 23).table.genes) <= {f"E{i}" for i in range(9)}
    assert set(CellSource(adata, gene_ids="index").rows(0, 23).table.genes) <= set(GENES)


def test_raw_has_genes_of_its_own() -> None:
    adata = adata_of(X_NG)
    adata.raw = adata
    adata = adata[:, :3].copy()
    [chunk] = CellSource(adata, "raw").chunks(Most(100))
    np.testing.assert_array_equal(dense([chunk.table]), X_NG)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"matrix": "raw"}, "matrix: one of 'X', 'layers/counts'; found 'raw'"),
        ({"matrix": "layers/none"}, "found 'layers/none'"),
        ({"gene_ids": "symbols"}, "gene_ids: index, or one of 'symbol'"),
    ],
)
def test_what_is_not_there_is_told(options: dict[str, str], told: str) -> None:
    adata = adata_of(X_NG)
    adata.layers["counts"] = X_NG
    adata.var["symbol"] = GENES
    with pytest.raises(InputError, match=told):
        CellSource(adata, **options)


LIMITS = {
    "body_mb": 10.0,
    "cells_per_request": 100,
    "genes_per_cell": 50,
    "perturbation_tokens": 1,
    "job_tokens": 1,
    "request_timeout_s": 1.0,
}


@pytest.mark.parametrize(
    ("told", "most"),
    [
        ({}, Most(64, 9e6)),
        ({"cells_per_request": 30}, Most(30, 9e6)),
        ({"max_queued_cells": 41}, Most(20, 9e6)),
        ({"max_queued_cells": 1}, Most(1, 9e6)),
        ({"counts_per_request": 7, "genes_per_request": 5}, Most(64, 9e6, 7, 5)),
    ],
)
def test_what_a_request_may_hold_is_what_the_server_tells(told: dict[str, int], most: Most) -> None:
    assert most_of(LimitsInfo.model_validate(LIMITS | told), 64) == most


def test_pieces_have_no_more_counts_and_genes_than_they_may() -> None:
    source = CellSource(adata_of(X_NG))
    for most in (Most(23, counts=20), Most(23, genes=6)):
        tables = [chunk.table for chunk in source.chunks(most)]
        np.testing.assert_array_equal(dense(tables), X_NG)
        assert all(len(table) == 1 or most.holds(table) for table in tables)
        assert 1 < len(tables) <= 23
