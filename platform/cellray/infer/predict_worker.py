"""Predictions of one row range of a corpus: what a replica computes, and the tables it writes.

Knows the fine-tuned model and token rows. Where the work comes from, and how genes are put together, it does not know.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cellray import prediction_schema, schema
from cellray.data.collate import TokenRows, token_budget_batches
from cellray.data.parts import PartWriter, Unit
from cellray.infer.gene_sums import GeneSums
from cellray.infer.replicas import Replica
from cellray.model.annotator import AnnotatedEncoder
from cellray.model.annotator_directory import load_annotator
from cellray.model.heads import HeadSpec, head_answer
from cellray.model.pooling import is_gene_token

Answers = dict[str, NDArray[np.float32]]
"""Of each head, probabilities (rows x classes) or numbers (rows)."""

_CELLS_OF_TOKENS = 32  # bounds memory: each cell gives thousands of rows


@dataclass(frozen=True)
class PredictOptions:
    """What every replica is told.

    Attributes
    ----------
    replica
        Corpus, model and device.
    level
        What a row is: `cell`, `gene` or `token`.
    names
        Heads to ask.
    obs_columns
        Columns of the corpus to copy, with the names they get.
    """

    replica: Replica
    level: str
    names: tuple[str, ...]
    obs_columns: Mapping[str, str]


def predict_rows(model: AnnotatedEncoder, rows: TokenRows, names: Sequence[str], token_budget: int) -> Answers:
    """Ask the heads of one level about token rows.

    Parameters
    ----------
    model
        On its device.
    rows
        Token rows in any order.
    names
        Heads, all at cell level or all at gene level.
    token_budget
        Tokens computed at once.

    Returns
    -------
    Answers
        A row for each cell; for heads at gene level a row for each gene token, cell by cell.
    """
    specs = [model.spec(name) for name in names]
    nothing = torch.empty(0)
    found = {name: [nothing] * len(rows.lengths) for name in names}
    device = next(model.parameters()).device
    for chosen in token_budget_batches(rows.lengths, token_budget):
        input_ids_nl = torch.from_numpy(rows.pad(chosen, model.pad_id)).to(device)
        with torch.inference_mode():
            for name, answer in _ask(model, input_ids_nl, specs).items():
                for index, own in zip(chosen, answer, strict=True):
                    found[name][index] = own
    join = {"cell": torch.stack, "gene": torch.cat}
    return {spec.name: join[spec.level](found[spec.name]).numpy() for spec in specs}


def _ask(
    model: AnnotatedEncoder, input_ids_nl: torch.Tensor, specs: Sequence[HeadSpec]
) -> dict[str, Sequence[torch.Tensor]]:
    """Return the answers about each cell of a batch: one, or one a gene token."""
    logits = model(input_ids_nl, {spec.name for spec in specs})
    gene_nl = model.gene_positions(input_ids_nl)
    answers: dict[str, Sequence[torch.Tensor]] = {}
    for spec in specs:
        answer = head_answer(spec, logits[spec.name])
        if spec.level == "gene":
            answers[spec.name] = torch.split(answer[gene_nl].cpu(), gene_nl.sum(1).tolist())
        else:
            answers[spec.name] = answer.cpu().unbind()
    return answers


def answer_columns(specs: Sequence[HeadSpec], answers: Mapping[str, NDArray[np.floating]]) -> list[pa.Array]:
    """Return answers as columns, in the order of `prediction_schema.prediction_fields`."""
    columns = []
    for spec in specs:
        answer = answers[spec.name].astype(np.float32)
        if not spec.classes:
            columns.append(pa.array(answer.reshape(-1)))
            continue
        best = answer.argmax(axis=1)
        columns.append(pa.array(spec.classes, pa.string()).take(pa.array(best)))
        columns.append(pa.array(answer[np.arange(len(best)), best]))
        columns.extend(pa.array(np.ascontiguousarray(column)) for column in answer.T)
    return columns


class PredictWorker:
    """Holds a model and predicts one row range after the other."""

    def __init__(self, options: PredictOptions) -> None:
        self._options = options
        self._corpus, directory, device = options.replica.open()
        self._model = load_annotator(directory, device)
        self._is_gene_v = is_gene_token(self._corpus.vocabulary).numpy()
        self._specs = [self._model.spec(name) for name in options.names]
        self._write = {"cell": self._cells, "token": self._tokens, "gene": self._genes}[options.level]

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        columns = [schema.INPUT_IDS, schema.CELL_ID, schema.SOURCE_ROW, *self._options.obs_columns]
        self._write(self._corpus.read(unit.uri, unit.start, unit.stop, columns), open_part)

    def _ask(self, rows: TokenRows) -> Answers:
        return predict_rows(self._model, rows, self._options.names, self._options.replica.token_budget)

    def _schema(self, table: pa.Table) -> pa.Schema:
        """Return the schema of rows that name their cell."""
        kinds = {new: table.schema.field(old).type for old, new in self._options.obs_columns.items()}
        obs = [pa.field(name, kind) for name, kind in kinds.items()]
        return prediction_schema.prediction_schema(
            {s.name: s.classes for s in self._specs}, obs, level=self._options.level
        )

    def _cells(self, table: pa.Table, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Write a row for each cell."""
        wanted = self._schema(table)
        part = open_part(wanted)
        rows = TokenRows.from_arrow(table[schema.INPUT_IDS])
        answers = answer_columns(self._specs, self._ask(rows))
        obs = [table[name] for name in self._options.obs_columns]
        part.counts["tokens"] += len(rows.input_ids)
        part.write(pa.table([table[schema.CELL_ID], table[schema.SOURCE_ROW], *answers, *obs], schema=wanted))

    def _tokens(self, table: pa.Table, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Write a row for each gene of each cell."""
        wanted, names = self._schema(table), self._corpus.vocabulary.gene_of_token
        part = open_part(wanted)
        for start in range(0, table.num_rows, _CELLS_OF_TOKENS):
            cells = table.slice(start, _CELLS_OF_TOKENS)
            rows = TokenRows.from_arrow(cells[schema.INPUT_IDS])
            tokens, cell = self._gene_tokens(rows)
            own = cells.take(pa.array(cell))
            genes = pa.array([names[int(token)] for token in tokens], pa.string())
            answers = answer_columns(self._specs, self._ask(rows))
            obs = [own[name] for name in self._options.obs_columns]
            part.counts["tokens"] += len(rows.input_ids)
            part.write(pa.table([own[schema.CELL_ID], own[schema.SOURCE_ROW], genes, *answers, *obs], schema=wanted))

    def _genes(self, table: pa.Table, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Write the sums of the answers about each gene, in float64, and the cells that have it."""
        part = open_part(prediction_schema.gene_sum_schema({spec.name: spec.width for spec in self._specs}))
        sums = GeneSums(self._specs, len(self._corpus.vocabulary))
        for start in range(0, table.num_rows, _CELLS_OF_TOKENS):
            rows = TokenRows.from_arrow(table.slice(start, _CELLS_OF_TOKENS)[schema.INPUT_IDS])
            sums.add_answers(self._gene_tokens(rows)[0], self._ask(rows))
            part.counts["tokens"] += len(rows.input_ids)
        part.write(sums.table())

    def _gene_tokens(self, rows: TokenRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the gene tokens of some cells, cell by cell, and of which cell each is."""
        kept = self._is_gene_v[rows.input_ids]
        return rows.input_ids[kept].astype(np.int64), np.repeat(np.arange(len(rows.lengths)), rows.lengths)[kept]
