"""One unit of a screen: some cells and some perturbations, from token rows to the table of shifts.

Knows the model and token rows. Where the work comes from it does not know.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.collate import TokenRows
from cellray.data.parts import PartWriter, Unit, make_part
from cellray.infer.answers import HeadAnswers, cell_heads, prediction_names
from cellray.infer.cutting import chunks, groups
from cellray.infer.design import Design
from cellray.infer.effect_parts import effect_unit
from cellray.infer.noise import in_float64, rounding_noise, unperturbed_distance
from cellray.infer.perturbed import Measures, Perturber
from cellray.infer.replicas import Replica
from cellray.infer.shift_rows import PerturbedCell, perturbed_cell, shift_columns
from cellray.model.annotator_directory import load_annotator
from cellray.model.block_attention import in_precision
from cellray.model.checkpoint import ModelDirectory
from cellray.model.encoder import load_encoder
from cellray.model.pooling import is_gene_token
from cellray.perturbation import Copies, make_edit
from cellray.shift_schema import COMPUTED_AGAIN, EFFECTS, LARGEST_NOISE, UNPERTURBED, effect_schema, shift_schema

_EFFECTS_AT_ONCE = 100_000
"""Rows of gene effects of a row group, about: one for each copy is slow to write and three times as large."""

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ScreenOptions:
    """What every replica is told; see `cellray.infer.screen.ScreenConfig`."""

    replica: Replica
    output: str
    kind: str
    quartiles: int
    layer: int
    pooling: str
    precision: str
    effects: bool
    probabilities: bool
    design: Design
    ranges: Mapping[str, tuple[int, int, int]]
    together: int
    chosen_n: NDArray[np.bool_]
    states: Mapping[str, NDArray[np.float32]]
    obs_columns: tuple[str, ...]


class ScreenWorker:
    """Holds a model and does one unit after the other."""

    def __init__(self, options: ScreenOptions) -> None:
        self._options = options
        self._corpus, model, device = options.replica.open()
        self._float32 = load_encoder(model, options.layer, device)
        encoder = self._float32
        if options.precision != "float32":
            encoder = deepcopy(encoder)
            in_precision(encoder.bert, DTYPES[options.precision])
        vocabulary = self._corpus.vocabulary
        self._layout = vocabulary.layout(self._corpus.manifest.encoding.input_size)
        budget = options.replica.token_budget
        self._perturber = Perturber(
            encoder, options.pooling, vocabulary, self._layout, options.states, budget, options.effects
        )
        self._edit = make_edit(options.kind, options.quartiles)
        self._gene_v = is_gene_token(vocabulary).numpy()
        self._answers = self._make_answers(model, device) if options.probabilities else None
        self._predictions = prediction_names(self._answers.heads) if self._answers else ()

    def _make_answers(self, model: ModelDirectory, device: torch.device) -> HeadAnswers:
        annotator = load_annotator(model, device)
        annotator.bert.to(DTYPES[self._options.precision])  # type: ignore[arg-type]  # the heads stay in float32
        return HeadAnswers(annotator, cell_heads(model), self._layout, self._options.replica.token_budget)

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit; with effects it publishes a second part, of the gene effects, before."""
        options = self._options
        columns = [schema.INPUT_IDS, schema.CELL_ID, *options.obs_columns]
        table = self._corpus.read(unit.uri, unit.start, unit.stop, columns)
        obs = list(table.select(options.obs_columns).schema)
        part = open_part(shift_schema(options.states, obs, self._predictions, named=options.design.named))
        if not options.effects:
            self._write(unit, table, part, None)
        else:
            place = storage.join(options.output, EFFECTS)
            make_part(
                effect_unit(unit), lambda _, opened: self._write(unit, table, part, opened(effect_schema())), place
            )

    def _write(self, unit: Unit, table: pa.Table, part: PartWriter, effects: PartWriter | None) -> None:
        """Measure the unit's copies, group by group, and write them."""
        tables: list[pa.Table] = []
        for cells in self._groups(unit, table, part):
            pairs = [(cell.genes_n, cell.copies) for cell in cells]
            found = self._perturber.measure(pairs)
            if not tables:
                self._listen(pairs, found, part)
            told = self._answers.changes(pairs) if self._answers else None
            titles = [self._titles(cell) for cell in cells]
            part.counts["copies"] += len(found.cell_r)
            tables.append(self._shift_table(table, cells, found, titles, told))
            if effects is not None:
                for whole in _gathered(self._effect_tables(table, cells, found, titles)):
                    effects.write(whole)
        if tables:
            part.write(pa.concat_tables(tables))

    def _listen(
        self, cells: Sequence[tuple[NDArray[np.uint16], Sequence[Copies]]], found: Measures, part: PartWriter
    ) -> None:
        """Count how much of the measures is rounding, by some copies of a unit's first group."""
        with in_float64(self._float32) if self._options.precision == "float32" else nullcontext():
            noise = rounding_noise(self._perturber, self._float32, cells, found)
        part.counts[COMPUTED_AGAIN] = noise.copies
        for name, largest in zip(LARGEST_NOISE, (noise.similarity, noise.shift), strict=True):
            part.counts[name] = round(1e9 * largest)
        part.counts[UNPERTURBED] = round(1e9 * unperturbed_distance(self._perturber, *cells[0]))

    def _groups(self, unit: Unit, table: pa.Table, part: PartWriter) -> Iterator[list[PerturbedCell]]:
        """Yield the chosen cells with their copies, a group at a time; see `cellray.infer.cutting`."""
        offset, first, stop = self._options.ranges[unit.key]
        rows = TokenRows.from_arrow(table[schema.INPUT_IDS])
        chosen = self._options.chosen_n[offset : offset + table.num_rows]
        for group in groups(unit.start, chosen, self._options.together):
            for chunk in chunks(first, stop):
                cells = [self._cell(rows, row, chunk, part) for row in group]
                if ready := [cell for cell in cells if cell.copies]:
                    yield ready

    def _cell(self, rows: TokenRows, row: int, chunk: tuple[int, int], part: PartWriter) -> PerturbedCell:
        """Return a cell with its copies; count the perturbations that do not apply."""
        own = rows.input_ids[rows.offsets[row] : rows.offsets[row + 1]]
        genes_n = own[self._gene_v[own]]
        capacity, vocabulary = self._layout.max_genes, len(self._corpus.vocabulary)
        cell = perturbed_cell(row, genes_n, self._options.design, chunk, self._edit, capacity, vocabulary)
        part.counts["perturbations that do not apply to a cell"] += cell.lost
        return cell

    def _titles(self, cell: PerturbedCell) -> list[str]:
        design, vocabulary = self._options.design, self._corpus.vocabulary
        return [design.title(int(number), vocabulary) for number in cell.number_p]

    def _shift_table(
        self,
        table: pa.Table,
        cells: Sequence[PerturbedCell],
        found: Measures,
        titles: Sequence[Sequence[str]],
        told: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    ) -> pa.Table:
        """Return a row for each copy, cell by cell, by the number of the perturbation."""
        design, row_r = self._options.design, np.array([cell.row for cell in cells])
        names, tokens = design.names if design.named else None, len(self._corpus.vocabulary)
        obs = table.select(self._options.obs_columns).take(pa.array(row_r[np.sort(found.cell_r)]))
        columns = [
            *shift_columns(cells, table[schema.CELL_ID].take(pa.array(row_r)), found, titles, tokens, names),
            *(
                pa.array(np.ascontiguousarray(told_rk[:, k]))
                for k in range(len(self._predictions))
                for told_rk in told or ()
            ),
            *obs.columns,
        ]
        columns_of = shift_schema(self._options.states, list(obs.schema), self._predictions, named=design.named)
        return pa.table(columns, schema=columns_of)

    def _effect_tables(
        self, table: pa.Table, cells: Sequence[PerturbedCell], found: Measures, titles: Sequence[Sequence[str]]
    ) -> Iterator[pa.Table]:
        """Yield a table for each copy: a row for each other gene of the cell."""
        names = self._corpus.vocabulary.gene_of_token
        for i in np.lexsort((found.number_r, found.cell_r)).tolist():
            cell, place = cells[found.cell_r[i]], int(found.number_r[i])
            rank_m, cosine_m = found.effects[i]
            count = len(rank_m)
            affected = [names[int(token)] for token in cell.genes_n[rank_m]]
            columns = [
                pa.repeat(table[schema.CELL_ID][cell.row], count),
                pa.array(np.full(count, cell.number_p[place], np.int32)),
                pa.repeat(pa.scalar(titles[found.cell_r[i]][place]), count),
                pa.array(affected, pa.string()),
                pa.array(cosine_m),
            ]
            yield pa.table(columns, schema=effect_schema())


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Put tables together, up to as many rows as make a good row group."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= _EFFECTS_AT_ONCE:
            yield pa.concat_tables(held)
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held)
