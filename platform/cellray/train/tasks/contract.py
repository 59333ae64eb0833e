"""What a task of fine-tuning is: its heads, its cells, its targets and its figures.

A new task takes one class with these methods, one line in `cellray.train.tasks.table` and one TOML file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from cellray.data.corpora.corpus import Corpus
from cellray.model.heads import HeadSpec
from cellray.train.contracts import Batch
from cellray.train.evaluation import HeadResult
from cellray.train.folds import Folds
from cellray.train.order import Selection

ALL = -2
"""Stands for all parts of a fold together: what the last model of a cross-validation is trained on."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Remarks:
    """What a person is told of labels and split before a training; warnings apart."""

    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Scores(Protocol):
    """What a model answered in one part of a fold; a worker's own share until `arrays` puts all together."""

    def add(self, batch: Batch, answers: Mapping[str, Tensor]) -> None:
        """Take a batch and the answer of each head, from `cellray.model.heads.head_answer`, on the CPU."""
        ...

    def arrays(self, world_size: int) -> Arrays:
        """Return what all workers took; all must call this."""
        ...


class Task(Protocol):
    """What is learnt; see `CellTask` in `cells` for one of cells and `GeneTask` in `genes` for one of genes."""

    @property
    def folds(self) -> Folds:
        """Which cells or genes are trained on, validated on and tested on."""
        ...

    def specs(self, fold: int, part: int) -> tuple[HeadSpec, ...]:
        """Return the heads, as training on a part of a fold needs them."""
        ...

    def selection(self, fold: int, part: int) -> Selection:
        """Return the cells that are run for a part of a fold."""
        ...

    def targets(self, fold: int, part: int, batch: Batch) -> dict[str, Tensor]:
        """Return what each head shall say of a batch, on the CPU; see `cellray.model.heads.head_loss`."""
        ...

    def class_weights(self, fold: int, part: int) -> dict[str, Tensor]:
        """Return the weights of the classes of some heads, on the CPU."""
        ...

    def head_weights(self) -> dict[str, float]:
        """Return what the heads' losses are multiplied by."""
        ...

    def scores(self, fold: int, part: int) -> Scores:
        """Return an empty record of answers."""
        ...

    def metrics(self, fold: int, part: int, arrays: Arrays) -> dict[str, float]:
        """Return the figures of a part of a fold; `HEAD/NAME`, or `NAME` where there is one head.

        Areas under curves only where the task was opened to watch them; what is watched is there, if only as NaN.
        """
        ...

    def metric_names(self) -> list[str]:
        """Return the names of the figures that `metrics` gives."""
        ...

    def results(self, tested: Sequence[Arrays]) -> list[HeadResult]:
        """Return the figures of each head over the test parts of all folds."""
        ...

    def details(self, tested: Sequence[Arrays]) -> dict[str, Any]:
        """Return, for the report, what was left out and why, and figures that no head has."""
        ...

    def remarks(self, corpus: Corpus) -> Remarks:
        """Return what is to be told of the labels, beside the split, before a training."""
        ...

    def test_rows(self, corpus: Corpus, tested: Sequence[Arrays]) -> Iterator[pa.Table]:
        """Yield what was answered in the test parts; see `cellray.train.tested_rows`. All have one schema."""
        ...
