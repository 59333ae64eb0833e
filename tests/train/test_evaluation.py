"""The report of a fine-tuning: its files say what the predictions say. The baseline learns real cells."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cellray.data.corpora.codes import CodedColumn
from cellray.train.contracts import Batch
from cellray.train.evaluation import flat_metrics, gene_head_result, head_result, write_report
from cellray.train.folds import TEST, SplitConfig, gene_folds, split_cells
from cellray.train.metrics.genes import GeneSums, gene_metrics
from cellray.train.tasks.cells import CellScores, CellTask, CellTaskConfig
from cellray.train.tasks.gene_labels import GeneLabels
from cellray.train.tasks.labels import ClassLabels, ValueLabels
from tests.benchmarks.classification import baseline, log_normalised


@pytest.fixture
def labels() -> dict[str, ClassLabels | ValueLabels]:
    rng = np.random.default_rng(0)
    codes = rng.choice(3, 90, p=[0.5, 0.3, 0.2]).astype(np.int32)
    codes[:6] = -1
    ages = rng.normal(50, 10, 90)
    ages[80:] = np.nan
    return {"cell type": ClassLabels("cell type", codes, ("a", "b", "c"), 6), "age": ValueLabels("age", ages, 10)}


def test_the_report_says_what_the_predictions_say(labels: dict[str, ClassLabels | ValueLabels], tmp_path: Path) -> None:
    """Perfect in the first fold; class a for every cell in the second."""
    folds = split_cells(SplitConfig(folds=2), labels)
    codes, ages = labels["cell type"].code_n, labels["age"].value_n
    tests = [folds.rows(k, TEST) for k in range(2)]
    perfect = np.eye(3)[np.maximum(codes[tests[0]], 0)]
    kinds = head_result("cell type", [perfect, np.eye(3)[[0] * len(tests[1])]], [codes[t] for t in tests], "abc")
    numbers = head_result("age", [ages[t, None] + 1 for t in tests], [ages[t] for t in tests])
    numbers.output_nc[:] = np.nan_to_num(numbers.output_nc)
    written = write_report(tmp_path / "report", [kinds, numbers], folds, "Test", {"missing": {"cell type": 6}})
    pictures = {f"cell_type_{kind}.png" for kind in ("confusion", "roc", "precision_recall", "calibration", "support")}
    pictures.add("age_regression.png")
    assert {path.name for path in written} == pictures | {"metrics.json", "per_class.csv", "confusion.csv", "folds.csv"}
    assert all(path.is_file() for path in written)

    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    share = (codes[tests[1]] == 0).sum() / (codes[tests[1]] >= 0).sum()
    assert found["heads"]["cell type"]["mean"]["accuracy"] == pytest.approx((1 + share) / 2)
    assert found["heads"]["age"]["mean"]["mae"] == pytest.approx(1)
    assert found["missing"] == {"cell type": 6}

    table = pd.read_csv(tmp_path / "report" / "per_class.csv").set_index(["fold", "class"])
    assert table.loc[("0", "b"), "f1"] == 1
    assert table.loc[("1", "b"), "recall"] == 0
    assert np.isnan(table.loc[("1", "b"), "precision"])
    confusion = pd.read_csv(tmp_path / "report" / "confusion.csv")
    assert confusion["cells"].sum() == 84
    assert set(confusion.query("true == 'b'")["predicted"]) == {"a", "b"}
    assert pd.read_csv(tmp_path / "report" / "folds.csv")["cells"].sum() == 2 * 90

    flat = flat_metrics([kinds, numbers])
    assert flat["cell type/accuracy"] == pytest.approx((1 + share) / 2)
    assert flat["age/mae_std"] == pytest.approx(0, abs=1e-9)
    assert all(np.isfinite(value) for value in flat.values())


def test_a_report_of_genes(tmp_path: Path) -> None:
    """Forty genes in four cells each, told rightly in three of four: on the whole every gene is right."""
    genes = [f"G{i}" for i in range(40)]
    labels = GeneLabels(("x", "y"), np.arange(4, 44), np.arange(40, dtype=np.int32) % 2, tuple(genes), {}, {}, 0)
    folds = gene_folds(SplitConfig(folds=2), labels, "target")
    right = np.eye(2)[np.tile(labels.code_g, 4)] * 0.6 + 0.2
    right[:40] = right[:40, ::-1]
    of_folds = []
    for k in range(2):
        sums = GeneSums.zero(50, 2)
        sums.add(np.tile(labels.token_g, 4), right)
        rows = folds.rows(k, TEST)
        of_folds.append(
            gene_metrics(sums, [genes[g] for g in rows], labels.token_g[rows], labels.code_g[rows], labels.classes)
        )
    result = gene_head_result("target", of_folds)
    written = write_report(tmp_path, [result], folds, "Test", {"genes": [each.to_json() for each in of_folds]})
    assert tmp_path / "target_support.png" in written
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["heads"]["target"]["pooled"]["n"] == 40
    assert found["heads"]["target"]["mean"]["accuracy"] == 1
    assert [each["per_token"]["accuracy"] for each in found["genes"]] == [3 / 4, 3 / 4]
    assert pd.read_csv(tmp_path / "confusion.csv")["genes"].tolist() == [20, 20]


def test_classes_never_trained_on_stand_in_the_report(tmp_path: Path) -> None:
    codes = np.array([0, 1] * 30 + [2] * 6, np.int32)
    labels = {"kind": ClassLabels("kind", codes, ("a", "b", "c"), 0)}
    donors = CodedColumn("donor", np.array([*np.repeat([0, 1, 2], 20), *[3] * 6], np.int32), tuple("wxyz"))
    folds = split_cells(SplitConfig(kind="grouped", group="donor", folds=4, validation_fraction=0), labels, donors)
    tests = [folds.rows(k, TEST) for k in range(4)]
    result = head_result("kind", [np.full((len(t), 3), 1 / 3) for t in tests], [codes[t] for t in tests], "abc")
    write_report(tmp_path, [result], folds, "Test")
    found = json.loads((tmp_path / "metrics.json").read_text())["tested_but_not_trained_on"]
    assert [(row["head"], row["class"], row["cells"]) for row in found] == [("kind", "c", 6)]


def test_log_normalisation_is_that_of_scanpy() -> None:
    import scanpy as sc
    from anndata import AnnData

    from tests.conftest import random_counts

    x_ng = random_counts(20, 30)
    adata = AnnData(x_ng.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(log_normalised(x_ng).toarray(), adata.X.toarray(), rtol=1e-5)


def test_the_baseline_knows_stimulated_cells(shared: Path) -> None:
    """Interferon beta changes hundreds of genes: logistic regression hardly errs."""
    result, folds = baseline(shared / "data" / "kang_ifnb.h5ad", "condition", SplitConfig(folds=2))
    assert result.pooled.n == 832
    assert result.pooled.values["accuracy"] > 0.97
    assert folds.describe()["cells"].sum() == 2 * 832


def cell_task(labels: dict[str, ClassLabels | ValueLabels], *watched: str) -> CellTask:
    heads = [{"name": name, "kind": "regression" if name == "age" else "classification"} for name in labels]
    task = "multitask" if len(heads) > 1 else "cell_classification"
    config = CellTaskConfig.model_validate({"task": task, "heads": heads})
    return CellTask(config, labels, split_cells(config.split, labels), frozenset(watched))


def test_a_validation_computes_areas_only_where_they_are_watched(labels: dict[str, ClassLabels | ValueLabels]) -> None:
    rng = np.random.default_rng(1)
    cells = np.arange(90)
    p_nc = rng.dirichlet(np.ones(3), 90)
    arrays = {"cells": cells, "head cell type": p_nc, "head age": rng.normal(50, 9, (90, 1))}
    (kinds, ages) = cell_task(labels).results([arrays])
    tested = {f"cell type/{name}": v for name, v in kinds.pooled.values.items()}
    tested |= {f"age/{name}": v for name, v in ages.pooled.values.items()}
    watching = cell_task(labels, "validation_loss", "cell type/macro_pr_auc").metrics(0, 1, arrays)
    assert watching == pytest.approx(tested)
    quick = cell_task(labels, "validation_loss", "age/mae").metrics(0, 1, arrays)
    assert set(watching) - set(quick) == {"cell type/macro_roc_auc", "cell type/macro_pr_auc"}
    assert quick == pytest.approx({name: v for name, v in tested.items() if name in quick})
    alone = cell_task({"cell type": labels["cell type"]}, "macro_f1").metrics(0, 1, arrays)
    assert alone["macro_f1"] == tested["cell type/macro_f1"]
    assert "macro_roc_auc" not in alone


def test_what_is_watched_is_there_even_if_it_is_not_defined(labels: dict[str, ClassLabels | ValueLabels]) -> None:
    """Six cells without a label, then none at all: a training that watches F1 finds no number, not no figure."""
    own = {"cell type": labels["cell type"]}
    for cells in (np.arange(6), np.arange(0)):
        arrays = {"cells": cells, "head cell type": np.full((len(cells), 3), 1 / 3)}
        found = cell_task(own, "macro_f1").metrics(0, 1, arrays)
        assert np.isnan(found["macro_f1"])
        assert "accuracy" not in found


def test_answers_come_together_by_cell() -> None:
    """A row without a cell, which a worker runs to keep step with the others, is left out."""
    scores = CellScores(["kind"], [], {"kind": []})
    for cells in ([7, 2, -1], [5, 0]):
        answers = {"kind": torch.tensor(cells)[:, None] / 10}
        scores.add(Batch(torch.zeros(len(cells), 1), np.ones(len(cells), np.int64), np.array(cells)), answers)
    found = scores.arrays(1)
    assert found["cells"].tolist() == [0, 2, 5, 7]
    np.testing.assert_allclose(found["head kind"], [[0.0], [0.2], [0.5], [0.7]])
    scores.cells[1][0] = 7
    with pytest.raises(AssertionError):
        scores.arrays(1)
