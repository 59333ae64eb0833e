"""Token rows of cells as a table that is used like a dataset: what `process_data` returns and `get_embeddings` takes.

Knows tokens and columns; models and counts it does not know.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cellray import schema
from cellray.data.collate import TokenRows
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.corpora.hf_dataset import export_dataset
from cellray.data.corpora.token_checks import check_rows
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary

_CHECKED = 1024  # rows checked at a time: each takes a byte for every token of the vocabulary


@dataclass(frozen=True)
class TokenizedCells:
    """Cells as token rows, with the columns that were kept.

    Attributes
    ----------
    table
        Columns `input_ids`, `length`, `cell_id`, `n_counts`, `source_row` (the cell's row in the AnnData) and the kept
        ones.
    vocabulary
        Of the tokens.
    """

    table: pa.Table
    vocabulary: GeneVocabulary

    def __repr__(self) -> str:
        names, tokens = ", ".join(self.column_names), len(self.vocabulary)
        return f"TokenizedCells: {len(self):,} cells, columns {names}, vocabulary of {tokens:,} tokens"

    def __len__(self) -> int:
        """Return the number of cells."""
        return int(self.table.num_rows)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.column_names)

    def __getitem__(self, key: str | int | slice) -> Any:  # noqa: ANN401  # a column, a cell, or columns of some cells
        if isinstance(key, str):
            return self.table[key].to_pylist()
        if isinstance(key, slice):
            return self.table.take(pa.array(range(*key.indices(len(self))))).to_pydict()
        return self.table.slice(range(len(self))[key], 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(1000):
            yield from batch.to_pylist()

    def select(self, rows: Sequence[int]) -> "TokenizedCells":
        """Return some of the cells, in the order given."""
        return TokenizedCells(self.table.take(pa.array(list(rows), pa.int64())), self.vocabulary)

    def to_pandas(self) -> pd.DataFrame:
        """Return all columns as a table."""
        table: pd.DataFrame = self.table.to_pandas()
        return table


def cells_of(corpus: Corpus, names: dict[str, str] | None = None) -> TokenizedCells:
    """Return all cells of a corpus; `names` renames columns."""
    parts = [part for part in corpus.manifest.parts if part.rows]
    table = pa.concat_tables(read_rows(corpus.part_uri(part), 0, part.rows, corpus.columns) for part in parts)
    renamed = [(names or {}).get(name, name) for name in table.column_names]
    return TokenizedCells(table.rename_columns(renamed), corpus.vocabulary)


def save_dataset(corpus: Corpus, path: str, names: dict[str, str] | None = None) -> str:
    """Write a corpus as an official dataset: `PATH` with the suffix `.dataset` in place of its own."""
    return export_dataset(corpus, str(Path(path).with_suffix(".dataset")), names=names)


def token_rows(dataset: Any, vocabulary: GeneVocabulary, input_size: int) -> TokenRows:  # noqa: ANN401  # of any library
    """Return the token rows of a dataset of any kind that has a column `input_ids`.

    Raises
    ------
    InputError
        It has none, or its rows are no cells of this vocabulary.
    """
    if isinstance(dataset, TokenizedCells):
        if dataset.vocabulary.digest != vocabulary.digest:
            fix = "Process the cells with the model that embeds them."
            raise InputError("the dataset", "its vocabulary must be the model's", "another", fix)
        return TokenRows.from_arrow(dataset.table[schema.INPUT_IDS])
    try:
        lists = pa.chunked_array([pa.array([list(row) for row in dataset[schema.INPUT_IDS]], pa.list_(pa.int64()))])
    except (KeyError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        fix = "Give what process_data returned."
        raise InputError("the dataset", "needs the column input_ids with lists of tokens", found, fix) from None
    layout, pieces = vocabulary.layout(input_size), []
    for first in range(0, len(lists), _CHECKED):
        piece = pa.table({schema.INPUT_IDS: lists.slice(first, _CHECKED)})
        pieces.append(check_rows(piece, first, vocabulary, layout, "the dataset"))
    ids = np.concatenate([np.empty(0, np.uint16), *(piece.input_ids for piece in pieces)])
    lengths = np.concatenate([np.zeros(1, np.int64), *(piece.lengths for piece in pieces)])
    return TokenRows(ids, np.cumsum(lengths))
