"""Figures against scikit-learn's and SciPy's own, and against numbers computed by hand."""

import json
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from cellray.errors import InputError
from cellray.train.metrics.calibration import calibration
from cellray.train.metrics.classification import classification_metrics
from cellray.train.metrics.genes import GeneSums, gene_metrics
from cellray.train.metrics.regression import regression_metrics
from cellray.train.metrics.summary import over_folds

BY_HAND = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.4, 0.6], [0.1, 0.9]])
TRUTH = np.array([0, 1, 1, 0, 1])


def random_case(classes: int, cells: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    code_n = rng.integers(0, classes, cells)
    logits = rng.normal(size=(cells, classes)) + 1.5 * np.eye(classes)[code_n]
    p_nc = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return p_nc, code_n


def test_five_cells_by_hand() -> None:
    """Given: a a b b b for a b b a b. Right: 3 of 5; a 1 of 2, b 2 of 3.

    Pairs (a, b) ranked rightly by p(a): (0.8 over 0.4, 0.3, 0.1) and (0.4 over 0.3, 0.1): 5 of 6... and 0.6 is a b.
    """
    found = classification_metrics(BY_HAND, TRUTH, ("a", "b"))
    assert found.confusion_cc.tolist() == [[1, 1], [1, 2]]
    assert found.recall_c.tolist() == [1 / 2, 2 / 3]
    assert found.precision_c.tolist() == [1 / 2, 2 / 3]
    assert found.values["accuracy"] == 3 / 5
    assert found.values["balanced_accuracy"] == pytest.approx(7 / 12)
    assert found.values["macro_f1"] == pytest.approx(7 / 12)
    assert found.values["weighted_f1"] == pytest.approx(3 / 5)
    assert found.roc_auc_c.tolist() == pytest.approx([5 / 6, 5 / 6])
    assert found.values["log_loss"] == pytest.approx(-np.log([0.8, 0.4, 0.7, 0.4, 0.9]).mean())
    assert found.values["brier"] == pytest.approx(2 * (0.04 + 0.36 + 0.09 + 0.36 + 0.01) / 5)


@pytest.mark.parametrize("classes", [2, 3, 10, 40])
def test_against_scikit_learn(classes: int) -> None:
    p_nc, code_n = random_case(classes, cells=1000)
    found = classification_metrics(p_nc, code_n, [f"c{i}" for i in range(classes)])
    given, names = p_nc.argmax(axis=1), np.arange(classes)
    many = {"labels": names, "multi_class": "ovr"} if classes > 2 else {}
    expected = {
        "accuracy": sk.accuracy_score(code_n, given),
        "balanced_accuracy": sk.balanced_accuracy_score(code_n, given),
        "macro_f1": sk.f1_score(code_n, given, average="macro"),
        "weighted_f1": sk.f1_score(code_n, given, average="weighted"),
        "macro_roc_auc": sk.roc_auc_score(code_n, p_nc if classes > 2 else p_nc[:, 1], **many),
        "macro_pr_auc": sk.average_precision_score(np.eye(classes)[code_n], p_nc),
        "log_loss": sk.log_loss(code_n, p_nc),
        "brier": sk.brier_score_loss(np.eye(classes)[code_n], p_nc, scale_by_half=False),
    }
    assert {name: found.values[name] for name in expected} == pytest.approx(expected)
    np.testing.assert_array_equal(found.confusion_cc, sk.confusion_matrix(code_n, given))
    assert not any(found.undefined.values())
    report = sk.classification_report(code_n, given, output_dict=True)
    for i, row in found.per_class().iterrows():
        assert row["precision"] == pytest.approx(report[str(i)]["precision"])
        assert row["support"] == report[str(i)]["support"]


def test_what_is_undefined_is_nan_and_counted() -> None:
    """Class c has no test cell: it is left out of means, though it was given once and costs accuracy."""
    p_nc = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]])
    found = classification_metrics(p_nc, np.array([0, 1, 1, 0]), ("a", "b", "c"))
    assert found.values["accuracy"] == 3 / 4
    assert found.recall_c[:2].tolist() == [1, 1 / 2]
    for each in (found.precision_c, found.recall_c, found.f1_c, found.roc_auc_c, found.pr_auc_c):
        assert np.isnan(each[2])
    assert found.values["balanced_accuracy"] == 3 / 4
    assert found.undefined == dict.fromkeys(("balanced_accuracy", "macro_f1", "macro_roc_auc", "macro_pr_auc"), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found.values["balanced_accuracy"] == sk.balanced_accuracy_score([0, 1, 1, 0], [0, 1, 2, 0])


def test_a_class_never_given_has_no_precision_but_an_f1() -> None:
    found = classification_metrics(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]), ("a", "b"))
    assert np.isnan(found.precision_c[1])
    assert (found.recall_c[1], found.f1_c[1]) == (0, 0)
    assert found.values["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_one_class_alone_and_no_cell_at_all() -> None:
    """No curve, no mean; and JSON without NaN."""
    one = classification_metrics(np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 0]), ("a", "b"))
    assert np.isnan(one.values["macro_roc_auc"])
    assert one.values["accuracy"] == 1 / 2
    none = classification_metrics(np.zeros((0, 2)), np.zeros(0, int), ("a", "b"))
    assert none.n == 0
    assert all(np.isnan(value) for value in none.values.values())
    for each in (one, none):
        text = json.dumps(each.to_json(), allow_nan=False)
        assert json.loads(text)["metrics"]["macro_roc_auc"] is None


def test_cells_without_a_label_are_left_out_and_counted() -> None:
    p_nc, code_n = random_case(3)
    with_gaps = np.where(np.arange(len(code_n)) % 4 == 0, -1, code_n)
    found = classification_metrics(p_nc, with_gaps, "abc")
    kept = with_gaps >= 0
    assert (found.n, found.unlabelled) == (300, 100)
    assert found.values == pytest.approx(classification_metrics(p_nc[kept], code_n[kept], "abc").values)


def test_areas_can_be_left_out() -> None:
    p_nc, code_n = random_case(3)
    whole, quick = (classification_metrics(p_nc, code_n, "abc", areas=areas) for areas in (True, False))
    assert set(whole.values) - set(quick.values) == {"macro_roc_auc", "macro_pr_auc"}
    assert dict(whole.values) == dict(whole.values) | dict(quick.values)
    assert np.isnan(quick.roc_auc_c).all()


def test_refused_probabilities() -> None:
    with pytest.raises(InputError, match=r"one for each cell and class; found \(5, 2\) for \(5, 3\)"):
        classification_metrics(BY_HAND, TRUTH, ("a", "b", "c"))
    with pytest.raises(InputError, match="2 rows that do not, the first being number 1"):
        classification_metrics(np.array([[1, 0], [np.nan, 1], [0.9, 0.9]]), np.array([0, 1, 0]), ("a", "b"))


def test_calibration_by_hand() -> None:
    """Two bins: (0, 0.5] holds one right cell of 0.5; (0.5, 1] one right and two wrong ones of 0.9."""
    found = calibration(np.array([0.5, 0.9, 0.9, 0.9]), np.array([True, True, False, False]), bins=2)
    assert found.count_b.tolist() == [1, 3]
    assert found.accuracy_b.tolist() == pytest.approx([1, 1 / 3])
    assert found.error == pytest.approx((1 * 0.5 + 3 * (0.9 - 1 / 3)) / 4)
    assert calibration(np.array([0.9]), np.array([True]), 3).table()["accuracy"].isna().tolist() == [True, True, False]


def test_probabilities_that_are_meant_are_calibrated() -> None:
    """Classes drawn with the very probabilities: the error is but noise; doubled logits are overconfident."""
    rng = np.random.default_rng(0)
    p_nc = rng.dirichlet(np.ones(4), 20_000)
    code_n = (p_nc.cumsum(axis=1) < rng.random((len(p_nc), 1))).sum(axis=1)
    sharp = p_nc**3 / (p_nc**3).sum(axis=1, keepdims=True)
    assert classification_metrics(p_nc, code_n, "abcd").values["ece"] < 0.015
    assert classification_metrics(sharp, code_n, "abcd").values["ece"] > 0.1


def test_regression_against_libraries() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(50, 20, 200)
    predicted = truth + rng.normal(0, 10, 200)
    gaps = np.where(np.arange(200) < 20, np.nan, truth)
    found = regression_metrics(predicted, gaps)
    assert (found.n, found.unlabelled) == (180, 20)
    truth, predicted = truth[20:], predicted[20:]
    assert found.values == pytest.approx(
        {
            "r2": sk.r2_score(truth, predicted),
            "pearson": stats.pearsonr(truth, predicted).statistic,
            "spearman": stats.spearmanr(truth, predicted).statistic,
            "mae": sk.mean_absolute_error(truth, predicted),
            "rmse": sk.root_mean_squared_error(truth, predicted),
        }
    )


@pytest.mark.parametrize(
    ("predicted", "truth", "defined"),
    [
        ([1.0, 2.0], [3.0, 3.0], {"mae", "rmse"}),
        ([1.0, 1.0], [2.0, 3.0], {"r2", "mae", "rmse"}),
        ([1.0], [2.0], {"mae", "rmse"}),
        ([], [], set()),
    ],
)
def test_regression_without_spread(predicted: list[float], truth: list[float], defined: set[str]) -> None:
    found = regression_metrics(np.array(predicted), np.array(truth))
    assert {name for name, value in found.values.items() if not np.isnan(value)} == defined
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(InputError, match="every number must be finite"):
        regression_metrics(np.array([np.nan]), np.array([1.0]))


def test_genes_count_once_each_and_tokens_each() -> None:
    """Gene 5 (class x) is right in 3 of 4 cells, gene 7 (class y) wrong in 1 of 2, gene 9 is never seen."""
    token_t = np.array([5, 7, 5, 5, 7, 5])
    p_x = np.array([0.9, 0.2, 0.8, 0.4, 0.9, 0.7])
    p_tc = np.stack([p_x, 1 - p_x], axis=1)
    whole, first, second = (GeneSums.zero(12, 2) for _ in range(3))
    whole.add(token_t, p_tc)
    first.add(token_t[:2], p_tc[:2])
    second.add(token_t[2:], p_tc[2:])
    for sums in (whole, first.merge(second)):
        found = gene_metrics(sums, ["G", "H", "I"], np.array([5, 7, 9]), np.array([0, 1, 1]), ("x", "y"))
        assert found.table["p: x"].tolist() == pytest.approx([0.7, 0.55])
        assert found.table["gene"].tolist() == ["G", "H"]
        assert found.table["given"].tolist() == ["x", "x"]
        assert found.per_gene.values["accuracy"] == 1 / 2
        assert found.per_token["accuracy"] == 4 / 6
        assert found.per_token["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
        assert (found.tokens, found.never_seen) == (6, 1)


def test_figures_per_token_are_those_of_scikit_learn() -> None:
    p_tc, code_t = random_case(3, cells=600)
    token_t = np.random.default_rng(1).integers(0, 20, 600) * 3 + code_t  # a token has one class
    sums = GeneSums.zero(70, 3)
    sums.add(token_t, p_tc)
    token_g = np.unique(token_t)
    found = gene_metrics(sums, [f"g{t}" for t in token_g], token_g, token_g % 3, "abc")
    given = p_tc.argmax(axis=1)
    assert found.per_token["accuracy"] == pytest.approx(sk.accuracy_score(code_t, given))
    assert found.per_token["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(code_t, given))
    assert found.per_token["macro_f1"] == pytest.approx(sk.f1_score(code_t, given, average="macro"))


def test_mean_and_spread_over_folds() -> None:
    """0.5, 0.7, 0.9: mean 0.7, standard deviation 0.2; a fold without a value does not count."""
    table = over_folds([{"f1": 0.5, "auc": 1.0}, {"f1": 0.7, "auc": np.nan}, {"f1": 0.9, "auc": 0.5}])
    assert table["metric"].tolist() == ["f1", "auc"]
    assert table["mean"].tolist() == pytest.approx([0.7, 0.75])
    assert table["std"].tolist() == pytest.approx([0.2, np.sqrt(0.125)])
    assert table["n"].tolist() == [3, 2]
    assert np.isnan(over_folds([{"f1": 0.5}])["std"][0])
