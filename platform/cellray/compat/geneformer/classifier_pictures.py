"""The pictures of `Classifier`: confusion matrices, ROC curves and the answers for single cells."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray import storage
from cellray.compat.geneformer.class_ids import read_class_ids
from cellray.compat.geneformer.files import output_path
from cellray.compat.options import check_options, one_of
from cellray.errors import InputError, listing
from cellray.prediction_schema import probability_column

logger = logging.getLogger(__name__)

GENE_CLASS = "gene_class"
"""Name of the head that tells classes of genes."""
_OFFICIAL_ANSWERS, _ANSWERS = "_pred_dict.pkl", "_pred.csv"


class ClassifierPictures:
    """What `Classifier` draws of its results."""

    cell_state_dict: Mapping[str, Any] | None

    @property
    def head(self) -> str:
        """Name of what is told: the column of the cells' states, or `gene_class`."""
        return GENE_CLASS if self.cell_state_dict is None else str(self.cell_state_dict["state_key"])

    def plot_conf_mat(
        self,
        conf_mat_dict: Mapping[str, pd.DataFrame],
        output_directory: str | Path,
        output_prefix: str,
        custom_class_order: Sequence[str] | None = None,
    ) -> None:
        """Draw confusion matrices, to `DIRECTORY/PREFIX_conf_mat_NAME.png`.

        Parameters
        ----------
        conf_mat_dict
            Name to `conf_matrix` of `validate` or `evaluate_saved_model`: counts, true class x told class.
        output_directory, output_prefix
            Where pictures go.
        custom_class_order
            All classes in the order in which they are drawn.

        Raises
        ------
        InputError
            These are no counts, or the order is of other classes.
        """
        from cellray.plots import confusion_png

        for name, matrix in conf_mat_dict.items():
            classes = _in_order(list(map(str, matrix.columns)), custom_class_order)
            named = matrix.set_axis(matrix.index.map(str), axis=0).set_axis(matrix.columns.map(str), axis=1)
            counts_cc = named.reindex(index=classes, columns=classes).to_numpy(np.float64)
            if not (counts_cc >= 0).all() or (counts_cc % 1).any():
                rule, fix = "must hold counts of the same classes down and across", "Give conf_matrix as it is."
                raise InputError(f"conf_mat_dict[{name!r}]", rule, "other values", fix)
            with storage.atomic_file(_picture(output_directory, output_prefix, "conf_mat", name)) as path:
                confusion_png(counts_cc.astype(np.int64), classes, path, name)

    def plot_roc(
        self,
        roc_metric_dict: Mapping[str, Mapping[str, Any]],
        model_style_dict: object,
        title: str,
        output_directory: str | Path,
        output_prefix: str,
    ) -> None:
        """Draw the ROC curve of each class, a picture for each model, to `DIRECTORY/PREFIX_roc_NAME.png`.

        Parameters
        ----------
        roc_metric_dict
            Name to `all_roc_metrics` of `evaluate_saved_model`.
        model_style_dict
            Needs nothing: models do not share a picture.
        title
            Headline.
        output_directory, output_prefix
            Where pictures go.

        Raises
        ------
        InputError
            The figures hold no answers for single cells.
        """
        from cellray.plots import roc_png

        for name, found in roc_metric_dict.items():
            if "probability" not in found:
                rule = "must be all_roc_metrics of evaluate_saved_model, which hold the cells' probabilities"
                fix = (
                    "The report of validate, PREFIX.model.report, holds the ROC curves of its test cells as a picture."
                )
                raise InputError(f"roc_metric_dict[{name!r}]", rule, listing(found), fix)
            probability: pd.DataFrame = found["probability"]
            code_n = pd.Index(probability.columns).get_indexer(found["truth"])
            with storage.atomic_file(_picture(output_directory, output_prefix, "roc", name)) as path:
                roc_png(probability.to_numpy(), code_n, list(probability.columns), path, f"{title}, {name}")

    def plot_predictions(
        self,
        predictions_file: str | Path,
        id_class_dict_file: str | Path,
        title: str,
        output_directory: str | Path,
        output_prefix: str,
        custom_class_order: Sequence[str] | None = None,
        kwargs_dict: Mapping[str, Any] | None = None,
    ) -> None:
        """Draw the probability of each class for each labelled cell, to `DIRECTORY/PREFIX_pred.png`.

        Parameters
        ----------
        predictions_file
            `PREFIX_pred.csv` of `evaluate_saved_model`; `PREFIX_pred_dict.pkl` means this file.
        id_class_dict_file
            From `prepare_data`.
        title
            Headline.
        output_directory, output_prefix
            Where the picture goes.
        custom_class_order
            All classes in the order in which they are drawn.
        kwargs_dict
            None: a picture of another look is drawn from the table.

        Raises
        ------
        InputError
            There is no such file, it holds no answers for these classes, or no cell has one of them.
        """
        check_options("plot_predictions", {"kwargs_dict": kwargs_dict}, _PLOT_RULES)
        classes = _in_order(read_class_ids(id_class_dict_file), custom_class_order)
        probability_nc, code_n = _answers(str(predictions_file), self.head, classes)
        with storage.atomic_file(output_path(output_directory, output_prefix, "_pred.png")) as path:
            _answers_png(probability_nc, code_n, classes, path, title)


_PLOT_RULES = {"kwargs_dict": one_of(None, fix="Draw PREFIX_pred.csv with seaborn: it has a column for each class.")}


def _picture(directory: str | Path, prefix: str, kind: str, name: str) -> str:
    return output_path(directory, prefix, f"_{kind}_{name.replace('/', '|')}.png")


def _in_order(classes: list[str], order: Sequence[str] | None) -> list[str]:
    if order is None:
        return classes
    if sorted(map(str, order)) != sorted(classes):
        raise InputError("custom_class_order", f"must be all of {listing(classes)}", listing(order), "Correct it.")
    return list(map(str, order))


def _answers(given: str, head: str, classes: list[str]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the probabilities of labelled cells, cells x classes, and the numbers of their true classes."""
    uri = given.removesuffix(_OFFICIAL_ANSWERS) + _ANSWERS if given.endswith(_OFFICIAL_ANSWERS) else given
    columns, truth = [probability_column(head, name) for name in classes], f"obs.{head}"
    if not Path(uri).is_file():
        raise InputError(uri, "the file must exist", "none", "Run evaluate_saved_model, which writes it.")
    table = pd.read_csv(uri, dtype={truth: str})
    if missing := {truth, *columns} - set(table):
        fix = "Name the file and the classes of one model."
        raise InputError(uri, "must hold true classes and probabilities", f"no {listing(missing)}", fix)
    code_n = pd.Index(classes).get_indexer(pd.Index(table[truth]))
    known_n = code_n >= 0
    if not known_n.any():
        raise InputError(uri, f"cells need a class in {head!r}", f"none of {len(table):,}", "Name cells with labels.")
    if not known_n.all():
        logger.warning("%d of %d cells have none of the classes and are not drawn", (~known_n).sum(), len(table))
    return table.loc[known_n, columns].to_numpy(np.float64), code_n[known_n]


def _answers_png(
    probability_nc: NDArray[np.float64], code_n: NDArray[np.intp], classes: list[str], path: Path, title: str
) -> None:
    """Draw a row for each cell, by true class, the surest first."""
    from cellray.plots.canvas import canvas, short

    c, count_c = len(classes), np.bincount(code_n, minlength=len(classes))
    order = np.lexsort((-probability_nc[np.arange(len(code_n)), code_n], code_n))
    end_c, there = np.cumsum(count_c), np.flatnonzero(count_c)
    names = [f"{short(classes[i], 24)} (n = {count_c[i]:,})" for i in there]
    with canvas(path, 3.4 + max(0.45 * c, 2.4), 1.6 + max(0.3 * len(there), 4)) as figure:
        axes = figure.subplots()
        image = axes.imshow(probability_nc[order], cmap="magma", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.hlines(end_c[there][:-1] - 0.5, -0.5, c - 0.5, color="white", linewidth=1)
        axes.set_yticks((end_c - count_c / 2)[there] - 0.5, names, fontsize=8)
        axes.set_xticks(range(c), [short(name, 24) for name in classes], fontsize=8, rotation=90)
        axes.set(xlabel="class", ylabel="true class, a row for each cell")
        axes.set_title(title)
        figure.colorbar(image, ax=axes, fraction=0.05, aspect=25, shrink=0.8).set_label("probability")
