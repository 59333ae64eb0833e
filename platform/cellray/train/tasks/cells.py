"""Tasks on cells: one class or one number a cell, or several of them at once, each of which may be missing."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from cellray.config import JobConfig
from cellray.data.corpora.codes import MISSING
from cellray.data.corpora.corpus import Corpus
from cellray.model.heads import HeadSpec
from cellray.train.contracts import Batch
from cellray.train.evaluation import HeadResult, head_result, score
from cellray.train.folds import UNUSED, Folds, SplitConfig, cell_folds
from cellray.train.metrics.classification import AREA_FIGURES, CLASSIFICATION_FIGURES
from cellray.train.metrics.regression import REGRESSION_FIGURES
from cellray.train.order import AssignedPart, Selection
from cellray.train.parallel import gather_from_all
from cellray.train.tasks.contract import ALL, Arrays, Remarks
from cellray.train.tasks.labels import ClassLabels, LabelConfig, Labels, read_labels
from cellray.train.tested_rows import Truth, cell_rows

ClassWeights = Literal["none", "balanced"]
_CELLS = "cells"


class CellHead(LabelConfig):
    """One head of a task on cells."""

    class_weights: ClassWeights = Field("none", description="none | balanced (rare classes weigh more)")
    weight: float = Field(1.0, gt=0, description="what the head's loss is multiplied by")


class CellTaskConfig(JobConfig):
    """A task file of cell classification, regression or several heads at once."""

    unit: ClassVar[str] = "cells"
    task: Literal["cell_classification", "regression", "multitask"]
    heads: tuple[CellHead, ...] = Field(min_length=1, description="what to tell of a cell")
    split: SplitConfig = SplitConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_head_at_the_top(cls, value: Any) -> Any:  # noqa: ANN401  # what the file holds
        """Let a task with one head name it at the file's top: `label = "cell_type"`."""
        if not isinstance(value, Mapping) or "heads" in value:
            return value
        own = {key: each for key, each in value.items() if key not in cls.model_fields}
        rest = {key: each for key, each in value.items() if key in cls.model_fields}
        if "label" in own:
            own["name"] = own.pop("label")
        kind = "regression" if value.get("task") == "regression" else "classification"
        return {**rest, "heads": [{"kind": kind, **own}]}

    @model_validator(mode="after")
    def _as_the_task_says(self) -> "CellTaskConfig":
        names = [head.name for head in self.heads]
        if len(set(names)) < len(names):
            raise ValueError("each head needs a name of its own")
        kinds = {head.kind for head in self.heads}
        if self.task != "multitask":
            wanted = "regression" if self.task == "regression" else "classification"
            if len(self.heads) > 1 or kinds != {wanted}:
                raise ValueError(f"task = {self.task!r} has one head of kind {wanted}; several need task = 'multitask'")
        return self

    def open(self, corpus: Corpus, watched: Collection[str] = ()) -> "CellTask":
        """Read the labels and split the cells; `watched` are figures that a training cannot do without."""
        labels = read_labels(corpus, self.heads, self.split.folds)
        return CellTask(self, labels, cell_folds(self.split, corpus, labels), frozenset(watched))


@dataclass
class CellScores:
    """Answers by cell."""

    names: Sequence[str]
    cells: list[NDArray[np.int64]]
    outputs: dict[str, list[NDArray[np.float32]]]

    def add(self, batch: Batch, answers: Mapping[str, Tensor]) -> None:
        """Keep the answers of a batch's cells."""
        real_n = batch.cells_n >= 0  # a worker without a cell runs an empty row
        self.cells.append(batch.cells_n[real_n])
        for name in self.names:
            answer = answers[name].float().numpy()
            self.outputs[name].append(answer.reshape(len(batch.cells_n), -1)[real_n])

    def arrays(self, world_size: int) -> Arrays:
        """Return cells in ascending order and the output of each head."""
        cells = np.concatenate(gather_from_all(self.cells, world_size) or [np.empty(0, np.int64)])
        order = np.argsort(cells, kind="stable")
        assert (np.diff(cells[order]) > 0).all()  # else a cell would count twice
        outputs = {name: gather_from_all(parts, world_size) for name, parts in self.outputs.items()}
        filled = {name: np.concatenate(parts)[order] for name, parts in outputs.items() if parts}
        return {_CELLS: cells[order], **{f"head {name}": output for name, output in filled.items()}}


@dataclass(frozen=True)
class CellTask:
    """Labels of cells; see `cellray.train.tasks.contract.Task`."""

    config: CellTaskConfig
    labels: Mapping[str, Labels]
    folds: Folds
    watched: frozenset[str] = frozenset()

    def specs(self, fold: int, part: int) -> tuple[HeadSpec, ...]:
        """Return the heads; a regression is standardised over the cells that are trained on."""
        trained_n = self._chosen(fold, part)
        return tuple(_spec(head.name, self.labels[head.name], trained_n) for head in self.config.heads)

    def selection(self, fold: int, part: int) -> Selection:
        """Return the part's cells."""
        return AssignedPart(self._chosen(fold, part).astype(np.int8), 1)

    def targets(self, fold: int, part: int, batch: Batch) -> dict[str, Tensor]:
        """Return class codes and numbers, missing where they are."""
        real_n = batch.cells_n >= 0
        return {name: torch.from_numpy(_targets(label, batch.cells_n, real_n)) for name, label in self.labels.items()}

    def class_weights(self, fold: int, part: int) -> dict[str, Tensor]:
        """Return cells / (classes x cells of the class) for the heads that are balanced (scikit-learn's rule)."""
        chosen_n, found = self._chosen(fold, part), {}
        for head in self.config.heads:
            label = self.labels[head.name]
            if head.class_weights == "balanced" and isinstance(label, ClassLabels):
                codes = label.code_n[chosen_n & label.labelled_n]
                count_c = np.bincount(codes, minlength=len(label.classes))
                weight_c = len(codes) / ((count_c > 0).sum() * np.maximum(count_c, 1))
                found[head.name] = torch.from_numpy(weight_c.astype(np.float32))
        return found

    def head_weights(self) -> dict[str, float]:
        """Return what the task file gives each head."""
        return {head.name: head.weight for head in self.config.heads}

    def scores(self, fold: int, part: int) -> CellScores:
        """Return an empty record."""
        names = [head.name for head in self.config.heads]
        return CellScores(names, [], {name: [] for name in names})

    def metrics(self, fold: int, part: int, arrays: Arrays) -> dict[str, float]:
        """Return the figures of the cells that were run that are defined, and those that are watched."""
        found = dict.fromkeys(self.watched.intersection(self.metric_names()), math.nan)
        if not len(arrays[_CELLS]):
            return found
        for head, label in self.labels.items():
            areas = any(self._named(head, figure) in self.watched for figure in AREA_FIGURES)
            truth_n = _values(label)[arrays[_CELLS]]
            values = score(arrays[f"head {head}"], truth_n, _classes(label), areas=areas).values
            found |= {self._named(head, figure): v for figure, v in values.items() if math.isfinite(v)}
        return found

    def metric_names(self) -> list[str]:
        """Return the names of the figures of all heads."""
        figures = {
            name: CLASSIFICATION_FIGURES if isinstance(label, ClassLabels) else REGRESSION_FIGURES
            for name, label in self.labels.items()
        }
        return [self._named(head, figure) for head, own in figures.items() for figure in own]

    def _named(self, head: str, figure: str) -> str:
        return figure if len(self.labels) == 1 else f"{head}/{figure}"

    def results(self, tested: Sequence[Arrays]) -> list[HeadResult]:
        """Return the figures of each head."""
        found = []
        for name, label in self.labels.items():
            truths = [_values(label)[arrays[_CELLS]] for arrays in tested]
            found.append(head_result(name, [arrays[f"head {name}"] for arrays in tested], truths, _classes(label)))
        return found

    def details(self, tested: Sequence[Arrays]) -> dict[str, Any]:
        """Return missing labels and what was left out."""
        return {"labels": {name: _counts(label) for name, label in self.labels.items()}}

    def remarks(self, corpus: Corpus) -> Remarks:
        """Return nothing: the table of the split says it all."""
        return Remarks()

    def test_rows(self, corpus: Corpus, tested: Sequence[Arrays]) -> Iterator[pa.Table]:
        """Yield the cells of each fold's test part in the corpus's order."""
        heads = {name: Truth(_values(label), _classes(label)) for name, label in self.labels.items()}
        for fold, arrays in enumerate(tested):
            outputs = {name: arrays[f"head {name}"] for name in heads if f"head {name}" in arrays}
            yield from cell_rows(corpus, fold, arrays[_CELLS], outputs, heads)

    def _chosen(self, fold: int, part: int) -> NDArray[np.bool_]:
        own = self.folds.part_kn[fold]
        return np.asarray(own != UNUSED if part == ALL else own == part)


def _spec(name: str, label: Labels, trained_n: NDArray[np.bool_]) -> HeadSpec:
    if isinstance(label, ClassLabels):
        return HeadSpec(name, "classification", "cell", label.classes)
    mean, std = label.scale(trained_n)
    return HeadSpec(name, "regression", "cell", mean=mean, std=std)


def _classes(label: Labels) -> tuple[str, ...] | None:
    return label.classes if isinstance(label, ClassLabels) else None


def _values(label: Labels) -> NDArray[Any]:
    return label.code_n if isinstance(label, ClassLabels) else label.value_n


def _targets(label: Labels, cells_n: NDArray[np.int64], real_n: NDArray[np.bool_]) -> NDArray[Any]:
    if isinstance(label, ClassLabels):
        return np.where(real_n, label.code_n[cells_n], MISSING).astype(np.int64)
    return np.where(real_n, label.value_n[cells_n], np.nan)


def _counts(label: Labels) -> dict[str, Any]:
    found: dict[str, Any] = {"missing": label.missing}
    if isinstance(label, ClassLabels):
        found |= {"cells": label.counts, "left_out": dict(label.dropped)}
    return found
