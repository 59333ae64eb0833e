"""The cells of a corpus as a torch `IterableDataset`, for training loops of people's own.

Row ranges are dealt to ranks and `DataLoader` workers, so each cell comes once an epoch; with a seed their order, and
that of the cells within a buffer, differs from epoch to epoch. Knows nothing of models or Ray.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from cellray import schema
from cellray.data.collate import TokenRows
from cellray.data.corpora.corpus import Corpus
from cellray.data.parts import Unit
from cellray.errors import InputError
from cellray.vocabulary import PAD

Cell = dict[str, Any]
"""`input_ids`, an int64 tensor of shape (tokens,), `length`, and the columns asked for as Python values."""


class CorpusDataset(IterableDataset[Cell]):
    """Yields the cells of a corpus, one dictionary each.

    Parameters
    ----------
    corpus
        An opened corpus.
    columns
        Further columns that each cell brings, as obs columns.
    rank, world_size
        Which share of how many this process takes, in distributed training. Shares may differ by the cells of a range.
    seed
        Of the order; None: the corpus's own.
    buffer_cells
        Cells among which neighbours are mixed. More mix better and take more memory: 8 bytes a token. [cells]
    range_cells
        Cells of a row range: what is read at once and dealt as one. [cells]
    """

    def __init__(
        self,
        corpus: Corpus,
        columns: Sequence[str] = (),
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        buffer_cells: int = 4096,
        range_cells: int = 1024,
    ) -> None:
        super().__init__()
        corpus.require_columns(columns)
        if not 0 <= rank < world_size:
            raise InputError("rank", "must lie in 0..world_size - 1", f"{rank} of {world_size}", "Correct it.")
        self._corpus, self._columns = corpus, tuple(columns)
        self._rank, self._world_size = rank, world_size
        self._seed, self._epoch = seed, 0
        self._buffer_cells, self._range_cells = buffer_cells, range_cells

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; without a seed it makes no difference.

        Call it before each epoch. `DataLoader` workers that persist do not learn of it: make the loader without
        `persistent_workers`.
        """
        self._epoch = epoch

    def __iter__(self) -> Iterator[Cell]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        slot, slots = self._rank * workers + worker, self._world_size * workers
        ranges = self._corpus.plan_units(self._range_cells)
        if self._seed is None:
            yield from self._in_order(ranges[slot::slots])
            return
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(ranges))  # the same for all slots
        own = [ranges[i] for i in order[slot::slots]]
        yield from self._mixed(own, np.random.default_rng([self._seed, self._epoch, slot]))

    def _in_order(self, ranges: Sequence[Unit]) -> Iterator[Cell]:
        names = dict.fromkeys([schema.INPUT_IDS, schema.LENGTH, *self._columns])
        for unit in ranges:
            yield from _cells(self._corpus.read(unit.uri, unit.start, unit.stop, list(names)))

    def _mixed(self, ranges: Sequence[Unit], rng: np.random.Generator) -> Iterator[Cell]:
        """Yield cells through a buffer that each new cell takes a random place in."""
        buffer: list[Cell] = []
        for cell in self._in_order(ranges):
            if len(buffer) < self._buffer_cells:
                buffer.append(cell)
                continue
            place = int(rng.integers(len(buffer)))
            yield buffer[place]
            buffer[place] = cell
        for place in rng.permutation(len(buffer)):
            yield buffer[place]

    def collate(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Make a batch: `input_ids` padded at the end and `attention_mask`, `length` as a tensor, the rest as lists.

        For `DataLoader(dataset, collate_fn=dataset.collate)`.
        """
        pad = self._corpus.vocabulary.special_tokens[PAD]
        rows = [cell[schema.INPUT_IDS] for cell in cells]
        input_ids_nl = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        length_n = torch.tensor([cell[schema.LENGTH] for cell in cells])
        return {
            schema.INPUT_IDS: input_ids_nl,
            "attention_mask": (torch.arange(input_ids_nl.shape[1]) < length_n[:, None]).long(),
            schema.LENGTH: length_n,
        } | {name: [cell[name] for cell in cells] for name in self._columns if name not in cells[0].keys() & _FIXED}


_FIXED = {schema.INPUT_IDS, schema.LENGTH}


def _cells(table: pa.Table) -> Iterator[Cell]:
    """Yield the rows of a table, tokens as tensors of their own."""
    rows = TokenRows.from_arrow(table[schema.INPUT_IDS])
    tokens = torch.split(torch.from_numpy(rows.input_ids.astype(np.int64)), rows.lengths.tolist())
    others = table.drop_columns([schema.INPUT_IDS]).to_pylist()
    for input_ids_l, other in zip(tokens, others, strict=True):
        yield {schema.INPUT_IDS: input_ids_l.clone(), **other}  # a view would keep its whole range in memory
