"""What a replica does for attention weights: the largest of each cell, and its unit's sums.

A batch of cells goes through the model once; its weights come in blocks (`cellray.model.attention_weights`), from each
of which a cell takes what it wants (`cellray.infer.attention_cell`). Knows no plan and no tables over all cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cellray import schema
from cellray.attention_schema import TopBy, weight_schema
from cellray.data.collate import TokenRows, token_budget_batches
from cellray.data.parts import PartWriter, Unit
from cellray.infer.attention_cell import CellAttention, Kept, Wanted, chosen
from cellray.infer.attention_parts import write_sums
from cellray.infer.attention_plan import token_names
from cellray.infer.attention_sums import HeadSums, PairSums, Shape
from cellray.infer.replicas import Replica
from cellray.model.attention_weights import attention_weights
from cellray.model.encoder import load_encoder
from cellray.model.pooling import is_gene_token

COUNTED = ("cells", "pairs", "pairs_summed")


@dataclass(frozen=True)
class AttentionOptions:
    """What a replica needs.

    Attributes
    ----------
    tokens
        Of the table of pairs.
    only_listed
        Tell no others.
    queries
        Those told as queries, and no others; None: queries and keys are the same.
    first_of
        Number of the first cell of each unit, by its key.
    chosen_n, group_n, group_names
        Of all cells of the corpus: whether it is told of, and its group; and what the groups are called.
    """

    replica: Replica
    output: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    top_k: int
    top_by: TopBy
    special_tokens: bool
    tokens: tuple[int, ...]
    only_listed: bool
    first_of: dict[str, int]
    chosen_n: NDArray[np.bool_]
    group_n: NDArray[np.int32]
    group_names: tuple[str | None, ...]
    queries: tuple[int, ...] | None = None

    def cells_of(self, unit: Unit) -> slice:
        """Return which cells of the corpus a unit holds."""
        first = self.first_of[unit.key]
        return slice(first, first + unit.stop - unit.start)

    def chosen_of(self, unit: Unit) -> NDArray[np.bool_]:
        """Return which cells of a unit are told of."""
        return self.chosen_n[self.cells_of(unit)]

    @property
    def shape(self) -> Shape:
        """Sizes of what is summed."""
        return Shape(len(self.group_names), len(self.layers), len(self.heads), len(self.asking), len(self.tokens))

    @property
    def asking(self) -> tuple[int, ...]:
        """Queries of the table of pairs."""
        return self.tokens if self.queries is None else self.queries


@dataclass(frozen=True)
class _Row:
    """A cell of a unit: its row and group, its tokens, which of them are summed as queries and as keys, and where."""

    row: int
    group: int
    ids: NDArray[np.uint16]
    query: NDArray[np.int64]
    query_place: NDArray[np.int64]
    key: NDArray[np.int64]
    key_place: NDArray[np.int64]
    own: CellAttention


class AttentionWorker:
    """Holds a model and does one unit after the other."""

    def __init__(self, options: AttentionOptions) -> None:
        self._options = options
        self._corpus, model, self._device = options.replica.open()
        self._encoder = load_encoder(model, max(options.layers) + 1 - model.n_layers, self._device)
        self._wanted = Wanted(len(options.layers), len(options.heads), options.top_k, options.top_by)
        vocabulary = self._corpus.vocabulary
        self._gene_v = is_gene_token(vocabulary).numpy()
        self._query_place_v, self._key_place_v = (
            _places(tokens, len(vocabulary)) for tokens in (options.asking, options.tokens)
        )
        self._told_v = self._gene_v | options.special_tokens
        if options.only_listed:
            self._told_v &= self._key_place_v >= 0
        self._asking_v = self._told_v if options.queries is None else self._query_place_v >= 0
        self._names = pa.array(token_names(vocabulary), pa.string())

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit; it publishes its sums before its weights."""
        options = self._options
        wanted = options.chosen_of(unit)
        columns = [schema.INPUT_IDS, schema.CELL_ID, schema.SOURCE_ROW]
        table = self._corpus.read(unit.uri, unit.start, unit.stop, columns).filter(pa.array(wanted))
        group_n, rows = options.group_n[options.cells_of(unit)][wanted], TokenRows.from_arrow(table[schema.INPUT_IDS])
        part = open_part(weight_schema())
        pairs, heads = PairSums(options.shape), HeadSums(options.shape)
        for batch in token_budget_batches(rows.lengths, options.replica.token_budget):
            cells = [self._row(rows, row, int(group_n[row])) for row in batch.tolist()]
            self._do_batch(rows.pad(batch, self._encoder.pad_id), cells, pairs)
            tables: list[pa.Table] = []
            for cell in cells:
                kept = cell.own.kept()
                pairs.add_cell(cell.group, cell.query_place, cell.key_place)
                heads.add_cell(cell.group, cell.own.measures(kept))
                numbers = (1, len(cell.own.asking) * len(cell.own.told), len(cell.query) * len(cell.key))
                part.counts.update(dict(zip(COUNTED, numbers, strict=True)))
                tables.append(self._table(cell, kept, table))
            if options.top_k:
                part.write(pa.concat_tables(tables))
        write_sums(unit, options.output, "pairs", pairs)
        write_sums(unit, options.output, "heads", heads)

    def _row(self, rows: TokenRows, row: int, group: int) -> _Row:
        ids = rows.input_ids[rows.offsets[row] : rows.offsets[row + 1]]
        query_place, key_place = self._query_place_v[ids], self._key_place_v[ids]
        query, key = np.flatnonzero(query_place >= 0), np.flatnonzero(key_place >= 0)
        own = CellAttention(self._wanted, self._gene_v[ids], self._told_v[ids], self._asking_v[ids])
        return _Row(row, group, ids, query, query_place[query], key, key_place[key], own)

    def _do_batch(self, ids_nl: NDArray[np.int64], cells: Sequence[_Row], pairs: PairSums) -> None:
        """Give each block of a batch's weights to its cell and to the sums of pairs."""
        options, ids = self._options, torch.from_numpy(ids_nl).to(self._device)
        blocks = attention_weights(self._encoder.bert, ids, self._encoder.pad_id, options.layers, options.heads)
        for block in blocks:
            cell, layer, weight_hqk = cells[block.row], options.layers.index(block.layer), block.weight_hqk
            cell.own.add(layer, block.first, weight_hqk)
            here = (cell.query >= block.first) & (cell.query < block.first + weight_hqk.shape[1])
            if here.any():
                own_hqk = chosen(weight_hqk, cell.query[here] - block.first, cell.key).cpu().numpy()
                pairs.add_weights(cell.group, layer, cell.query_place[here], cell.key_place, own_hqk)

    def _table(self, cell: _Row, kept: Kept, table: pa.Table) -> pa.Table:
        """Return a row for each weight of a cell that was kept."""
        options, rows = self._options, pa.array(np.full(len(kept.head), cell.row))
        columns = [
            table[schema.CELL_ID].take(rows),
            table[schema.SOURCE_ROW].take(rows),
            pa.array([options.group_names[cell.group]] * len(kept.head), pa.string()),
            pa.array(np.array(options.layers, np.int16)[kept.layer]),
            pa.array(np.array(options.heads, np.int16)[kept.head]),
            self._names.take(pa.array(cell.ids[kept.query])),
            self._names.take(pa.array(cell.ids[kept.key])),
            pa.array(cell.own.rank_l[kept.query]),
            pa.array(cell.own.rank_l[kept.key]),
            pa.array(kept.weight),
        ]
        return pa.table(columns, schema=weight_schema())


def _places(tokens: Sequence[int], size: int) -> NDArray[np.int64]:
    """Return where each token id stands among some; -1: nowhere."""
    place_v = np.full(size, -1, np.int64)
    place_v[list(tokens)] = np.arange(len(tokens))
    return place_v
