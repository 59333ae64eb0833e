"""What a classifier's methods return: figures and confusion matrices, from our reports or from predictions."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray import storage
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.infer.predictions import Predictions
from cellray.prediction_schema import probability_column

METRICS = "metrics.json"


def of_report(report: str, head: str) -> dict[str, Any]:
    """Return the figures of a fine-tuning by their official names.

    Returns
    -------
    dict
        `conf_matrix` (true class x told class, over all test parts), `macro_f1` and `acc` (one number a split),
        `all_roc_metrics` (mean area under the curve), and under `cellray` the whole report.
    """
    told = storage.read_json(storage.join(report, METRICS))
    own = told["heads"][head]
    folds = [fold["metrics"] for fold in own["folds"]]
    classes = [row["class"] for row in own["pooled"]["per_class"]]
    return {
        "conf_matrix": pd.DataFrame(own["pooled"]["confusion"], index=classes, columns=classes),
        "macro_f1": [fold["macro_f1"] for fold in folds],
        "acc": [fold["accuracy"] for fold in folds],
        "all_roc_metrics": {"all_roc_auc": [fold.get("macro_roc_auc") for fold in folds]},
        "cellray": told,
    }


def of_predictions(predictions: Predictions, corpus: Corpus, head: str, classes: list[str]) -> dict[str, Any]:
    """Return the figures of a saved model on labelled cells, and the table of its answers.

    `all_roc_metrics` holds the mean area under the curves of the classes, and what `plot_roc` draws: `probability`, a
    column for each class (0 for those the model does not tell), and `truth`, of the cells that have a class.

    Raises
    ------
    InputError
        No cell has one of the classes.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    table = predictions.table().to_pandas()
    truth_n = table[predictions.manifest.renamed.get(head, head)].astype("string")
    known_n = truth_n.isin(classes).to_numpy(bool)
    if not known_n.any():
        found = f"none of {len(table):,} cells"
        raise InputError(corpus.uri, f"cells need a class in {head!r}", found, "Name cells with labels.")
    truth, told = truth_n[known_n].to_numpy(str), table[head][known_n].to_numpy(str)
    columns = {probability_column(head, name): name for name in classes}
    probability = table[known_n].reindex(columns=list(columns), fill_value=0.0).rename(columns=columns)
    confusion_cc = confusion_matrix(truth, told, labels=classes)
    return {
        "conf_matrix": pd.DataFrame(confusion_cc, index=classes, columns=classes),
        "macro_f1": float(f1_score(truth, told, labels=np.unique(truth), average="macro")),
        "acc": float(accuracy_score(truth, told)),
        "all_roc_metrics": {
            "all_roc_auc": [_mean_area(probability, truth)],
            "probability": probability,
            "truth": truth,
        },
        "predictions": table,
        "cells_without_a_class": int((~known_n).sum()),
    }


def _mean_area(probability: pd.DataFrame, truth_n: NDArray[np.str_]) -> float | None:
    """Return the mean area under the ROC curves of the classes that some cells have, and not all."""
    from sklearn.metrics import roc_auc_score

    own = {name: truth_n == name for name in probability}
    areas = [roc_auc_score(is_n, probability[name]) for name, is_n in own.items() if 0 < is_n.sum() < len(is_n)]
    return float(np.mean(areas)) if areas else None
