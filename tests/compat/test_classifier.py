"""`Classifier`: what is prepared, learnt and told, and what is refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk
from sklearn.metrics import roc_auc_score

from cellray.compat.geneformer import Classifier
from cellray.compat.geneformer.cells import open_cells
from cellray.compat.geneformer.class_ids import read_class_ids, write_class_ids
from cellray.compat.geneformer.classifier_tasks import write_task
from cellray.compat.geneformer.split_column import PART, read_split, with_parts
from cellray.compat.geneformer.training_args import finetune_options
from cellray.data.corpora.hf_dataset import export_dataset
from cellray.errors import InputError
from cellray.infer.predict import PredictConfig, predict_cells
from cellray.infer.predictions import Predictions
from cellray.model.checkpoint import ModelDirectory
from cellray.model.heads import HeadSpec
from cellray.train.finetune import FinetuneConfig
from cellray.train.folds import TEST, TRAIN, VALIDATION
from cellray.train.tasks.table import read_task
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES, random_counts
from tests.data.corpora import tokenized
from tests.infer.tiny import model_in

STATES = {"state_key": "kind", "states": "all"}
CELLS = 90


@pytest.fixture
def dataset(make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path) -> str:
    """Write 90 cells whose strongest gene says their kind: 40 a, 40 b, 10 c; donors of nine cells."""
    counts = random_counts(CELLS, len(GENES), seed=1).toarray()
    kind = np.array([0] * 40 + [1] * 40 + [2] * 10)
    counts[np.arange(CELLS), kind + 3] = 200
    obs = {"kind": pd.Categorical.from_codes(kind, ["a", "b", "c"]), "donor": [f"d{i % 10}" for i in range(CELLS)]}
    path = make_h5ad(x=counts.astype(np.float32), obs=obs)
    corpus = tokenized([path], vocabulary, tmp_path / "corpus", ("kind", "donor"))
    return export_dataset(corpus, str(tmp_path / "cells.dataset"))


def kinds(uri: str) -> dict[str, int]:
    return pd.Series(load_from_disk(uri)["kind"][:]).value_counts().to_dict()


def test_cells_are_chosen_and_split(dataset: str, tmp_path: Path) -> None:
    train, test = Classifier("cell", cell_state_dict=STATES).prepare_data(dataset, tmp_path, "x")
    assert [Path(each).name for each in (train, test)] == ["x_labeled_train.dataset", "x_labeled_test.dataset"]
    assert (kinds(train), kinds(test)) == ({"a": 36, "b": 36, "c": 9}, {"a": 4, "b": 4, "c": 1})
    assert json.loads((tmp_path / "x_id_class_dict.json").read_text()) == {"0": "a", "1": "b", "2": "c"}
    assert not set(load_from_disk(train)["cell_id"][:]) & set(load_from_disk(test)["cell_id"][:])

    few = Classifier("cell", cell_state_dict=STATES, rare_threshold=0.2, max_ncells_per_class=30)
    (whole,) = few.prepare_data(dataset, tmp_path, "few", test_size=0)
    assert kinds(whole) == {"a": 30, "b": 30}
    some = Classifier("cell", cell_state_dict={**STATES, "states": ["c", "a"]}, filter_data={"donor": ["d1", "d2"]})
    parts = some.prepare_data(
        dataset, tmp_path, "some", split_id_dict={"attr_key": "donor", "train": ["d1"], "test": ["d2"]}
    )
    assert [kinds(part) for part in parts] == [{"a": 4, "c": 1}, {"a": 4, "c": 1}]
    assert read_class_ids(tmp_path / "some_id_class_dict.pkl") == ["a", "c"]  # the name that notebooks use
    genes = Classifier("gene", gene_class_dict={"y": [GENES[0]], "x": [GENES[1]]}, max_ncells=7)
    (whole,) = genes.prepare_data(dataset, tmp_path, "genes")
    assert len(load_from_disk(whole)) == 7
    assert read_class_ids(tmp_path / "genes_id_class_dict.json") == ["y", "x"]


def test_parts_by_a_column(dataset: str, vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    """The parts are those that fine-tuning is told; a second call finds what the first one wrote."""
    split = {"attr_key": "donor", "train": ["d1", "d2", "d3"], "eval": ["d4"]}
    made = [with_parts(dataset, str(tmp_path / "x"), read_split(split)) for _ in range(2)]
    assert made[0] == made[1]
    corpus = open_cells(made[0], str(tmp_path / "imported"), None, None)
    uri = write_task(str(tmp_path / "x"), "kind", ["a", "b", "c"], None, SPLIT_BY_PART, balance=False)
    folds = read_task(uri).open(corpus).folds
    donors = np.array(load_from_disk(made[0])["donor"][:])
    assert set(donors[folds.rows(0, TRAIN)]) == {"d1", "d2", "d3"}
    assert set(donors[folds.rows(0, TEST)]) == {"d4"}
    assert len(folds.rows(0, VALIDATION)) == 0
    for wrong, message in (
        ({**split, "test": []}, "has the keys attr_key, train and eval"),
        ("donor", "has the keys attr_key, train and eval; found 'donor'"),
        ({**split, "eval": ["d1"]}, "a value is in one part; found 'd1'"),
        ({**split, "eval": ["d99"]}, "every part needs cells; found none in 'test'"),
        ({**split, "attr_key": "sample"}, "split_id_dict names a column; found sample"),
    ):
        with pytest.raises(InputError, match=message):
            with_parts(dataset, str(tmp_path / "y"), read_split(wrong))
    genes = Classifier("gene", gene_class_dict={"y": [GENES[0]]})
    with pytest.raises(InputError, match="goes with one split of cells"):
        genes.validate("model", dataset, "ids", tmp_path, "x", split_id_dict=split)


SPLIT_BY_PART = {"folds": 1, "test_fraction": 0.1, "validation_fraction": 0, "column": PART}


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_a_notebook_of_cell_states(dataset: str, vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    model = model_in(tmp_path, vocabulary)
    arguments = {"learning_rate": 5e-3, "num_train_epochs": 12, "per_device_train_batch_size": 12, "warmup_steps": 5}
    cc = Classifier(
        classifier="cell",
        cell_state_dict={"state_key": "kind", "states": ["a", "b"]},
        training_args={**arguments, "lr_scheduler_type": "linear", "output_dir": "x", "seed": 1},
        job_options={"threads": 1},
    )
    train, test = cc.prepare_data(dataset, tmp_path, "x", test_size=0.25)
    found = cc.validate(model, train, tmp_path / "x_id_class_dict.pkl", tmp_path, "x")
    assert found["conf_matrix"].to_numpy().sum() == 7  # a ninth of 60 cells, rounded up
    assert list(found["conf_matrix"].columns) == ["a", "b"]
    assert len(found["acc"]) == len(found["macro_f1"]) == 1
    assert ModelDirectory.open(found["model"]).heads[0].classes == ("a", "b")
    assert (tmp_path / "x.model.report" / "metrics.json").exists()
    told = cc.evaluate_saved_model(found["model"], tmp_path / "x_id_class_dict.json", test, tmp_path, "y")
    assert told["acc"] > 0.8
    assert told["conf_matrix"].to_numpy().sum() == 20
    assert told["acc"] == np.trace(told["conf_matrix"].to_numpy()) / 20
    assert len(pd.read_csv(tmp_path / "y_pred.csv")) == 20


def test_a_saved_model_is_evaluated(dataset: str, vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    """By what jobs.predict tells of the same cells; cells of classes that are not asked for are counted."""
    model = model_in(tmp_path, vocabulary, HeadSpec("kind", "classification", "cell", ("a", "b", "c")))
    cc = Classifier("cell", cell_state_dict={**STATES, "states": ["a", "b"]})
    write_class_ids(["a", "b"], str(tmp_path / "ids.json"))
    found = cc.evaluate_saved_model(model, tmp_path / "ids.json", dataset, tmp_path, "y")
    predict_cells(
        PredictConfig(corpus=str(tmp_path / "corpus"), model=model, output=str(tmp_path / "p"), actors=(0, 0))
    )
    told = Predictions.open(str(tmp_path / "p")).table().to_pandas()
    known = told[told["obs.kind"].isin(["a", "b"])]
    right = (known["kind"] == known["obs.kind"]).to_numpy()
    assert found["acc"] == right.mean()
    assert found["cells_without_a_class"] == 10
    area = roc_auc_score(known["obs.kind"] == "a", known["kind.probability.a"])
    other = roc_auc_score(known["obs.kind"] == "b", known["kind.probability.b"])
    assert found["all_roc_metrics"]["all_roc_auc"] == [pytest.approx((area + other) / 2)]
    cc.plot_roc({"x": found["all_roc_metrics"]}, {}, "kinds", tmp_path, "y")
    cc.plot_conf_mat({"x": found["conf_matrix"]}, tmp_path, "y")
    cc.plot_predictions(tmp_path / "y_pred.csv", tmp_path / "ids.json", "kinds", tmp_path, "y")
    assert {path.name for path in tmp_path.glob("*.png")} == {"y_roc_x.png", "y_conf_mat_x.png", "y_pred.png"}
    assert np.trace(found["conf_matrix"].to_numpy()) == right.sum()
    assert 0 <= found["macro_f1"] <= 1
    assert list(pd.read_csv(tmp_path / "y_pred.csv")["kind"]) == list(told["kind"])
    Path(model).rename(tmp_path / "z.model")
    official = tmp_path / "261123_geneformer_cellClassifier_z" / "ksplit1"
    again = cc.evaluate_saved_model(official, tmp_path / "ids.pkl", dataset, tmp_path, "z", predict=False)
    assert again["acc"] == found["acc"]
    assert not (tmp_path / "z_pred.csv").exists()


def test_task_files(tmp_path: Path) -> None:
    """They are those of jobs.finetune."""
    split = {"folds": 1, "test_fraction": 0.1, "validation_fraction": 0}
    uri = write_task(str(tmp_path / "x"), 'state "1"', ["b", "a"], None, split, balance=False)
    task = read_task(uri)
    assert task.heads[0].name == 'state "1"'  # type: ignore[union-attr]
    assert task.heads[0].classes == ("b", "a")  # type: ignore[union-attr]
    assert (task.split.test_fraction, task.split.validation_fraction) == (0.1, 0)
    genes = {"y": [GENES[0]], "x": [GENES[1]]}
    task = read_task(write_task(str(tmp_path / "g"), "gene_class", ["y", "x"], genes, {"folds": 5}, balance=True))
    assert (task.task, task.split.folds, task.class_weights) == ("gene_classification", 5, "balanced")  # type: ignore[union-attr]
    assert json.loads((tmp_path / "g.genes.json").read_text()) == genes
    with pytest.raises(InputError, match="id_class_dict_file: must hold 'x', 'y'; found 'z'"):
        write_task(str(tmp_path / "g"), "gene_class", ["z"], genes, {}, balance=True)


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_a_notebook_of_gene_classes(dataset: str, vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    model = model_in(tmp_path, vocabulary)
    classes = {"low": GENES[:10], "high": GENES[10:20]}
    options = {"gene_class_dict": classes, "training_args": {"max_steps": 3}, "job_options": {"threads": 1}}
    cc = Classifier("gene", num_crossval_splits=2, **options)
    (data,) = cc.prepare_data(dataset, tmp_path, "g")
    found = cc.validate(model, data, tmp_path / "g_id_class_dict.json", tmp_path, "g", gene_balance=True)
    assert len(found["acc"]) == 2
    assert found["conf_matrix"].to_numpy().sum() == 20
    made = cc.train_all_data(model, data, tmp_path / "g_id_class_dict.json", tmp_path, "all")
    assert ModelDirectory.open(made).heads[0].level == "gene"


def test_training_arguments() -> None:
    given = {"learning_rate": 1e-4, "lr_scheduler_type": "cosine", "bf16": True, "save_steps": 3, "max_steps": -1}
    found = {"learning_rate": 1e-4, "schedule": "cosine", "precision": "bf16"}
    usual = {"batch_size": 12, "num_workers": (1, 1)}
    assert finetune_options(given, "cell") == {**found, **usual, "epochs": 10}
    assert finetune_options(None, "cell") == {**usual, "epochs": 10}
    assert finetune_options({"load_best_model_at_end": False}, "gene") == {**usual, "epochs": 1}
    assert finetune_options({"num_train_epochs": 3}, "gene") == {**usual, "epochs": 3}
    assert finetune_options({"max_steps": 9}, "gene") == {**usual, "max_steps": 9}  # not cut off after an epoch
    assert finetune_options(None, "gene", 1, {"max_steps": 9}) == {**usual, "max_steps": 9}
    with pytest.raises(InputError, match=r"training_args: must be some of .*; found 'adam_beta1'"):
        Classifier("cell", cell_state_dict=STATES, training_args={"adam_beta1": 0.8})
    with pytest.raises(InputError, match=r"'load_best_model_at_end'\]: must be False: the last weights are kept"):
        Classifier("cell", cell_state_dict=STATES, training_args={"load_best_model_at_end": True})


def test_a_step_takes_cells_of_every_process() -> None:
    per_device = {"per_device_train_batch_size": 5}
    for options, cells in (
        ({"training_args": per_device}, 5),
        ({"training_args": per_device, "ngpu": 4}, 20),
        ({"ngpu": 4}, 48),
        ({"training_args": per_device, "job_options": {"num_workers": 3}}, 15),
        ({"training_args": per_device, "job_options": {"num_workers": (1, 6)}}, 30),
        ({"training_args": per_device, "ngpu": 4, "job_options": {"batch_size": 7}}, 7),
    ):
        cc = Classifier("cell", cell_state_dict=STATES, **options)  # type: ignore[arg-type]
        found = finetune_options(cc.training_args, cc.classifier, cc.ngpu, cc.job_options)
        assert found["batch_size"] == cells
        config = FinetuneConfig(corpus="c", model="m", task="t", output="o", **found)
        assert (config.batch_size, config.epochs) == (cells, 10)
    for options in ({"training_args": {"per_device_train_batch_size": "8"}}, {"job_options": {"num_workers": "2"}}):
        with pytest.raises(InputError, match="must be a whole number from 1 on"):
            Classifier("cell", cell_state_dict=STATES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must be 'cell' or 'gene'; found None"),
        ({"classifier": "cell"}, "is needed by classifier='cell'"),
        ({"classifier": "gene", "cell_state_dict": STATES}, "is needed by classifier='gene'"),
        ({"classifier": "cell", "cell_state_dict": STATES, "gene_class_dict": {}}, "is not for classifier='cell'"),
        ({"classifier": "cell", "cell_state_dict": {"state_key": "x"}}, "must be {'state_key': COLUMN, 'states'"),
        ({"classifier": "gene", "gene_class_dict": {}, "max_ncells_per_class": 3}, "is for cells; found 3"),
        ({"quantize": True}, "job_options={'lora_rank': 8}"),
        ({"ray_config": {}}, "jobs.tune searches"),
        ({"rare_threshold": 2}, "must lie in 0 .. 1"),
        ({"split_sizes": {"train": 0.5}}, "must be shares of train, valid and test that add up to 1"),
        ({"stratify_splits_col": "donor"}, "must be the column of the classes"),
        ({"freeze_layers": -1}, "a whole number from 0 on"),
        ({"ngpu": 0}, "a whole number from 1 on"),
        ({"training_args": []}, "a dict of training arguments"),
    ],
)
def test_options_that_cannot_be_had(options: dict[str, object], message: str) -> None:
    if options and "classifier" not in options:
        options = {"classifier": "cell", "cell_state_dict": STATES, **options}
    with pytest.raises(InputError, match="Classifier") as caught:
        Classifier(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_what_methods_refuse(dataset: str, tmp_path: Path) -> None:
    cc = Classifier("cell", cell_state_dict=STATES, num_crossval_splits=0)
    place = (tmp_path, "x")
    with pytest.raises(InputError, match=r"prepare_data\(attr_to_split=\.\.\.\): must be None; found 'donor'"):
        cc.prepare_data(dataset, *place, attr_to_split="donor")
    with pytest.raises(InputError, match="has the keys attr_key, train and test"):
        cc.prepare_data(dataset, *place, split_id_dict={"attr_key": "donor"})
    split = {"attr_key": "donor", "train": ["d1"], "test": ["d99"]}
    with pytest.raises(InputError, match="split_id_dict: every part needs cells; found none in test"):
        cc.prepare_data(dataset, *place, split_id_dict=split)
    with pytest.raises(InputError, match="every state needs cells; found no 'z'; 'a', 'b', 'c'"):
        Classifier("cell", cell_state_dict={**STATES, "states": ["a", "z"]}).prepare_data(dataset, *place)
    with pytest.raises(InputError, match="must be 1 or more to validate"):
        cc.validate("model", dataset, "ids", *place)
    with pytest.raises(InputError, match=r"validate\(n_hyperopt_trials=\.\.\.\): must be 0; found 3"):
        cc.validate("model", dataset, "ids", *place, n_hyperopt_trials=3)
    with pytest.raises(
        InputError, match=r"ids\.json: id_class_dict_file maps 0, 1, 2, \.\.\. to classes; found no such"
    ):
        read_class_ids(tmp_path / "ids.pkl")
    (tmp_path / "ids.pkl").write_bytes(pickle.dumps({0: "a", 1: "b"}))
    assert read_class_ids(tmp_path / "ids.pkl") == ["a", "b"]
    genes = Classifier("gene", gene_class_dict={"y": [GENES[0]]})
    with pytest.raises(InputError, match=r"prepare_data\(test_size=\.\.\.\): is for classifier='cell'; found 0\.2"):
        genes.prepare_data(dataset, *place, test_size=0.2)
    for method in (cc.train_all_data, Classifier("cell", cell_state_dict=STATES).validate):
        with pytest.raises(InputError, match=r"\(gene_balance=\.\.\.\): is for classifier='gene'; found True"):
            method("model", dataset, "ids", *place, gene_balance=True)
    with pytest.raises(InputError, match="is for cells: genes are split, not cells"):
        genes.evaluate_saved_model("model", "ids", dataset, *place)
