"""Columns of shifts by hand: two cells whose copies were measured in another order than the table has."""

import numpy as np
import pyarrow as pa

from cellray.infer.perturbed import Measures
from cellray.infer.shift_rows import PerturbedCell, shift_columns
from cellray.perturbation import NO_TOKEN
from cellray.shift_schema import INSERTED, shift_schema

TOKENS = 10


def cell(row: int, genes: list[int], listed: list[list[int]]) -> PerturbedCell:
    numbers = np.arange(len(listed), dtype=np.int64) + 5
    return PerturbedCell(row, np.array(genes, np.uint16), numbers, np.array(listed, np.int32), [])


def test_rows_are_sorted_by_cell_and_perturbation_and_name_the_best_rank() -> None:
    cells = [cell(7, [4, 2, 9], [[9, 2], [3, NO_TOKEN]]), cell(8, [3], [[3, NO_TOKEN]])]
    found = Measures(
        np.array([1, 0, 0]), np.array([0, 1, 0]), np.float32([0.3, 0.2, 0.1]), np.float32([[3.0], [2.0], [1.0]])
    )
    titles, names = [["I|B", "C"], ["C"]], ["-"] * 5 + ["pair", "single"]
    columns = shift_columns(cells, pa.array(["a", "b"]), found, titles, TOKENS, names)
    table = pa.table(columns, schema=shift_schema(["sick"], (), named=True))
    assert table.to_pydict() == {
        "cell_id": ["a", "a", "b"],
        "perturbation": [5, 6, 5],
        "genes": ["I|B", "C", "C"],
        "name": ["pair", "single", "pair"],
        "rank": [1, INSERTED, 0],
        "cell_genes": [3, 3, 1],
        "similarity": [np.float32(0.1), np.float32(0.2), np.float32(0.3)],
        "shift:sick": [1.0, 2.0, 3.0],
    }
    assert cells[0].lost == 2
    assert len(shift_columns(cells, pa.array(["a", "b"]), found, titles, TOKENS)) == 7
