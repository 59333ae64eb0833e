"""Labels of cells: obs columns of a token corpus as class codes or numbers, one entry for every cell of the corpus.

A column is read alone, shard by shard; token rows are never touched. Knows nothing of splits, models or genes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator

from cellray.config import JobConfig
from cellray.data.corpora.codes import MISSING, NUMERIC, CodedColumn, read_codes
from cellray.data.corpora.corpus import Corpus, scan
from cellray.errors import InputError, listing
from cellray.schema import PartRecord

logger = logging.getLogger(__name__)

MOST_CLASSES = 10_000
_LEAST_CELLS = 2  # one to learn from, one to test on


class LabelConfig(JobConfig):
    """Which obs column a head learns, and how."""

    name: str = Field(min_length=1, description="the head's name, which its metrics and predictions bear")
    column: str | None = Field(None, description="obs column of the labels; default: the head's name")
    kind: Literal["classification", "regression"] = "classification"
    leave_out: tuple[str, ...] = Field((), description="classes whose cells count as unlabelled")
    min_cells: int | None = Field(None, ge=1, description="leave out classes with fewer cells [cells]")
    classes: tuple[str, ...] = Field((), description="order of the classes; default: sorted")

    @field_validator("classes")
    @classmethod
    def _named_once(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError("a class may be named once only")
        return classes

    @property
    def obs_column(self) -> str:
        """The column to read."""
        return self.column or self.name


@dataclass(frozen=True)
class ClassLabels:
    """Classes of the cells, for one head.

    Attributes
    ----------
    name
        The head.
    code_n
        Index into `classes`, or -1 for a cell without a label. Shape (cells,).
    classes
        In the order of the head's outputs.
    missing
        Cells whose column is null or blank.
    dropped
        Cells of each class that is left out; they have code -1, too.
    """

    name: str
    code_n: NDArray[np.int32]
    classes: tuple[str, ...]
    missing: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def labelled_n(self) -> NDArray[np.bool_]:
        """Which cells have a label. Shape (cells,)."""
        return np.asarray(self.code_n != MISSING)

    @property
    def counts(self) -> dict[str, int]:
        """Cells of each class."""
        found = np.bincount(self.code_n[self.labelled_n], minlength=len(self.classes))
        return dict(zip(self.classes, found.tolist(), strict=True))


@dataclass(frozen=True)
class ValueLabels:
    """Numbers of the cells, for one head.

    Attributes
    ----------
    name
        The head.
    value_n
        NaN for a cell without one. Shape (cells,).
    missing
        Cells without one.
    """

    name: str
    value_n: NDArray[np.float64]
    missing: int

    @property
    def labelled_n(self) -> NDArray[np.bool_]:
        """Which cells have a value. Shape (cells,)."""
        return ~np.isnan(self.value_n)

    def scale(self, training_n: NDArray[np.bool_]) -> tuple[float, float]:
        """Return mean and standard deviation of the cells trained on, by which a head standardises.

        Raises
        ------
        InputError
            These cells have no value, or all the same.
        """
        values = self.value_n[training_n & self.labelled_n]
        if not len(values) or np.ptp(values) == 0:
            found = f"{len(values):,} values" + (", all the same" if len(values) else "")
            rule = "the training part must hold different values"
            raise InputError(f"head {self.name!r}", rule, found, "Choose another column or split.")
        return float(values.mean()), float(values.std())


Labels = ClassLabels | ValueLabels


def read_labels(corpus: Corpus, configs: Sequence[LabelConfig], folds: int = 1) -> dict[str, Labels]:
    """Read the labels of every head.

    Parameters
    ----------
    corpus
        Holds the columns.
    configs
        One a head.
    folds
        Parts the cells will be cut into: a class needs as many cells, and two in any case.

    Raises
    ------
    InputError
        A column is not there or not numeric, has no value or one class only, or a class has too few cells.
    """
    names = [config.name for config in configs]
    if not names or len(set(names)) < len(names):
        raise InputError("task", "every head must have its own name", listing(names), "Name each head once.")
    readers = {"classification": _read_classes, "regression": _read_values}
    labels = {config.name: readers[config.kind](corpus, config, folds) for config in configs}
    for head in labels.values():
        dropped = sum(head.dropped.values()) if isinstance(head, ClassLabels) else 0
        if head.missing or dropped:
            told = f"{head.missing:,} cells without a label, {dropped:,} of classes that are left out"
            logger.info("head %r: %s", head.name, told)
    return labels


def _read_classes(corpus: Corpus, config: LabelConfig, folds: int) -> Labels:
    return class_labels(read_codes(corpus, config.obs_column, f"head {config.name!r}"), config, folds, corpus.uri)


def class_labels(coded: CodedColumn, config: LabelConfig, folds: int = 1, subject: str = "labels") -> ClassLabels:
    """Make classes of a column: leave out what is to be left out, check the rest.

    Raises
    ------
    InputError
        Fewer than two classes are left, one has too few cells, or the config names classes that are not there.
    """
    subject = f"{subject}, column {coded.column!r}"
    found = np.bincount(coded.code_n[coded.code_n != MISSING], minlength=len(coded.values)).tolist()
    cells = dict(zip(coded.values, found, strict=True))
    _check_names(config, cells, subject)
    rare = {name for name, n in cells.items() if n < (config.min_cells or 0)}
    kept = {name: n for name, n in cells.items() if name not in rare and name not in config.leave_out}
    _check_left(cells, kept, config, subject)
    _check_classes(kept, config, folds, subject)
    classes = tuple(name for name in config.classes or coded.values if name in kept)
    return ClassLabels(
        name=config.name,
        code_n=recode(coded, classes),
        classes=classes,
        missing=int((coded.code_n == MISSING).sum()),
        dropped={name: n for name, n in cells.items() if name not in kept},
    )


def known_labels(coded: CodedColumn, name: str, classes: Sequence[str]) -> ClassLabels:
    """Return labels in terms of classes that a model knows already; cells of other classes are counted as dropped."""
    found = np.bincount(coded.code_n[coded.code_n != MISSING], minlength=len(coded.values)).tolist()
    others = {value: n for value, n in zip(coded.values, found, strict=True) if value not in classes}
    missing = int((coded.code_n == MISSING).sum())
    return ClassLabels(name, recode(coded, classes), tuple(classes), missing, others)


def recode(coded: CodedColumn, classes: Sequence[str]) -> NDArray[np.int32]:
    """Return each cell's index into `classes`, -1 where its value is missing or none of them. Shape (cells,)."""
    place = {name: i for i, name in enumerate(classes)}
    table = np.array([*(place.get(value, MISSING) for value in coded.values), MISSING], np.int32)
    return np.asarray(table[coded.code_n])


def _check_names(config: LabelConfig, cells: Mapping[str, int], subject: str) -> None:
    """Check that what the config names is in the column, and that an order of classes is complete."""
    for option in ("leave_out", "classes"):
        unknown = set(getattr(config, option)) - set(cells)
        if unknown:
            found = f"{listing(unknown)}; the column has {listing(cells, limit=40)}"
            raise InputError(subject, f"{option} must name classes that are there", found, "Correct the names.")
    unnamed = set(cells) - set(config.classes) - set(config.leave_out)
    if config.classes and unnamed:
        fix = "Add them to classes or to leave_out."
        raise InputError(subject, "classes must name every class that is not left out", listing(unnamed), fix)


def _check_left(cells: Mapping[str, int], kept: Mapping[str, int], config: LabelConfig, subject: str) -> None:
    """Check that `min_cells` and `leave_out` leave classes to tell apart, if the column has them."""
    named = {name: n for name, n in cells.items() if name not in config.leave_out}
    if len(kept) < 2 <= len(named):
        largest = sorted(named.items(), key=lambda item: -item[1])[:2]
        sizes = " and ".join(f"{name!r} with {n:,} cells" for name, n in largest)
        found = f"min_cells = {config.min_cells:,}, which leaves {len(kept) or 'none'}; the largest: {sizes}"
        raise InputError(subject, "min_cells must leave at least two classes", found, "Lower min_cells.")
    if cells and not named:
        found = f"all {len(cells):,} of the column in it"
        raise InputError(subject, "leave_out must leave at least two classes", found, "Take some out of the list.")


def _check_classes(kept: Mapping[str, int], config: LabelConfig, folds: int, subject: str) -> None:
    """Check that there are at least two classes, each with enough cells."""
    if not kept:
        raise InputError(subject, "there must be labelled cells", "none", "Choose another column.")
    if not 1 < len(kept) <= MOST_CLASSES:
        found = listing(kept, limit=3)
        rule = f"there must be at least two classes and at most {MOST_CLASSES:,}"
        raise InputError(subject, rule, f"{len(kept):,}: {found}", "Choose another column, or leave out fewer classes.")
    least = max(_LEAST_CELLS, folds)
    rare = [f"{name} ({n:,})" for name, n in kept.items() if n < least]
    if rare:
        fix = f"Leave them out with min_cells = {least}, or by name with leave_out."
        raise InputError(subject, f"every class must have at least {least} cells", listing(rare), fix)


def _read_values(corpus: Corpus, config: LabelConfig, folds: int) -> Labels:
    column = config.obs_column
    corpus.require_column(column, f"head {config.name!r}")
    subject, kind = f"{corpus.uri}, column {column!r}", corpus.manifest.obs_kinds[column]
    if kind not in NUMERIC:
        fix = 'Choose a numeric column, or learn it with kind = "classification".'
        raise InputError(subject, "a regression needs a numeric column", f"{kind} values", fix)

    def numbers(part: PartRecord, cells: pa.Table) -> Any:  # noqa: ANN401  # an array of float64
        return cells[column].cast(pa.float64()).fill_null(np.nan).to_numpy()

    value_n = np.concatenate([np.zeros(0), *scan(corpus, [column], numbers)])
    missing = int(np.isnan(value_n).sum())
    if np.isinf(value_n).any() or missing == len(value_n):
        found = "infinite ones" if missing < len(value_n) else "none"
        raise InputError(subject, "there must be values, all of them finite", found, "Correct the column.")
    return ValueLabels(config.name, value_n, missing)
