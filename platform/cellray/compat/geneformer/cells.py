"""Cells of a dataset, chosen and ordered as Geneformer's classes do: filtered, drawn, longest first.

A dataset becomes a corpus in a folder, in this process; which of its cells are meant is told by their rows in it.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.compat.geneformer.dictionaries import File, dataset_vocabulary
from cellray.data.corpora.corpus import Corpus, scan
from cellray.data.corpora.hf_import import ImportConfig, import_dataset
from cellray.data.corpora.select_cells import NOWHERE, Target, write_selections
from cellray.errors import InputError, listing
from cellray.models import open_model

SEED = 42
"""Of the draw of `max_ncells` cells; the official one."""


@dataclass(frozen=True)
class CellChoice:
    """Which cells.

    Attributes
    ----------
    filter_data
        Column to the values that are wanted.
    most
        Of the cells that pass, so many are drawn at random; None: all.
    start, stop
        Of those, longest first, the ones from `start` to before `stop`.
    """

    filter_data: Mapping[str, Any] = field(default_factory=dict)
    most: int | None = None
    start: int = 0
    stop: int | None = None

    @property
    def everything(self) -> bool:
        """Whether all cells are meant."""
        return not self.filter_data and self.most is None and (self.start, self.stop) == (0, None)


def open_cells(dataset: str, folder: str, model: str | None, tokens: File) -> Corpus:
    """Return a dataset as a corpus in a folder; a corpus of ours is taken as it is.

    Without a model the vocabulary must be the dataset's own or named, and rows may be as long as it says.

    Raises
    ------
    InputError
        There is no dataset, or its rows cannot be cells of the vocabulary.
    """
    if storage.exists(storage.join(dataset, schema.MANIFEST)):
        return Corpus.open(dataset)
    vocabulary = dataset_vocabulary(dataset, model, tokens)
    with tempfile.TemporaryDirectory(prefix="cellray-") as temporary:
        vocabulary.save(f"{temporary}/{schema.VOCABULARY}")
        named = None if storage.exists(storage.join(dataset, schema.VOCABULARY)) else f"{temporary}/{schema.VOCABULARY}"
        size = vocabulary.input_size
        if model is not None:
            size = min(size, int(open_model(model)[0].config.max_position_embeddings))
        import_dataset(ImportConfig(dataset=dataset, vocabulary=named, output=folder, input_size=size, workers=0))
    return Corpus.open(folder)


def choose_rows(corpus: Corpus, choice: CellChoice) -> NDArray[np.int64]:
    """Return the numbers of the chosen cells in the corpus, longest first, else in its order.

    Raises
    ------
    InputError
        The corpus lacks a column, or no cell is left.
    """
    wanted = {column: _as_list(values) for column, values in choice.filter_data.items()}
    for column in wanted:
        corpus.require_column(column, "filter_data")
    columns = [schema.LENGTH, *wanted]
    table = pa.concat_tables(scan(corpus, columns, lambda _, cells: cells)).to_pandas()
    passed_n = np.ones(len(table), bool)
    for column, values in wanted.items():
        named_n = table[column].astype("string").isin([str(value) for value in values])
        passed_n &= (table[column].isin(values) | named_n).to_numpy(bool)
    rows = np.flatnonzero(passed_n)
    if choice.most is not None and choice.most < len(rows):
        rows = np.sort(np.random.default_rng(SEED).permutation(rows)[: choice.most])
    rows = rows[np.argsort(-table[schema.LENGTH].to_numpy()[rows], kind="stable")][choice.start : choice.stop]
    if not len(rows):
        asked = listing(f"{column}: {value}" for column, values in wanted.items() for value in values)
        found = f"none of {len(table):,} with {asked}" if wanted else f"none of {len(table):,}"
        raise InputError(corpus.uri, "some cell must be chosen", found, "Correct filter_data or the indices.")
    return rows


def chosen_cells(corpus: Corpus, rows: NDArray[np.int64], folder: str) -> Corpus:
    """Return a corpus of some cells of a corpus: itself, where these are all."""
    if len(rows) == corpus.manifest.rows:
        return corpus
    target = Target(folder, "chosen cells", "choice of cells", "not chosen")
    write_selections(corpus, _ByRow.of(corpus, rows), [target], 8192, 0)
    return Corpus.open(folder)


@dataclass(frozen=True)
class _ByRow:
    """A `cellray.data.corpora.select_cells.Rule`: the cells of some rows of the sources."""

    rows: Mapping[int, frozenset[int]]

    @classmethod
    def of(cls, corpus: Corpus, rows: NDArray[np.int64]) -> "_ByRow":
        chosen_n = np.zeros(corpus.manifest.rows, bool)
        chosen_n[rows] = True
        found: dict[int, set[int]] = {}
        first = 0
        pieces = scan(corpus, [schema.SOURCE_ROW], lambda part, cells: (part.source, cells[schema.SOURCE_ROW]))
        for source, column in pieces:
            own = column.to_numpy()
            found.setdefault(source, set()).update(own[chosen_n[first : first + len(own)]].tolist())
            first += len(own)
        return cls({source: frozenset(numbers) for source, numbers in found.items()})

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns it needs."""
        return (schema.SOURCE_ROW,)

    @property
    def key(self) -> str:
        """Digest of all that decides its answers."""
        return schema.request_digest(rule="rows", rows={str(s): sorted(found) for s, found in self.rows.items()})

    def __call__(self, cells: pa.Table, source: int) -> NDArray[np.int64]:
        """Return 0 for chosen cells, else `NOWHERE`. Shape (cells,)."""
        chosen = np.isin(cells[schema.SOURCE_ROW].to_numpy(), list(self.rows.get(source, ())))
        return np.where(chosen, 0, NOWHERE)


def _as_list(values: Any) -> Sequence[Any]:  # noqa: ANN401  # one value, or several
    return list(values) if isinstance(values, list | tuple | set) else [values]
