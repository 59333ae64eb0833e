"""Readers of stored matrices: what is scattered by gene is gathered by cell, and nothing is read out of bounds."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem
from scipy import sparse

from cellray.data.checks import check_block, duplicate_entries
from cellray.data.gene_ids import column_names
from cellray.data.sources import matrices
from cellray.data.sources.contract import CountBlock, open_source
from cellray.data.sources.matrices import CscRows, DenseRows, MatrixName
from cellray.errors import InputError
from tests.conftest import random_counts
from tests.data.test_formats import CELLS, COUNTS, h5ad, loom

Make = Callable[..., Path]
NAME = MatrixName("file", "X")


def csc_of(x: sparse.spmatrix) -> CscRows:
    x = x.tocsc()
    return CscRows(NAME, x.data, x.indices, x.indptr, x.shape)


@pytest.mark.parametrize("scan", [3, 7, 4_000_000])
@pytest.mark.parametrize("held", [1, 40, 32_000_000])
def test_csc_is_gathered_whatever_the_bounds(scan: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "SCAN_VALUES", scan)
    monkeypatch.setattr(matrices, "HELD_VALUES", held)
    blocks = list(csc_of(COUNTS).blocks(5, 31, 4))
    expected = COUNTS[5:31]
    assert np.concatenate([b.counts for b in blocks]).tolist() == expected.data.tolist()
    assert np.concatenate([b.columns for b in blocks]).tolist() == expected.indices.tolist()
    assert np.concatenate([np.diff(b.indptr) for b in blocks]).tolist() == np.diff(expected.indptr).tolist()


def test_csc_is_passed_over_once_to_count_and_once_for_what_may_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, passes = csc_of(COUNTS), []
    scans = CscRows._scans
    monkeypatch.setattr(CscRows, "_scans", lambda self: (passes.append(1), scans(self))[1])
    list(rows.blocks(0, 20, 4))
    list(rows.blocks(20, CELLS, 4))
    assert len(passes) == 3
    monkeypatch.setattr(matrices, "HELD_VALUES", int(COUNTS.indptr[10]))
    list(rows.blocks(0, 11, 4))
    assert len(passes) == 5


def test_csc_keeps_what_stands_twice(make_h5ad: Make) -> None:
    """Small counts that are summed in their own type would overflow: 200 + 100 is 44 in 8 bits."""
    path = make_h5ad(x=sparse.csc_matrix(np.array([[200, 7], [0, 1]], np.uint8)))
    with h5py.File(path, "r+") as file:
        for name, values in (
            ("data", np.array([200, 100, 7, 1], np.uint8)),
            ("indices", [0, 0, 0, 1]),
            ("indptr", [0, 2, 4]),
        ):
            del file[f"X/{name}"]
            file[f"X/{name}"] = values
    with open_source(str(path)) as source:
        block = next(source.blocks(0, 2, 2))
        totals = check_block(block, source)
    assert totals.n_counts.tolist() == [307, 1]
    assert not totals.canonical
    assert duplicate_entries(block) == 1


@pytest.mark.parametrize("row", [-1, CELLS])
def test_csc_rows_out_of_range_are_refused(row: int, tmp_path: Path) -> None:
    path = h5ad(COUNTS.tocsc())(tmp_path)
    with h5py.File(path, "r+") as file:
        file["X/indices"][8] = row
    rule = rf"cells\.h5ad: row indices of X must lie in 0\.\.36; found .*{row}"
    with pytest.raises(InputError, match=rule), open_source(str(path)) as source:
        list(source.blocks(0, 2, 2))


def test_scatter_stops_at_rows_that_are_full() -> None:
    indptr = np.array([0, 1, 2])
    columns, counts = np.empty(2, np.int32), np.empty(2)
    values = np.array([0, 0], np.int32), np.array([1, 2], np.int32), np.array([1.0, 1.0])
    assert not matrices.scatter(*values, 0, indptr[:-1].copy(), indptr, columns, counts)


class Chunked:
    """A dense array that says how it is chunked and notes what is read."""

    def __init__(self, values: np.ndarray, chunks: tuple[int, int]) -> None:
        self.values, self.chunks, self.shape, self.read = values, chunks, values.shape, []

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        self.read.append((key[1].start, key[1].stop))
        return self.values[key]


def test_dense_blocks_end_where_chunks_do() -> None:
    array = Chunked(COUNTS.toarray().T, (8, 8))
    blocks = list(DenseRows(array, transposed=True).blocks(3, CELLS, 20))
    assert array.read == [(3, 16), (16, 32), (32, CELLS)]
    assert sum(block.n_cells for block in blocks) == CELLS - 3
    array.read.clear()
    list(DenseRows(array, transposed=True).blocks(0, 14, 5))
    assert array.read == [(0, 5), (5, 10), (10, 14)]  # memory is worth more than a chunk read twice


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("row_attrs/Accession", r"row_attrs must have a value for each gene; found 39 in row_attrs/Accession for 40"),
        ("col_attrs/CellID", r"col_attrs must have a value for each cell; found 36 in col_attrs/CellID for 37"),
    ],
)
def test_loom_attributes_of_another_length_are_refused(tmp_path: Path, attribute: str, message: str) -> None:
    path = loom(tmp_path)
    with h5py.File(path, "r+") as file:
        values = file[attribute][:-1]
        del file[attribute]
        file[attribute] = values
    with pytest.raises(InputError, match=rf"cells\.loom: {message}"):
        open_source(str(path))


def test_names_for_other_columns_than_the_matrix_has_are_refused(
    make_h5ad: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_source(str(make_h5ad())) as source:
        monkeypatch.setattr(source, "n_columns", 41)
        monkeypatch.setattr(source, "var", lambda: pd.DataFrame(index=["a"] * 40))
        with pytest.raises(InputError, match="var must have a row for each column; found 40 for 41"):
            column_names(source, None)


@pytest.mark.parametrize(
    ("columns", "indptr"),
    [
        (np.array([0, 1]), [0, 3]),
        (np.array([0, 1]), [0, 1]),
        (np.array([0, 1]), [1, 2]),
        (np.array([0, 1]), [0, 2, 1, 2]),
        (np.array([0]), [0, 2]),
        (np.array([0.0, 1.0]), [0, 2]),
        (np.array([0, 1]), []),
    ],
)
def test_unsound_blocks_are_refused(make_h5ad: Make, columns: np.ndarray, indptr: list[int]) -> None:
    block = CountBlock(np.ones(2), columns, np.array(indptr, np.int64), 40, 0)
    with (
        open_source(str(make_h5ad())) as source,
        pytest.raises(InputError, match=r"cells\.h5ad: the pointers of X must rise"),
    ):
        check_block(block, source)


def test_hashes_are_text(make_h5ad: Make) -> None:
    hashes = np.array([2**63 + 5, 7, 0], np.uint64)
    obs = {"hash": hashes, "kinds": pd.Categorical(hashes), "small": np.array([1, 2, 3], np.uint32)}
    with open_source(str(make_h5ad(x=random_counts(3, 40), obs=obs))) as source:
        assert source.obs_kinds() == {"hash": "text", "kinds": "text", "small": "integer"}
        for name in ("hash", "kinds"):
            assert source.obs(name, 0, 3).cast("string").to_pylist() == ["9223372036854775813", "7", "0"]


def test_cells_without_a_name_are_refused(make_h5ad: Make) -> None:
    path = make_h5ad()
    with h5py.File(path, "r+") as file:
        del file["obs/_index"]
        write_elem(file["obs"], "_index", pd.Categorical(["a", None] + ["b"] * 48))
    with open_source(str(path)) as source:
        assert source.cell_names(2, 4).to_pylist() == ["b", "b"]
        with pytest.raises(
            InputError, match=r"cells\.h5ad: cells need names; found 1 without one in obs column '_index'"
        ):
            source.cell_names(0, 10)
