"""Units of a prefiltered screen: the estimates of some cells, and the exact values of what was chosen of them.

Know the model and token rows. Which genes are chosen they are told.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.collate import TokenRows
from cellray.data.corpora.corpus import read_rows
from cellray.data.parts import PartWriter, Unit
from cellray.infer.perturbed import Measures
from cellray.infer.prefilter.choice import CHOSEN, SAMPLED, PrefilteredDesign
from cellray.infer.prefilter.estimate import Estimator, applicable, passes
from cellray.infer.prefilter.readouts import Goal, Likeness, Readout
from cellray.infer.screen_worker import ScreenOptions, ScreenWorker
from cellray.model.encoder import load_encoder
from cellray.model.pooling import is_gene_token
from cellray.prefilter_schema import ESTIMATE, ROW, estimate_schema, with_choice
from cellray.shift_schema import PERTURBATION, RANK


@dataclass(frozen=True)
class EstimateSettings:
    """What decides the estimates, beside the screen's own options.

    Attributes
    ----------
    goal
        State that shifts are estimated towards; None: the similarity is estimated.
    grid
        See `Estimator`.
    probes
        Projections of the embedding, where the similarity is estimated.
    seed
        Of these.
    """

    goal: str | None
    grid: int = 8
    probes: int = 8
    seed: int = 0

    def passes(self, kind: str) -> int:
        """Forward passes that a cell's estimates cost at most; see `estimate.passes`."""
        return passes(kind, self.probes if self.goal is None else 1, self.grid)

    def readout(
        self, states: Mapping[str, NDArray[np.float32]], width: int, device: torch.device, *, cls: bool
    ) -> Readout:
        """Return what is read out of cells."""
        if self.goal is None:
            return Likeness(self.probes, width, self.seed, cls=cls)
        return Goal(torch.from_numpy(states[self.goal]).to(device), cls=cls)


class EstimateWorker:
    """Holds a model, in float32, and estimates one unit after the other."""

    def __init__(self, options: ScreenOptions, settings: EstimateSettings) -> None:
        self._options = options
        self._corpus, model, device = options.replica.open()
        encoder = load_encoder(model, options.layer, device)
        encoder.requires_grad_(requires_grad=False)
        vocabulary = self._corpus.vocabulary
        readout = settings.readout(options.states, encoder.width, device, cls=options.pooling == "cls")
        layout = vocabulary.layout(self._corpus.manifest.encoding.input_size)
        budget = options.replica.token_budget
        self._estimator = Estimator(encoder, layout, options.kind, readout, settings.grid, budget)
        self._gene_v = is_gene_token(vocabulary).numpy()

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        part = open_part(estimate_schema())
        table = self._corpus.read(unit.uri, unit.start, unit.stop, [schema.INPUT_IDS])
        columns: list[tuple[NDArray[np.generic], ...]] = []
        for row, genes_n in chosen_cells(table, self._options, unit, self._gene_v):
            estimate_n = self._estimator(genes_n)
            rank_n = np.arange(len(genes_n), dtype=np.int32)[applicable(self._options.kind, len(genes_n))]
            tokens = genes_n[rank_n].astype(np.int32)
            columns.append((np.full(len(rank_n), row, np.int32), tokens, rank_n, estimate_n[rank_n]))
            part.counts["cells"] += 1
            part.counts["forward passes"] += self._estimator.passes
        if columns:
            joined = [np.concatenate(each) for each in zip(*columns, strict=True)]
            arrays = [pa.array(each, field.type) for each, field in zip(joined, estimate_schema(), strict=True)]
            part.write(pa.table(arrays, schema=estimate_schema()))


def chosen_cells(
    table: pa.Table, options: ScreenOptions, unit: Unit, gene_v: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Yield the unit's cells that are perturbed: row in the unit, genes in rank order."""
    rows = TokenRows.from_arrow(table[schema.INPUT_IDS])
    offset = options.ranges[unit.key][0]
    for row in np.flatnonzero(options.chosen_n[offset : offset + table.num_rows]).tolist():
        own = rows.input_ids[rows.offsets[row] : rows.offsets[row + 1]]
        yield row, own[gene_v[own]]


class PrefilteredWorker(ScreenWorker):
    """Evaluates what a design chose, as the screen does, and puts estimates and probabilities beside it."""

    def __init__(self, options: ScreenOptions, estimates: str, estimated: Mapping[str, Unit]) -> None:
        super().__init__(options)
        assert isinstance(options.design, PrefilteredDesign)
        self._chosen, self._estimates, self._estimated = options.design, estimates, estimated
        self._of_row: dict[int, NDArray[np.float32]] = {}

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        self._of_row = self._read_estimates(self._estimated[unit.key])
        super().__call__(unit, lambda columns: open_part(with_choice(columns)))

    def _read_estimates(self, unit: Unit) -> dict[int, NDArray[np.float32]]:
        """Return by the row of a cell the estimates by rank."""
        uri = storage.join(self._estimates, unit.path)
        table = read_rows(uri, 0, np.iinfo(np.int64).max, [ROW, RANK, ESTIMATE])
        row_r, rank_r, estimate_r = (column.to_numpy() for column in table.columns)
        if not len(row_r):  # no cell of the unit has genes enough
            return {}
        rows, first = np.unique(row_r, return_index=True)
        found = {}
        for row, start, stop in zip(rows.tolist(), first, [*first[1:], len(row_r)], strict=True):
            found[row] = np.full(rank_r[stop - 1] + 1, np.nan, np.float32)
            found[row][rank_r[start:stop]] = estimate_r[start:stop]
        return found

    def _shift_table(
        self,
        table: pa.Table,
        cells: Sequence[Any],
        found: Measures,
        titles: Sequence[Sequence[str]],
        told: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    ) -> pa.Table:
        """Return the shifts, cell by cell, with the columns of the choice."""
        shifts = super()._shift_table(table, cells, found, titles, told)
        cell_r, rank_r = np.sort(found.cell_r), shifts[RANK].to_numpy()
        estimate_r, probability_r = np.empty(len(rank_r), np.float32), np.empty(len(rank_r))
        for number, cell in enumerate(cells):
            own = cell_r == number
            estimate_r[own] = self._of_row[cell.row][rank_r[own]]
            probability_r[own] = self._chosen.inclusion(cell.genes_n)[1][rank_r[own]]
        assert self._chosen.chosen_v is not None
        chosen_r = self._chosen.chosen_v[shifts[PERTURBATION].to_numpy()]
        choice = pa.array(np.where(chosen_r, CHOSEN, SAMPLED).tolist(), pa.string())
        columns = [*shifts.columns, pa.array(estimate_r), choice, pa.array(probability_r)]
        return pa.table(columns, schema=with_choice(shifts.schema))
