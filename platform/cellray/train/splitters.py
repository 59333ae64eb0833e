"""Ways to cut cells (or genes) in two or in k, each a line in a table over scikit-learn's splitters.

They see one stratum and one group a row, and know nothing of labels, files or heads. Equal seeds give equal cuts.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cellray.errors import InputError

Kind = Literal["random", "stratified", "grouped", "stratified_grouped"]
Rows = NDArray[np.int64]
ResultT = TypeVar("ResultT")


def one_split(kind: Kind, stratum_n: Rows, group_n: Rows, fraction: float, seed: int, subject: str) -> Rows:
    """Return the rows of the part that is cut off.

    Parameters
    ----------
    kind
        How; `grouped` and `stratified_grouped` never cut through a group.
    stratum_n, group_n
        Of each row. Shape (rows,).
    fraction
        Size of that part: a share of the rows, or for `grouped` of the groups. For `stratified_grouped` it is
        1 / k with the nearest whole k.
    seed
        Of the draw.
    subject
        What is cut, for messages.

    Raises
    ------
    InputError
        The rows or groups are too few for two parts.
    """
    cut = partial(_ONCE[kind], stratum_n, group_n, fraction, seed)
    return _guarded(cut, kind, subject)


def k_splits(kind: Kind, stratum_n: Rows, group_n: Rows, k: int, seed: int, subject: str) -> list[Rows]:
    """Return the rows of each of k parts; every row is in one of them. Parameters and errors as in `one_split`."""
    return _guarded(partial(_parts, _K_FOLD[kind](k, seed), stratum_n, group_n), kind, subject)


def _guarded(cut: Callable[[], ResultT], kind: Kind, subject: str) -> ResultT:
    try:
        with warnings.catch_warnings():  # of classes rarer than parts: `Folds.describe` shows where they went
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            return cut()
    except ValueError as error:
        rule = f"a {kind.replace('_', ' ')} split needs enough cells, classes and groups"
        fix = "Use fewer folds, larger fractions or another kind of split, or leave rare classes out."
        raise InputError(subject, rule, str(error).rstrip("."), fix) from None


def _parts(splitter: Any, stratum_n: Rows, group_n: Rows) -> list[Rows]:  # noqa: ANN401  # of scikit-learn
    groups = group_n if "Group" in type(splitter).__name__ else None  # the others warn of groups they do not use
    split: Iterator[tuple[Rows, Rows]] = splitter.split(np.zeros(len(stratum_n)), stratum_n, groups)
    return [held for _, held in split]


def _random(stratum_n: Rows, group_n: Rows, fraction: float, seed: int) -> Rows:
    from sklearn.model_selection import ShuffleSplit

    return _parts(ShuffleSplit(1, test_size=fraction, random_state=seed), stratum_n, group_n)[0]


def _stratified(stratum_n: Rows, group_n: Rows, fraction: float, seed: int) -> Rows:
    """Cut every stratum; one of a single row stays whole."""
    from sklearn.model_selection import StratifiedShuffleSplit

    several = np.flatnonzero(np.bincount(stratum_n)[stratum_n] > 1)
    splitter = StratifiedShuffleSplit(1, test_size=fraction, random_state=seed)
    return several[_parts(splitter, stratum_n[several], group_n[several])[0]]


def _grouped(stratum_n: Rows, group_n: Rows, fraction: float, seed: int) -> Rows:
    from sklearn.model_selection import GroupShuffleSplit

    return _parts(GroupShuffleSplit(1, test_size=fraction, random_state=seed), stratum_n, group_n)[0]


def _stratified_grouped(stratum_n: Rows, group_n: Rows, fraction: float, seed: int) -> Rows:
    """Return one of k parts with the strata of the whole: the one whose size is nearest to `fraction`."""
    most = min(len(np.unique(group_n)), int(np.bincount(stratum_n).max()))
    if most < 2:
        raise ValueError(f"{len(np.unique(group_n))} group(s) for two parts")
    parts = _parts(_K_FOLD["stratified_grouped"](min(max(2, round(1 / fraction)), most), seed), stratum_n, group_n)
    return min((part for part in parts if len(part)), key=lambda part: abs(len(part) - fraction * len(stratum_n)))


_ONCE: dict[str, Callable[[Rows, Rows, float, int], Rows]] = {
    "random": _random,
    "stratified": _stratified,
    "grouped": _grouped,
    "stratified_grouped": _stratified_grouped,
}


def _splitter(name: str) -> Callable[[int, int], Any]:
    """Return a maker of one of scikit-learn's shuffling k-fold splitters, imported when used."""

    def make(k: int, seed: int) -> Any:  # noqa: ANN401
        from sklearn import model_selection

        return getattr(model_selection, name)(k, shuffle=True, random_state=seed)

    return make


_K_FOLD: dict[str, Callable[[int, int], Any]] = {
    "random": _splitter("KFold"),
    "stratified": _splitter("StratifiedKFold"),
    "grouped": _splitter("GroupKFold"),
    "stratified_grouped": _splitter("StratifiedGroupKFold"),
}
