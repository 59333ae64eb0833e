"""Answers about genes, put together over cells: sums in float64 that can be added, and their means.

Sums of row ranges are added in the corpus's order, so the means do not depend on who computed which range.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray import prediction_schema
from cellray.model.heads import HeadSpec


class GeneSums:
    """For each token id, cells that have it and the sum of the answers about it.

    Parameters
    ----------
    specs
        The heads, at gene level.
    tokens
        Size of the vocabulary.
    """

    def __init__(self, specs: Sequence[HeadSpec], tokens: int) -> None:
        self._widths = {spec.name: spec.width for spec in specs}
        self._cells_v = np.zeros(tokens, np.int64)
        self._sums_vc = {name: np.zeros((tokens, width)) for name, width in self._widths.items()}

    def add_answers(self, tokens_m: NDArray[np.integer], answers: dict[str, NDArray[np.float32]]) -> None:
        """Add the answers about gene tokens, each of which stands once in its cell.

        Parameters
        ----------
        tokens_m
            Token ids.
        answers
            Of each head, tokens x classes, or tokens.
        """
        size = len(self._cells_v)
        self._cells_v += np.bincount(tokens_m, minlength=size)
        for name, sums_vc in self._sums_vc.items():
            answer_mc = answers[name].reshape(len(tokens_m), -1)
            for column, answer_m in enumerate(answer_mc.T):
                sums_vc[:, column] += np.bincount(tokens_m, weights=answer_m, minlength=size)

    def add_table(self, table: pa.Table) -> None:
        """Add the sums of another row range."""
        tokens_m = table[prediction_schema.TOKEN].to_numpy()
        self._cells_v[tokens_m] += table[prediction_schema.CELLS].to_numpy()
        for name, sums_vc in self._sums_vc.items():
            sums = table[f"sum.{name}"].combine_chunks().flatten().to_numpy()
            sums_vc[tokens_m] += sums.reshape(-1, self._widths[name])

    def table(self) -> pa.Table:
        """Return the sums of the genes that were seen, by token id."""
        seen = np.flatnonzero(self._cells_v)
        sums = [
            pa.FixedSizeListArray.from_arrays(pa.array(sums_vc[seen].reshape(-1)), self._widths[name])
            for name, sums_vc in self._sums_vc.items()
        ]
        wanted = prediction_schema.gene_sum_schema(self._widths)
        return pa.table([pa.array(seen.astype(np.int32)), pa.array(self._cells_v[seen]), *sums], schema=wanted)

    def means(self) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[np.float64]]]:
        """Return token ids of the genes seen, the cells that have each, and each head's mean answer."""
        seen = np.flatnonzero(self._cells_v)
        cells = self._cells_v[seen]
        means = {name: sums_vc[seen] / cells[:, None] for name, sums_vc in self._sums_vc.items()}
        return seen, cells, means
