"""Figures of a classification from probabilities and classes; scikit-learn computes what it has.

What is undefined (a class without test cells, an area under a curve of one class) is NaN, is left out of means and is
counted in `undefined`; it is never an exception or a warning. Knows nothing of models, files or folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.errors import InputError
from cellray.train.metrics.calibration import Calibration, brier_score, calibration
from cellray.train.metrics.nan_json import finite_or_null

_SUM_TOLERANCE = 1e-2  # of probabilities computed in half precision

CLASSIFICATION_FIGURES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_roc_auc",
    "macro_pr_auc",
    "weighted_f1",
    "log_loss",
    "brier",
    "ece",
)
"""Names of the figures in `ClassificationMetrics.values`."""
AREA_FIGURES = frozenset({"macro_roc_auc", "macro_pr_auc"})
"""Those that take most of the time: each class is sorted and summed up on its own."""


@dataclass(frozen=True)
class ClassificationMetrics:
    """Figures of one test part.

    Attributes
    ----------
    classes
        In the order of the probabilities.
    n, unlabelled
        Cells (or genes, tokens) that were scored, and those left out for want of a label.
    values
        accuracy, balanced_accuracy (mean recall), macro_f1, weighted_f1, macro_roc_auc, macro_pr_auc, log_loss,
        brier (0 .. 2), ece. Means over classes take the classes that have test cells.
    undefined
        For each mean over classes, classes left out of it.
    precision_c, recall_c, f1_c, roc_auc_c, pr_auc_c
        Of each class against the rest. `pr_auc_c` is the average precision. Shape (classes,).
    support_c, predicted_c
        Cells of each class, and cells that were given it. Shape (classes,).
    confusion_cc
        Cells by true (rows) and given class (columns).
    calibration
        Reliability of the given classes.
    """

    classes: tuple[str, ...]
    n: int
    unlabelled: int
    values: Mapping[str, float]
    undefined: Mapping[str, int]
    precision_c: NDArray[np.float64]
    recall_c: NDArray[np.float64]
    f1_c: NDArray[np.float64]
    roc_auc_c: NDArray[np.float64]
    pr_auc_c: NDArray[np.float64]
    support_c: NDArray[np.int64]
    predicted_c: NDArray[np.int64]
    confusion_cc: NDArray[np.int64]
    calibration: Calibration = field(repr=False)

    def per_class(self) -> pd.DataFrame:
        """Return a row for each class."""
        columns = ("precision", "recall", "f1", "roc_auc", "pr_auc", "support", "predicted")
        return pd.DataFrame({"class": self.classes} | {name: getattr(self, f"{name}_c") for name in columns})

    def confusion(self) -> pd.DataFrame:
        """Return the confusion matrix: true classes down, given classes across."""
        return pd.DataFrame(self.confusion_cc, pd.Index(self.classes, name="true"), pd.Index(self.classes, name=None))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file; what is undefined is null."""
        return {
            "n": self.n,
            "unlabelled": self.unlabelled,
            "metrics": finite_or_null(self.values),
            "undefined_classes": {name: n for name, n in self.undefined.items() if n},
            "per_class": [finite_or_null(row) for row in self.per_class().to_dict("records")],
            "confusion": self.confusion_cc.tolist(),
            "calibration": [finite_or_null(row) for row in self.calibration.table().to_dict("records")],
        }


def classification_metrics(
    probability_nc: NDArray[np.floating],
    code_n: NDArray[np.integer],
    classes: Sequence[str],
    bins: int = 15,
    *,
    areas: bool = True,
) -> ClassificationMetrics:
    """Score probabilities against classes.

    Parameters
    ----------
    probability_nc
        Of each class; rows sum to 1. Cells x classes.
    code_n
        True class of each cell, -1 for cells without a label, which are left out and counted. Shape (cells,).
    classes
        Names, in the order of the columns.
    bins
        Of the calibration, see `cellray.train.metrics.calibration`.
    areas
        Whether to compute areas under curves, too: they take most of the time, which a validation amid training does
        not have. Without, those of the classes are NaN and there are no means (`AREA_FIGURES`).

    Raises
    ------
    InputError
        Shapes do not fit, or rows are no probabilities.
    """
    labelled = np.asarray(code_n) >= 0
    _check(probability_nc, code_n, classes)
    p_nc = probability_nc[labelled].astype(np.float64)
    p_nc /= p_nc.sum(axis=1, keepdims=True)
    code, given = np.asarray(code_n, np.int64)[labelled], p_nc.argmax(axis=1)
    confusion_cc = _confusion(code, given, len(classes))
    per_class = _per_class(code, given, len(classes)) | _areas(p_nc, code, wanted=areas)
    reliability = calibration(p_nc.max(axis=1, initial=0), given == code, bins)
    means = {"balanced_accuracy": per_class["recall"], "macro_f1": per_class["f1"]}
    if areas:
        means |= {"macro_roc_auc": per_class["roc_auc"], "macro_pr_auc": per_class["pr_auc"]}
    values = {
        "accuracy": _mean(code == given),
        **{name: _mean(each[~np.isnan(each)]) for name, each in means.items()},
        "weighted_f1": _weighted(per_class["f1"], confusion_cc.sum(axis=1)),
        "log_loss": _log_loss(p_nc, code),
        "brier": brier_score(p_nc, code),
        "ece": reliability.error,
    }
    return ClassificationMetrics(
        classes=tuple(classes),
        n=len(code),
        unlabelled=int((~labelled).sum()),
        values=values,
        undefined={name: int(np.isnan(each).sum()) for name, each in means.items()},
        **{f"{name}_c": each for name, each in per_class.items()},
        support_c=confusion_cc.sum(axis=1),
        predicted_c=confusion_cc.sum(axis=0),
        confusion_cc=confusion_cc,
        calibration=reliability,
    )


def _check(probability_nc: NDArray[np.floating], code_n: NDArray[np.integer], classes: Sequence[str]) -> None:
    wanted = (len(code_n), len(classes))
    if probability_nc.shape != wanted or (len(code_n) and np.max(code_n) >= len(classes)):
        found = f"{probability_nc.shape} for {wanted}"
        raise InputError("probabilities", "there must be one for each cell and class", found, "Give those of the head.")
    sums = probability_nc.sum(axis=1, dtype=np.float64)
    wrong = ~(np.abs(sums - 1) <= _SUM_TOLERANCE) | (probability_nc < 0).any(axis=1)  # written so that NaN is wrong
    if wrong.any():
        found = f"{int(wrong.sum()):,} rows that do not, the first being number {int(wrong.argmax())}"
        raise InputError("probabilities", "each row must be positive and sum to 1", found, "Did the training diverge?")


def _confusion(code_n: NDArray[np.int64], given_n: NDArray[np.int64], c: int) -> NDArray[np.int64]:
    return np.bincount(code_n * c + given_n, minlength=c * c).reshape(c, c)


def _per_class(code_n: NDArray[np.int64], given_n: NDArray[np.int64], c: int) -> dict[str, NDArray[np.float64]]:
    """Return precision, recall and F1 of each class; NaN without cells, precision also where none was given."""
    if not len(code_n):
        return {name: np.full(c, np.nan) for name in ("precision", "recall", "f1")}
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        code_n, given_n, labels=np.arange(c), zero_division=np.nan
    )
    absent = support == 0
    found = {"precision": precision, "recall": recall, "f1": f1}
    return {name: np.where(absent, np.nan, each) for name, each in found.items()}


def _areas(p_nc: NDArray[np.float64], code_n: NDArray[np.int64], *, wanted: bool) -> dict[str, NDArray[np.float64]]:
    """Return areas under the ROC and precision-recall curves of each class against the rest."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    c = p_nc.shape[1]
    roc_c, pr_c = np.full(c, np.nan), np.full(c, np.nan)
    for i, own in enumerate(np.bincount(code_n, minlength=c) if wanted else ()):
        if own > 0:
            pr_c[i] = average_precision_score(code_n == i, p_nc[:, i])
        if 0 < own < len(code_n):
            roc_c[i] = roc_auc_score(code_n == i, p_nc[:, i])
    return {"roc_auc": roc_c, "pr_auc": pr_c}


def _log_loss(p_nc: NDArray[np.float64], code_n: NDArray[np.int64]) -> float:
    """Return the mean of -ln p of the true class, p being at least the smallest step of float64 near 1."""
    own = p_nc[np.arange(len(code_n)), code_n]
    return _mean(-np.log(np.clip(own, np.finfo(np.float64).eps, 1)))


def _weighted(value_c: NDArray[np.float64], weight_c: NDArray[np.int64]) -> float:
    there = weight_c > 0
    return float(np.average(value_c[there], weights=weight_c[there])) if there.any() else float("nan")


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
