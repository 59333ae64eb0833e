"""The report of a fine-tuning: figures of every head over all folds, as files that people and programs can read.

`metrics.json`, `per_class.csv`, `confusion.csv`, `folds.csv` and pictures in one folder. Is given predictions; knows
nothing of models.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray import plots
from cellray.train.folds import TEST, Folds
from cellray.train.metrics.classification import ClassificationMetrics, classification_metrics
from cellray.train.metrics.genes import GeneMetrics
from cellray.train.metrics.nan_json import finite_or_null
from cellray.train.metrics.regression import RegressionMetrics, regression_metrics
from cellray.train.metrics.summary import over_folds
from cellray.train.tested import GENES, fold_table, support_counts

Metrics = ClassificationMetrics | RegressionMetrics


@dataclass(frozen=True)
class HeadResult:
    """Test predictions of one head and their figures.

    Attributes
    ----------
    name
        The head.
    of_folds
        Figures of each fold.
    pooled
        Figures of all test cells together, each predicted by the model that had not seen it.
    output_nc, truth_n
        Of these cells: probabilities and classes (-1 missing), or one column of numbers and the numbers (NaN missing).
    """

    name: str
    of_folds: tuple[Metrics, ...]
    pooled: Metrics
    output_nc: NDArray[np.floating]
    truth_n: NDArray[Any]

    def summary(self) -> pd.DataFrame:
        """Return mean, standard deviation and number over the folds of every figure."""
        return over_folds([each.values for each in self.of_folds])

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what is undefined is null."""
        table = self.summary().set_index("metric")
        return {
            "mean": finite_or_null(table["mean"].to_dict()),
            "std": finite_or_null(table["std"].to_dict()),
            "defined_in_folds": finite_or_null(table["n"].to_dict()),
            "folds": [each.to_json() for each in self.of_folds],
            "pooled": self.pooled.to_json(),
        }


def head_result(
    name: str,
    outputs: Sequence[NDArray[np.floating]],
    truths: Sequence[NDArray[Any]],
    classes: Sequence[str] | None = None,
) -> HeadResult:
    """Score a head's test predictions.

    Parameters
    ----------
    name
        The head.
    outputs
        For each fold probabilities (cells x classes), or numbers (cells x 1).
    truths
        For each fold class codes (-1 missing), or numbers (NaN missing). Shape (cells,).
    classes
        Names, or None for a regression.

    Raises
    ------
    InputError
        Shapes do not fit, or predictions are not finite.
    """
    of_folds = tuple(score(output, truth, classes) for output, truth in zip(outputs, truths, strict=True))
    output_nc, truth_n = np.concatenate(list(outputs)), np.concatenate(list(truths))
    pooled = of_folds[0] if len(of_folds) == 1 else score(output_nc, truth_n, classes)
    return HeadResult(name, of_folds, pooled, output_nc, truth_n)


def score(
    output_nc: NDArray[np.floating], truth_n: NDArray[Any], classes: Sequence[str] | None, *, areas: bool = True
) -> Metrics:
    """Score a head's answers once; parameters as in `head_result`, `areas` as in `classification_metrics`."""
    if classes is None:
        return regression_metrics(output_nc[:, 0], truth_n)
    return classification_metrics(output_nc, truth_n, classes, areas=areas)


def gene_head_result(name: str, of_folds: Sequence[GeneMetrics]) -> HeadResult:
    """Return the result of a head of genes, each gene counting once; genes that were never seen are not in it."""
    classes = of_folds[0].per_gene.classes
    return head_result(name, [each.mean_gc for each in of_folds], [each.code_g for each in of_folds], classes)


def write_report(
    folder: Path, results: Sequence[HeadResult], folds: Folds, title: str, extra: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write the report of all heads.

    Parameters
    ----------
    folder
        Made if need be; files of the same names are replaced.
    results
        Of every head.
    folds
        The split, whose table is written.
    title
        Headline of the pictures.
    extra
        More for `metrics.json`, as counts of what was left out.

    Returns
    -------
    list[Path]
        The files, in the order in which they were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classifying = {each.name: each for each in results if isinstance(each.pooled, ClassificationMetrics)}
    written = [_write_csv(folder / "folds.csv", fold_table(folds, _of_folds(classifying)))]
    if classifying:
        written.append(_write_csv(folder / "per_class.csv", _per_class(classifying)))
        written.append(_write_csv(folder / "confusion.csv", _confusion(classifying, folds.unit)))
    for each in results:
        written.extend(_draw(folder, each, folds, f"{title}, {each.name}"))
    unseen = folds.unseen().to_dict("records")
    value = {
        "heads": {each.name: each.to_json() for each in results},
        "splits": len(folds),
        "unit": folds.unit,
        "ungrouped": folds.ungrouped,
        "tested_but_not_trained_on": [finite_or_null(row) for row in unseen],
        **(extra or {}),
    }
    path = folder / "metrics.json"
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    return [*written, path]


def lines_on_genes(folds: Folds, results: Sequence[HeadResult]) -> list[str]:
    """Return, for a split of genes, how many of them were tested; the table of a split of cells says it already."""
    lines, listed = [], int((folds.part_kn == TEST).any(axis=0).sum())
    for each in results if folds.unit == GENES and listed else []:
        of_folds = [fold.n for fold in each.of_folds]
        range_ = f" ({min(of_folds):,} to {max(of_folds):,} a fold)" if len(of_folds) > 1 else ""
        none = f"; {listed - each.pooled.n:,} stand in none of the cells" if each.pooled.n < listed else ""
        lines.append(f"{each.name}: {each.pooled.n:,} of {listed:,} genes were tested{range_}{none}")
    return lines


def flat_metrics(results: Sequence[HeadResult]) -> dict[str, float]:
    """Return what a tracker logs, without what is undefined.

    `head/metric` and `head/metric_std` are mean and standard deviation over the folds; with several folds
    `head/metric_pooled` is the figure of all their test parts together.
    """
    found: dict[str, float] = {}
    for each in results:
        for metric, mean, std, _ in each.summary().itertuples(index=False):
            found |= {f"{each.name}/{metric}": mean, f"{each.name}/{metric}_std": std}
        if len(each.of_folds) > 1:
            found |= {f"{each.name}/{metric}_pooled": value for metric, value in each.pooled.values.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _of_folds(classifying: Mapping[str, HeadResult]) -> dict[str, list[ClassificationMetrics]]:
    """Return the figures of each fold, by head."""
    return {
        name: [each for each in result.of_folds if isinstance(each, ClassificationMetrics)]
        for name, result in classifying.items()
    }


def _write_csv(path: Path, table: pd.DataFrame) -> Path:
    table.to_csv(path, index=False)
    return path


def _per_class(classifying: Mapping[str, HeadResult]) -> pd.DataFrame:
    """Return a row for each head, fold (or `pooled`) and class."""
    tables = []
    for name, result in classifying.items():
        named = [*((str(fold), each) for fold, each in enumerate(result.of_folds)), ("pooled", result.pooled)]
        for fold, each in named:
            assert isinstance(each, ClassificationMetrics)
            table = each.per_class()
            table.insert(0, "head", name)
            table.insert(1, "fold", fold)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _confusion(classifying: Mapping[str, HeadResult], unit: str) -> pd.DataFrame:
    """Return a row for each head, true class and given class that occur, over all folds."""
    rows: list[tuple[str, str, str, int]] = []
    for name, result in classifying.items():
        assert isinstance(result.pooled, ClassificationMetrics)
        counts, classes = result.pooled.confusion_cc, result.pooled.classes
        rows.extend((name, classes[i], classes[j], int(counts[i, j])) for i, j in np.argwhere(counts > 0))
    return pd.DataFrame(rows, columns=["head", "true", "predicted", unit])


def _draw(folder: Path, result: HeadResult, folds: Folds, title: str) -> list[Path]:
    """Draw a head; its files begin with its name."""
    stem = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in result.name)
    if not isinstance(result.pooled, ClassificationMetrics):
        path = folder / f"{stem}_regression.png"
        note = ", ".join(f"{name} {result.pooled.values[name]:.3g}" for name in ("r2", "pearson", "mae"))
        plots.regression_png(result.output_nc[:, 0], result.truth_n, path, title, note=note)
        return [path]
    metrics, classes = result.pooled, result.pooled.classes
    paths = [folder / f"{stem}_{kind}.png" for kind in ("confusion", "roc", "precision_recall", "calibration")]
    plots.confusion_png(metrics.confusion_cc, classes, paths[0], title)
    plots.roc_png(result.output_nc, result.truth_n, classes, paths[1], title)
    plots.precision_recall_png(result.output_nc, result.truth_n, classes, paths[2], title)
    reliability = metrics.calibration
    plots.calibration_png(
        reliability.confidence_b,
        reliability.accuracy_b,
        reliability.count_b,
        paths[3],
        title,
        error=reliability.error,
        unit=folds.unit,
    )
    if result.name in folds.classes:
        counts = support_counts(folds, result.name, _of_folds({result.name: result})[result.name][0])
        paths.append(folder / f"{stem}_support.png")
        which = "" if len(folds) == 1 else f", first of {len(folds)} folds"
        plots.support_png(counts, classes, paths[-1], title + which, unit=folds.unit)
    return paths
