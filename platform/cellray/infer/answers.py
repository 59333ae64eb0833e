"""What the heads of a fine-tuned model tell of cells before and after an edit: probabilities of classes, numbers.

The answers are those of `cellray.infer.predict_worker`, by the model's own pooling and last hidden state, whatever the
screen measures besides: the classifier sees each copy once more. Knows no files and no Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellray.data.collate import TokenRows
from cellray.errors import InputError
from cellray.infer.predict_worker import predict_rows
from cellray.model.annotator import AnnotatedEncoder
from cellray.model.checkpoint import ModelDirectory
from cellray.model.heads import HeadSpec
from cellray.perturbation import Copies
from cellray.prediction_schema import probability_column
from cellray.vocabulary import TokenLayout


def cell_heads(model: ModelDirectory) -> list[HeadSpec]:
    """Return the heads that tell something of cells.

    Raises
    ------
    InputError
        There is none.
    """
    heads = [spec for spec in model.heads if spec.level == "cell"]
    if not heads:
        told = ", ".join(f"{spec.name} of each {spec.level}" for spec in model.heads) or "nothing: it is not fine-tuned"
        fix = "Fine-tune it on cells with jobs.finetune, or leave --probabilities out."
        raise InputError(model.uri, "--probabilities needs a model with a head at cell level", f"it tells {told}", fix)
    return heads


def prediction_names(heads: Sequence[HeadSpec]) -> tuple[str, ...]:
    """Return a name for each probability and each number, as `cellray.prediction_schema` gives them."""
    return tuple(
        name
        for spec in heads
        for name in ([probability_column(spec.name, label) for label in spec.classes] or [spec.name])
    )


@dataclass(frozen=True)
class HeadAnswers:
    """Asks the heads about perturbed copies and about the rows these are compared with.

    Attributes
    ----------
    model
        On its device, in the wanted precision; its heads compute in float32.
    heads
        Those to ask, at cell level.
    layout
        Of the token rows.
    token_budget
        Tokens computed at once.
    """

    model: AnnotatedEncoder
    heads: Sequence[HeadSpec]
    layout: TokenLayout
    token_budget: int

    def changes(
        self, cells: Sequence[tuple[NDArray[np.uint16], Sequence[Copies]]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Ask about the copies of some cells.

        Parameters
        ----------
        cells
            For each cell its genes in rank order, without special tokens, and its copies.

        Returns
        -------
        tuple[NDArray[np.float32], NDArray[np.float32]]
            What was told of the unedited cell and how the edit changed it: copies x predictions, cell by cell and in a
            cell by the number of the perturbation.
        """
        references: dict[tuple[int, int], int] = {}
        rows: list[NDArray[np.uint16]] = []
        cell_r, number_r, reference_r = [], [], []
        for cell, (_, copies_of_cell) in enumerate(cells):
            for copies in copies_of_cell:
                count = len(copies.numbers_p)
                rows.extend(copies.tokens_pm)
                cell_r.append(np.full(count, cell))
                number_r.append(copies.numbers_p)
                reference = references.setdefault((cell, copies.reference), len(references))
                reference_r.append(np.full(count, reference))
        order = np.lexsort((np.concatenate(number_r), np.concatenate(cell_r)))
        after_rk = self._ask(rows)[order]
        before_rk = self._ask([cells[cell][0][:genes] for cell, genes in references])
        before_rk = before_rk[np.concatenate(reference_r)[order]]
        return before_rk, after_rk - before_rk

    def _ask(self, rows: Sequence[NDArray[np.uint16]]) -> NDArray[np.float32]:
        """Return the answers about rows of genes. Shape (rows, predictions)."""
        front, end = ([] if token is None else [token] for token in (self.layout.cls_id, self.layout.eos_id))
        framed = [np.concatenate([front, row, end]).astype(np.uint16) for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in framed])]).astype(np.int64)
        names = [spec.name for spec in self.heads]
        found = predict_rows(self.model, TokenRows(np.concatenate(framed), offsets), names, self.token_budget)
        return np.concatenate([found[name].reshape(len(rows), -1) for name in names], axis=1)
