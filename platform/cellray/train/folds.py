"""Which cells (or genes) are trained on, validated on and tested on, in each fold; and a table of what went where.

Deterministic: a function of the labels, the groups and the seed. Cells of one group are never in two parts of a fold
where the split is grouped. Knows nothing of models or metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cellray.config import JobConfig
from cellray.data.corpora.codes import MISSING, CodedColumn, read_codes
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError, listing
from cellray.train.splitters import Kind, k_splits, one_split
from cellray.train.tasks.gene_labels import GeneLabels
from cellray.train.tasks.labels import ClassLabels, Labels

TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, -1
PARTS = ("train", "validation", "test")
_PART_OF = {"train": TRAIN, "training": TRAIN, "validation": VALIDATION, "val": VALIDATION, "valid": VALIDATION}
_PART_OF |= {"test": TEST}
_QUANTILES = 10


class SplitConfig(JobConfig):
    """How cells or genes are split."""

    kind: Kind = Field("stratified", description="random | stratified | grouped | stratified_grouped")
    group: str | None = Field(None, description="obs column (as donor) whose cells stay together; for grouped kinds")
    drop_ungrouped: bool = Field(False, description="leave out cells without a group instead of refusing them")
    stratify_by: str | None = Field(None, description="head whose labels are spread evenly; default: the first")
    folds: int = Field(1, ge=1, description="parts of a k-fold; 1: one split with test_fraction")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share for the test; 0: no test. Unused if folds > 1")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of the training part; 0: no validation")
    seed: int = Field(0, ge=0, description="of every draw")
    column: str | None = Field(None, description="obs column that says train, validation or test instead")
    refuse_unseen: bool = Field(False, description="refuse a test part with labels that the training part lacks")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        grouped = self.kind in {"grouped", "stratified_grouped"}
        if grouped != (self.group is not None):
            raise ValueError("a grouped kind of split needs a group column, and no other takes one")
        if self.column is not None and self.folds > 1:
            raise ValueError("a column that names the parts allows one fold only")
        return self

    def needed(self) -> dict[int, bool]:
        """Return which parts may not be empty."""
        test = self.folds > 1 or self.test_fraction > 0
        return {TRAIN: True, VALIDATION: self.validation_fraction > 0, TEST: test}


class InnerFolds(SplitConfig):
    """How trials of a search are split: one test part that is the same in all folds, and `folds` parts of the rest.

    Each of these validates in one fold, trains in the others; the test part is that of the same options with one fold.
    """

    def needed(self) -> dict[int, bool]:
        """Return which parts may not be empty."""
        return {TRAIN: True, VALIDATION: True, TEST: self.test_fraction > 0}


@dataclass(frozen=True)
class Folds:
    """A finished split.

    Attributes
    ----------
    part_kn
        0 training, 1 validation, 2 test, -1 not used. int8, folds x cells (or genes).
    codes
        For each classifying head the class of each cell, -1 where missing. Shape (cells,).
    classes
        Names of these classes.
    group_n
        Group of each cell, -1 where it has none; None if the split is not by group. Shape (cells,).
    ungrouped
        Labelled cells that were left out because they have no group.
    unit
        `cells` or `genes`.
    """

    part_kn: NDArray[np.int8]
    codes: Mapping[str, NDArray[np.int32]]
    classes: Mapping[str, tuple[str, ...]]
    group_n: NDArray[np.int32] | None = None
    ungrouped: int = 0
    unit: str = "cells"

    def __len__(self) -> int:
        """Return the number of folds."""
        return len(self.part_kn)

    def rows(self, fold: int, part: int) -> NDArray[np.int64]:
        """Return the numbers of the cells in a part of a fold, ascending."""
        return np.flatnonzero(self.part_kn[fold] == part)

    def counts(self, fold: int, part: int, head: str) -> NDArray[np.int64]:
        """Return the cells of each class in a part of a fold. Shape (classes,)."""
        codes = self.codes[head][self.rows(fold, part)]
        return np.bincount(codes[codes != MISSING], minlength=len(self.classes[head]))

    def unseen(self) -> pd.DataFrame:
        """Return classes that are tested on but not trained on: columns fold, head, class, and their test cells."""
        rows = [
            (fold, head, classes[c], int(tested[c]))
            for fold in range(len(self))
            for head, classes in self.classes.items()
            for trained, tested in [(self.counts(fold, TRAIN, head), self.counts(fold, TEST, head))]
            for c in np.flatnonzero((trained == 0) & (tested > 0))
        ]
        return pd.DataFrame(rows, columns=["fold", "head", "class", self.unit])

    def describe(self) -> pd.DataFrame:
        """Return a row for each fold and part: its cells, its groups if there are, and the cells of each class.

        Columns of classes are called `head: class`.
        """
        rows = []
        for fold in range(len(self)):
            for part, name in enumerate(PARTS):
                chosen = self.rows(fold, part)
                row: dict[str, object] = {"fold": fold, "part": name, self.unit: len(chosen)}
                if self.group_n is not None:
                    row["groups"] = len(np.unique(self.group_n[chosen]))
                for head, classes in self.classes.items():
                    counts = self.counts(fold, part, head).tolist()
                    row |= {f"{head}: {c}": n for c, n in zip(classes, counts, strict=True)}
                rows.append(row)
        return pd.DataFrame(rows)


def cell_folds(config: SplitConfig, corpus: Corpus, labels: Mapping[str, Labels]) -> Folds:
    """Split the cells of a corpus.

    Parameters
    ----------
    config
        How.
    corpus
        Holds the column of the groups or of the parts.
    labels
        Of every head, as `cellray.train.tasks.labels.read_labels` returns them.

    Raises
    ------
    InputError
        See `split_cells`; or a column is not there.
    """
    groups = None if config.group is None else read_codes(corpus, config.group, "group")
    parts = None if config.column is None else read_codes(corpus, config.column, "column")
    return split_cells(config, labels, groups, parts, corpus.uri)


def split_cells(
    config: SplitConfig,
    labels: Mapping[str, Labels],
    groups: CodedColumn | None = None,
    parts: CodedColumn | None = None,
    subject: str = "split",
) -> Folds:
    """Split labelled cells; those without any label are not used.

    Parameters
    ----------
    config
        How.
    labels
        Of every head, over the same cells.
    groups, parts
        The columns that `config.group` and `config.column` name.
    subject
        What is split, for messages.

    Raises
    ------
    InputError
        A part would be empty or the training part would hold one class only, there are fewer groups than folds, a
        labelled cell has no group, or (if so asked) a class is tested on but not trained on.
    """
    used_n = np.logical_or.reduce([head.labelled_n for head in labels.values()])
    ungrouped = 0
    if groups is not None:
        used_n, ungrouped = _grouped_cells(config, groups, used_n, subject)
    group_n = np.zeros(len(used_n), np.int32) if groups is None else groups.code_n
    stratum_n = _strata(config, labels, subject)
    if parts is None:
        part_kn = split(config, stratum_n, group_n, used_n, subject)
    else:
        part_kn = _named_parts(config, parts, stratum_n, group_n, used_n, subject)[None]
    classifying = {name: head for name, head in labels.items() if isinstance(head, ClassLabels)}
    folds = Folds(
        part_kn,
        {name: head.code_n for name, head in classifying.items()},
        {name: head.classes for name, head in classifying.items()},
        None if groups is None else groups.code_n,
        ungrouped,
    )
    _check(config, folds, subject)
    return folds


def gene_folds(config: SplitConfig, labels: GeneLabels, name: str = "gene", subject: str = "gene split") -> Folds:
    """Split labelled genes, so that a model is tested on genes whose class it was never told.

    Returns
    -------
    Folds
        Over `labels.genes`; the head is called `name`.

    Raises
    ------
    InputError
        The kind of split is for cells, or a part would be empty.
    """
    if config.group is not None or config.column is not None:
        fix = "Use the kind stratified or random, without a column."
        raise InputError(subject, "genes have no groups and no columns", config.kind, fix)
    none = np.zeros(len(labels.code_g), np.int32)
    part_kn = split(config, labels.code_g.astype(np.int64), none, none == 0, subject)
    folds = Folds(part_kn, {name: labels.code_g}, {name: labels.classes}, unit="genes")
    _check(config, folds, subject)
    return folds


def split(
    config: SplitConfig,
    stratum_n: NDArray[np.int64],
    group_n: NDArray[np.integer],
    used_n: NDArray[np.bool_],
    subject: str,
) -> NDArray[np.int8]:
    """Cut what is used into parts: a test part for each fold, then validation out of the rest by the same kind.

    Returns
    -------
    NDArray[np.int8]
        See `Folds.part_kn`. Over the folds of a k-fold, every used row is in one test part; over `InnerFolds`, every
        row that is not tested is in one validation part.
    """
    rows = np.flatnonzero(used_n)
    stratum, group = stratum_n[rows], group_n[rows].astype(np.int64)
    if config.group is not None and len(np.unique(group)) < max(2, config.folds):
        found = f"{len(np.unique(group))} in {config.group!r}"
        fix = "Use fewer folds, or a split that is not grouped."
        raise InputError(subject, f"there must be at least {max(2, config.folds)} groups", found, fix)
    part_kn = np.full((config.folds, len(used_n)), UNUSED, np.int8)
    cut = _inner_parts if isinstance(config, InnerFolds) else _outer_parts
    part_kn[:, rows] = cut(config, stratum, group, subject)
    return part_kn


def _outer_parts(
    config: SplitConfig, stratum: NDArray[np.int64], group: NDArray[np.int64], subject: str
) -> list[NDArray[np.int8]]:
    """Return the parts of the used rows, for each fold."""
    found = []
    for fold, held in enumerate(_tests(config, stratum, group, subject)):
        part = np.full(len(stratum), TRAIN, np.int8)
        part[held] = TEST
        _cut_validation(config, part, stratum, group, fold, subject)
        found.append(part)
    return found


def _inner_parts(
    config: SplitConfig, stratum: NDArray[np.int64], group: NDArray[np.int64], subject: str
) -> list[NDArray[np.int8]]:
    """Return the parts of the used rows, for each inner fold; see `InnerFolds`."""
    once = config.model_copy(update={"folds": 1})
    outer = np.full(len(stratum), TRAIN, np.int8)
    outer[_tests(once, stratum, group, subject)[0]] = TEST
    rest = np.flatnonzero(outer == TRAIN)
    where, seed = f"{subject}, all but the test part, for inner folds", _seed(config, 0, VALIDATION)
    found = []
    for held in k_splits(config.kind, stratum[rest], group[rest], config.folds, seed, where):
        part = outer.copy()
        part[rest[held]] = VALIDATION
        found.append(part)
    return found


def _tests(
    config: SplitConfig, stratum: NDArray[np.int64], group: NDArray[np.int64], subject: str
) -> list[NDArray[np.int64]]:
    if config.folds > 1:
        return k_splits(config.kind, stratum, group, config.folds, _seed(config, 0, TEST), subject)
    if config.test_fraction == 0:
        return [np.zeros(0, np.int64)]
    return [one_split(config.kind, stratum, group, config.test_fraction, _seed(config, 0, TEST), subject)]


def _cut_validation(
    config: SplitConfig,
    part: NDArray[np.int8],
    stratum: NDArray[np.int64],
    group: NDArray[np.int64],
    fold: int,
    subject: str,
) -> None:
    """Move a share of the training part to validation, in place."""
    rest = np.flatnonzero(part == TRAIN)
    if config.validation_fraction > 0 and len(rest):
        where = f"{subject}, training part of fold {fold}, to be cut for validation"
        seed = _seed(config, fold, VALIDATION)
        held = one_split(config.kind, stratum[rest], group[rest], config.validation_fraction, seed, where)
        part[rest[held]] = VALIDATION


def _seed(config: SplitConfig, fold: int, part: int) -> int:
    return int(np.random.SeedSequence([config.seed, fold, part]).generate_state(1)[0])


def _strata(config: SplitConfig, labels: Mapping[str, Labels], subject: str) -> NDArray[np.int64]:
    """Return what a stratified split spreads evenly: classes, or tenths of a number's range by rank.

    Cells that lack this head's label are a stratum of their own. Shape (cells,).
    """
    name = config.stratify_by or next(iter(labels))
    if name not in labels:
        raise InputError(subject, "stratify_by must name a head", f"{name!r}; heads: {listing(labels)}", "Correct it.")
    head = labels[name]
    if isinstance(head, ClassLabels):
        return np.where(head.labelled_n, head.code_n, len(head.classes)).astype(np.int64)
    edges = np.quantile(head.value_n[head.labelled_n], np.linspace(0, 1, _QUANTILES + 1)[1:-1])
    return np.where(head.labelled_n, np.searchsorted(edges, head.value_n), _QUANTILES).astype(np.int64)


def _grouped_cells(
    config: SplitConfig, groups: CodedColumn, used_n: NDArray[np.bool_], subject: str
) -> tuple[NDArray[np.bool_], int]:
    """Return the used cells that have a group, and how many have none."""
    has_group = groups.code_n != MISSING
    ungrouped = int((used_n & ~has_group).sum())
    if ungrouped and not config.drop_ungrouped:
        found = f"{ungrouped:,} of {int(used_n.sum()):,} labelled cells without {groups.column!r}"
        fix = "Complete the column, or leave these cells out with drop_ungrouped = true."
        raise InputError(subject, "every labelled cell must have a group", found, fix)
    return used_n & has_group, ungrouped


def _named_parts(
    config: SplitConfig,
    parts: CodedColumn,
    stratum_n: NDArray[np.int64],
    group_n: NDArray[np.integer],
    used_n: NDArray[np.bool_],
    subject: str,
) -> NDArray[np.int8]:
    """Return the parts a column names; validation is cut from the training part if the column names none."""
    unknown = [value for value in parts.values if value.strip().lower() not in _PART_OF]
    if unknown:
        rule = f"column {parts.column!r} must hold {', '.join(PARTS)} or nothing"
        raise InputError(subject, rule, listing(unknown), "Correct the column.")
    table = np.array([*(_PART_OF[value.strip().lower()] for value in parts.values), UNUSED], np.int8)
    part_n = np.where(used_n, table[parts.code_n], UNUSED).astype(np.int8)
    torn = _torn_groups(group_n, part_n) if config.group is not None else []
    if torn:
        found = f"{len(torn)} groups in several parts"
        raise InputError(subject, "cells of one group must be in one part", found, "Correct the column of the parts.")
    if not (part_n == VALIDATION).any():
        _cut_validation(config, part_n, stratum_n, group_n.astype(np.int64), 0, subject)
    return part_n


def _torn_groups(group_n: NDArray[np.integer], part_n: NDArray[np.int8]) -> list[int]:
    """Return the groups with cells in more than one part."""
    pairs = np.unique(np.stack([group_n, part_n])[:, part_n != UNUSED], axis=1)
    group, times = np.unique(pairs[0], return_counts=True)
    return [int(g) for g in group[times > 1]]


def _check(config: SplitConfig, folds: Folds, subject: str) -> None:
    """Check that no part is empty, that there is something to tell apart, and that the test is fair if so asked."""
    wanted = config.needed()
    for fold in range(len(folds)):
        empty = [PARTS[part] for part, needed in wanted.items() if needed and not len(folds.rows(fold, part))]
        if empty:
            found = f"no {folds.unit} for {' and '.join(empty)} in fold {fold}"
            fix = "Use fewer folds, larger fractions, or 0 for a part that is not wanted."
            raise InputError(subject, "no part of a split may be empty", found, fix)
        for head in folds.classes:
            trained = int((folds.counts(fold, TRAIN, head) > 0).sum())
            if trained < 2:
                found = f"{trained} of head {head!r} in fold {fold}"
                fix = "Use a stratified kind, another seed, or fewer parts: fewer folds, validation_fraction = 0."
                raise InputError(subject, "the training part must hold at least two classes", found, fix)
    unseen = folds.unseen()
    if config.refuse_unseen and len(unseen):
        found = listing(f"{row[1]}: {row[2]} (fold {row[0]}, {row[3]})" for row in unseen.itertuples(index=False))
        fix = "Leave these classes out, use another split, or allow it with refuse_unseen = false."
        raise InputError(subject, "every class that is tested on must be trained on", found, fix)
