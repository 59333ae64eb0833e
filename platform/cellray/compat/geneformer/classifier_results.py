"""What a classifier's methods return: figures and confusion matrices, from our reports or from predictions."""

from typing import Any

import numpy as np
import pandas as pd

from cellray import storage
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.infer.predictions import Predictions

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
    confusion_cc = confusion_matrix(truth, told, labels=classes)
    return {
        "conf_matrix": pd.DataFrame(confusion_cc, index=classes, columns=classes),
        "macro_f1": float(f1_score(truth, told, labels=np.unique(truth), average="macro")),
        "acc": float(accuracy_score(truth, told)),
        "predictions": table,
        "cells_without_a_class": int((~known_n).sum()),
    }
