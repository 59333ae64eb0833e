"""Screens of a request's cells: the plan, and the effects piece by piece, by the functions of batch screens.

Knows a loaded model and token rows; queues and HTTP it does not know.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.api.schema import PerturbationRequest
from cellray.data.collate import TokenRows
from cellray.errors import InputError, listing
from cellray.infer.design import ALL_GENES, Design, make_design
from cellray.infer.perturbed import Measures, Perturber
from cellray.infer.shift_rows import PerturbedCell, perturbed_cell, shift_columns
from cellray.perturbation import Edit, make_edit
from cellray.shift_schema import DOES_NOT_APPLY, PERTURBED, shift_schema
from serving.answers import ModelChangedError, Piece, ScreenPlan, Tabled, TooMuchError
from serving.encoding import Encoded
from serving.loaded import LoadedModel

_BATCHES_A_PIECE = 4
_SCREENS_KEPT = 4


def asked_of(request: PerturbationRequest) -> dict[str, Any]:
    """Return what a request asks besides its cells, as plain values."""
    return request.model_dump(exclude={"cells", "genes", "model", "background"})


class Screen:
    """Perturbations that were asked for, ready for any cell.

    Parameters
    ----------
    model
        To measure with.
    ask
        See `asked_of`.

    Raises
    ------
    InputError
        A gene, a state or a layer is unknown, or they do not go together.
    """

    def __init__(self, model: LoadedModel, ask: dict[str, Any]) -> None:
        self._model = model
        model.check(ask["pooling"], ask["layer"])
        genes = [ALL_GENES] if ask["perturb"] == "all" else ask["perturb"]
        if not genes or len(set(genes)) < len(genes):
            raise InputError("perturb", "lists genes, each once", f"{len(genes)} genes", "Correct the list.")
        self.design: Design = make_design(
            model.vocabulary, genes, together=ask["together"], pairs=ask["pairs"], anchor=ask["anchor"]
        )
        self.edit: Edit = make_edit(ask["kind"], ask["quartiles"])
        self.states = _states(model, ask)
        self._layout = model.vocabulary.layout(model.input_size)
        self._perturber = Perturber(
            model.encoder(ask["layer"]), ask["pooling"], model.vocabulary, self._layout, self.states, model.token_budget
        )
        self._gene_v = model.gene_v.cpu().numpy()

    def plan(self, encoded: Encoded, ids: Sequence[str], ask: dict[str, Any], most_tokens: int) -> ScreenPlan:
        """Cut the work on some cells into pieces.

        Raises
        ------
        TooMuchError
            It is more than `most_tokens` tokens.
        """
        lengths = encoded.rows.lengths.tolist()
        genes = [int(self._gene_v[_row(encoded.rows, cell)].sum()) for cell in range(len(lengths))]
        counts = genes if self.design.every_gene else [len(self.design)] * len(lengths)
        copies_n = self.design.copies(np.array(counts, np.int64))
        total, tokens = int(copies_n.sum()), int(copies_n @ np.array(lengths, np.int64))
        if tokens > most_tokens:
            fix = "Send fewer cells, or list fewer genes."
            raise TooMuchError("job_tokens", most_tokens, f"{tokens:,} tokens of perturbed cells", fix)
        pieces: list[Piece] = []
        for cell, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            step = max(1, _BATCHES_A_PIECE * self._model.token_budget // length)
            for first in range(0, count, step):
                stop = min(first + step, count)
                copies = int(self.design.copies(np.array([stop - first], np.int64), first)[0])
                pieces.append(Piece(cell, first, stop, copies))
        names = [ids[place] for place in encoded.place_r]
        return ScreenPlan(self._model.stamp, encoded.notes, ask, names, encoded.rows, pieces, total, tokens)

    def measure(self, plan: ScreenPlan) -> Iterator[tuple[pa.Table, int]]:
        """Yield for each piece its table of shifts and how many perturbations did not apply."""
        for piece in plan.pieces:
            own = _row(plan.rows, piece.cell)
            genes_n, tokens = own[self._gene_v[own]], len(self._model.vocabulary)
            chunk, capacity = (piece.first, piece.stop), self._layout.max_genes
            cell = perturbed_cell(0, genes_n, self.design, chunk, self.edit, capacity, tokens)
            found = self._perturber.measure([(genes_n, cell.copies)]) if cell.copies else None
            yield self._table(plan.ids[piece.cell], cell, found), cell.lost

    def _table(self, name: str, cell: PerturbedCell, found: Measures | None) -> pa.Table:
        """Return a row for each copy, by the number of its perturbation."""
        schema, vocabulary = shift_schema(self.states, ()), self._model.vocabulary
        if found is None:
            return schema.empty_table()
        titles = [self.design.title(int(number), vocabulary) for number in cell.number_p]
        columns = shift_columns([cell], pa.array([name], pa.string()), found, [titles], len(vocabulary))
        return pa.table(columns, schema=schema)


class Screens:
    """Screens of one model by what was asked: the pieces of a job find theirs again."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._known: OrderedDict[str, Screen] = OrderedDict()

    def __call__(self, ask: dict[str, Any]) -> Screen:
        """Return the screen of an ask; see `Screen` for errors."""
        key = json.dumps(ask, sort_keys=True)
        screen = self._known.pop(key, None) or Screen(self._model, ask)
        self._known[key] = screen
        if len(self._known) > _SCREENS_KEPT:
            self._known.popitem(last=False)
        return screen

    def require(self, plan: ScreenPlan) -> Screen:
        """Return the screen of a plan.

        Raises
        ------
        ModelChangedError
            The plan is another version's.
        """
        if plan.stamp.digest != self._model.stamp.digest:
            raise ModelChangedError(f"{plan.stamp.uri} was replaced by {self._model.stamp.uri}")
        return self(plan.ask)


def tabled(plan: ScreenPlan, pieces: Sequence[tuple[pa.Table, int]]) -> Tabled:
    """Put the pieces of a plan together."""
    tables = [table for table, _ in pieces]
    schema = tables[0].schema if tables else shift_schema((), ())
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    counts = {PERTURBED: table.num_rows, DOES_NOT_APPLY: sum(lost for _, lost in pieces)}
    return Tabled(plan.stamp, plan.notes, table, counts, plan.tokens)


def _row(rows: TokenRows, row: int) -> NDArray[np.uint16]:
    return rows.input_ids[rows.offsets[row] : rows.offsets[row + 1]]


def _states(model: LoadedModel, ask: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return the states asked for, in the order of their columns."""
    names = [name for name in (ask["start"], ask["goal"], *ask["alternatives"]) if name is not None]
    if len(set(names)) < len(names):
        raise InputError("states", "start, goal and alternatives differ", listing(names), "Name each state once.")
    if unknown := [name for name in names if name not in model.states]:
        found = f"{unknown[0]!r}; it has {listing(model.states, limit=30)}"
        raise InputError("states", f"model {model.stamp.name!r} must have the state", found, "See GET /v1/models.")
    options = model.options
    if names and (ask["layer"], ask["pooling"]) != (options.states_layer, options.states_pooling):
        rule = f"the model's states are of layer {options.states_layer} and pooling {options.states_pooling}"
        raise InputError("states", rule, f"layer {ask['layer']}, pooling {ask['pooling']}", "Ask for those.")
    return {name: model.states[name] for name in names}
