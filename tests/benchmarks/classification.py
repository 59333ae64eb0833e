"""Logistic regression on log-normalised counts: what a fine-tuned model has to beat, on the same folds.

`python -m tests.benchmarks.classification FILE.h5ad LABEL [--group COLUMN] [--folds 5]` prints its figures. The mean
over folds flatters where a test part lacks a class; the last column is of all test cells together.
"""

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from cellray.data.corpora.codes import MISSING, CodedColumn
from cellray.train.evaluation import HeadResult, head_result, write_report
from cellray.train.folds import TEST, TRAIN, VALIDATION, Folds, SplitConfig, split_cells
from cellray.train.splitters import Kind
from cellray.train.tasks.labels import LabelConfig, class_labels


def log_normalised(x_ng: sparse.csr_matrix, total: float = 1e4) -> sparse.csr_matrix:
    """Return ln(1 + counts per 10,000), float32. Cells x genes."""
    depth_n = np.asarray(x_ng.sum(axis=1)).ravel()
    scaled = sparse.diags(total / np.maximum(depth_n, 1)) @ x_ng
    return scaled.log1p().astype(np.float32).tocsr()


def obs_codes(obs: pd.DataFrame, column: str) -> CodedColumn:
    """Return an obs column as `cellray.train.tasks.labels.read_codes` returns that of a corpus."""
    values = obs[column].astype("string").replace("", pd.NA).astype("category")
    return CodedColumn(column, values.cat.codes.to_numpy(np.int32), tuple(map(str, values.cat.categories)))


def logistic_regression(
    x_ng: sparse.csr_matrix, code_n: NDArray[np.int32], classes: tuple[str, ...], folds: Folds, name: str
) -> HeadResult:
    """Train on the training and validation parts of each fold (there is nothing to stop early), predict the test part.

    Genes that fewer than three training cells have are left out; C = 1; a class that is not trained on gets
    probability 0.
    """
    from sklearn.linear_model import LogisticRegression

    outputs, truths = [], []
    for fold in range(len(folds)):
        training = np.concatenate([folds.rows(fold, TRAIN), folds.rows(fold, VALIDATION)])
        training, test = training[code_n[training] != MISSING], folds.rows(fold, TEST)
        genes = np.flatnonzero(x_ng[training].getnnz(axis=0) >= 3)
        model = LogisticRegression(max_iter=2000).fit(x_ng[training][:, genes], code_n[training])
        p_nc = np.zeros((len(test), len(classes)))
        p_nc[:, model.classes_] = model.predict_proba(x_ng[test][:, genes])
        outputs.append(p_nc)
        truths.append(code_n[test])
    return head_result(name, outputs, truths, classes)


def baseline(path: Path, label: str, split: SplitConfig) -> tuple[HeadResult, Folds]:
    """Split the cells of a file and score logistic regression on them."""
    adata = anndata.read_h5ad(path)
    head = class_labels(obs_codes(adata.obs, label), LabelConfig(name=label), split.folds, str(path))
    groups = None if split.group is None else obs_codes(adata.obs, split.group)
    folds = split_cells(split, {label: head}, groups, subject=str(path))
    x_ng = log_normalised(sparse.csr_matrix(adata.X))
    return logistic_regression(x_ng, head.code_n, head.classes, folds, label), folds


def main() -> None:
    """Print the figures of one file, and write the report if a folder is given."""
    options = argparse.ArgumentParser()
    options.add_argument("file", type=Path)
    options.add_argument("label")
    options.add_argument("--group")
    options.add_argument("--folds", type=int, default=5)
    options.add_argument("--validation", type=float, default=0.1)
    options.add_argument("--report", type=Path)
    chosen = options.parse_args()
    kind: Kind = "stratified" if chosen.group is None else "stratified_grouped"
    split = SplitConfig(
        kind=kind,
        group=chosen.group,
        folds=chosen.folds,
        validation_fraction=chosen.validation,
        drop_ungrouped=chosen.group is not None,
    )
    result, folds = baseline(chosen.file, chosen.label, split)
    title = f"{chosen.file.stem}, logistic regression"
    cells = f"{result.pooled.n:,} cells, {folds.ungrouped:,} without a group left out"
    print(f"{title}: {chosen.label}, {kind} {len(folds)}-fold, {cells}")
    pooled = pd.Series(result.pooled.values)
    table = result.summary().assign(pooled=lambda found: found["metric"].map(pooled))
    print(table.to_string(index=False, float_format="{:.4f}".format))
    if chosen.report is not None:
        write_report(chosen.report, [result], folds, title)


if __name__ == "__main__":
    main()
