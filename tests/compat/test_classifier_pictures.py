"""`Classifier`'s pictures: what they are made of, the order of classes, and what is refused."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cellray import plots
from cellray.compat.geneformer import Classifier
from cellray.compat.geneformer.class_ids import write_class_ids
from cellray.compat.geneformer.classifier_pictures import _answers
from cellray.errors import InputError

CELL = Classifier("cell", cell_state_dict={"state_key": "kind", "states": "all"})
MATRIX = pd.DataFrame([[5, 1], [2, 9]], index=["a", "b"], columns=["a", "b"])
PROBABILITY = pd.DataFrame({"a": [0.9, 0.2, 0.4], "b": [0.1, 0.8, 0.6]})
PNG = b"\x89PNG"


def drawn(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """Return the list that a picture's arguments come into, as it is drawn."""
    calls: list[tuple[Any, ...]] = []
    draw = getattr(plots, name)

    def told(*arguments: object) -> None:
        calls.append(arguments)
        draw(*arguments)

    monkeypatch.setattr(plots, name, told)
    return calls


def test_confusion_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch, "confusion_png")
    CELL.plot_conf_mat({"Geneformer": MATRIX, "ours/2": MATRIX}, tmp_path, "x", custom_class_order=["b", "a"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["x_conf_mat_Geneformer.png", "x_conf_mat_ours|2.png"]
    assert (tmp_path / "x_conf_mat_Geneformer.png").read_bytes().startswith(PNG)
    counts, classes, _, title = calls[0]
    assert (counts.tolist(), list(classes), title) == ([[9, 2], [1, 5]], ["b", "a"], "Geneformer")
    with pytest.raises(InputError, match="custom_class_order: must be all of 'a', 'b'; found 'a'"):
        CELL.plot_conf_mat({"x": MATRIX}, tmp_path, "x", ["a"])
    for wrong in (MATRIX / 7, MATRIX.set_axis(["a", "c"])):
        with pytest.raises(InputError, match=r"conf_mat_dict\['x'\]: must hold counts of the same classes"):
            CELL.plot_conf_mat({"x": wrong}, tmp_path, "x")


def test_roc_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch, "roc_png")
    metrics = {"all_roc_auc": [1.0], "probability": PROBABILITY, "truth": np.array(["a", "b", "b"])}
    CELL.plot_roc({"Geneformer": metrics}, {"Geneformer": {"color": "red"}}, "kinds", tmp_path, "x")
    assert (tmp_path / "x_roc_Geneformer.png").read_bytes().startswith(PNG)
    probability, code, classes, _, title = calls[0]
    np.testing.assert_array_equal(probability, PROBABILITY.to_numpy())
    assert (code.tolist(), classes, title) == ([0, 1, 1], ["a", "b"], "kinds, Geneformer")
    with pytest.raises(InputError, match="which hold the cells' probabilities; found 'all_roc_auc'"):
        CELL.plot_roc({"Geneformer": {"all_roc_auc": [1.0]}}, {}, "kinds", tmp_path, "x")


def test_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = PROBABILITY.add_prefix("kind.probability.").assign(**{"obs.kind": ["a", "b", "other"]})
    table.to_csv(tmp_path / "x_pred.csv", index=False)
    write_class_ids(["a", "b"], str(tmp_path / "ids.json"))
    names = (str(tmp_path / "x_pred_dict.pkl"), tmp_path / "ids.pkl", "kinds")  # as notebooks name them
    with caplog.at_level(logging.WARNING):
        CELL.plot_predictions(*names, tmp_path, "x", custom_class_order=["b", "a"])
    assert "1 of 3 cells have none of the classes and are not drawn" in caplog.text
    assert (tmp_path / "x_pred.png").read_bytes().startswith(PNG)
    probability, code = _answers(str(tmp_path / "x_pred.csv"), "kind", ["b", "a"])
    assert (probability.tolist(), code.tolist()) == ([[0.1, 0.9], [0.8, 0.2]], [1, 0])
    for wrong, message in (
        ({"custom_class_order": ["a"]}, "custom_class_order: must be all of 'a', 'b'"),
        ({"kwargs_dict": {"cmap": "hot"}}, r"plot_predictions\(kwargs_dict=\.\.\.\): must be None"),
    ):
        with pytest.raises(InputError, match=message):
            CELL.plot_predictions(*names, tmp_path, "x", **wrong)  # type: ignore[arg-type]
    for uri, head, classes, message in (
        ("y_pred_dict.pkl", "kind", ["a"], r"y_pred\.csv: the file must exist"),
        (
            "x_pred.csv",
            "kind",
            ["a", "z"],
            r"true classes and probabilities; found no 'kind\.probability\.z'",
        ),
        ("x_pred.csv", "sex", ["a"], r"found no 'obs\.sex', 'sex\.probability\.a'"),
    ):
        with pytest.raises(InputError, match=message):
            _answers(str(tmp_path / uri), head, classes)
    table.assign(**{"obs.kind": "other"}).to_csv(tmp_path / "x_pred.csv", index=False)
    with pytest.raises(InputError, match="cells need a class in 'kind'; found none of 3"):
        CELL.plot_predictions(*names, tmp_path, "x")
