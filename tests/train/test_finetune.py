"""Fine-tuning: tasks learn what their labels say, in one process and on Ray Train; what comes out predicts the same."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from cellray import storage
from cellray.data.corpora.corpus import Corpus
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.errors import InputError
from cellray.infer.predict import PredictConfig, predict_cells
from cellray.model.checkpoint import ModelDirectory
from cellray.model.masked_lm import new_masked_lm
from cellray.models import open_model
from cellray.train.finetune import FinetuneConfig, finetune, make_plans
from cellray.train.finetune_plan import FinetunePlan
from cellray.train.tasks.table import read_task
from cellray.train.worker import run_plan
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES, random_counts
from tests.train.local import CPU, LocalSession

pytestmark = pytest.mark.usefixtures("ray_session")

CELLS = 160


@pytest.fixture
def labelled(make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path) -> str:
    """Make a corpus in which the strongest gene says the kind, and the rank of a gene the age; donors of 20 cells."""
    rng = np.random.default_rng(1)
    counts = random_counts(CELLS, len(GENES), seed=1).toarray()
    kind = rng.integers(0, 3, CELLS)
    counts[np.arange(CELLS), kind + 3] = 200
    obs = {
        "kind": pd.Categorical.from_codes(kind, ["a", "b", "c"]),
        "age": np.where(kind == 0, 20.0, 60.0) + rng.normal(0, 1, CELLS),
        "donor": [f"d{i // 20}" for i in range(CELLS)],
        "sparse": [["x", "y", None][i % 3] for i in range(CELLS)],
    }
    path = make_h5ad(x=counts.astype(np.float32), obs=obs)
    vocabulary.save(str(tmp_path / "vocabulary.json"))
    config = TokenizeConfig(
        source=(str(path),),
        vocabulary=str(tmp_path / "vocabulary.json"),
        output=str(tmp_path / "labelled"),
        obs_columns=tuple(obs),
        missing_obs="null",
    )
    tokenize_corpus(config)
    return config.output


@pytest.fixture
def parent(vocabulary: GeneVocabulary, tmp_path: Path) -> str:
    from cellray.model.checkpoint import save_model

    save_model(
        new_masked_lm("tiny", vocabulary, 16, 0), vocabulary, {"objective": "masked genes"}, str(tmp_path / "parent")
    )
    return str(tmp_path / "parent")


@pytest.fixture
def config_of(labelled: str, parent: str, tmp_path: Path) -> Callable[..., FinetuneConfig]:
    def make(task: str, **changes: object) -> FinetuneConfig:
        (tmp_path / "task.toml").write_text(task)
        values: dict[str, object] = {
            "corpus": labelled,
            "model": parent,
            "task": str(tmp_path / "task.toml"),
            "output": str(tmp_path / "tuned"),
            "epochs": 6,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "threads": 1,
            "tracking_uri": "none",
            "log_every": 5,
        }
        return FinetuneConfig(**(values | changes))  # type: ignore[arg-type]

    return make


def recorded_runs(store: str) -> list[Run]:
    """Return the runs of an MLflow store, the first one first."""
    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time"]))


def plans_of(config: FinetuneConfig) -> list[FinetunePlan]:
    corpus, task_config = Corpus.open(config.corpus), read_task(config.task)
    parent = open_model(config.model)[1]
    return make_plans(config, corpus, parent, task_config.open(corpus), task_config, "0" * 12)


def train_fold(config: FinetuneConfig, fold: int = 0) -> tuple[FinetunePlan, LocalSession]:
    plan, session = plans_of(config)[fold], LocalSession()
    assert run_plan(plan, session, CPU).error == ""
    return plan, session


CLASSES = """
task = "cell_classification"
label = "kind"
[split]
kind = "stratified"
"""


@pytest.mark.parametrize("pooling", ["cell", "attention"])
def test_classes_of_cells_are_learnt(config_of: Callable[..., FinetuneConfig], pooling: str) -> None:
    plan, session = train_fold(config_of(CLASSES, pooling=pooling))
    (result,) = plan.opened.results([plan.answers()])
    assert result.pooled.values["accuracy"] > 0.9
    assert result.pooled.n == len(plan.opened.folds.rows(0, 2)) == 32
    assert session.history("macro_f1").keys() == session.history("validation_loss").keys()


def test_numbers_are_learnt_in_their_own_unit(config_of: Callable[..., FinetuneConfig]) -> None:
    plan, session = train_fold(config_of('task = "regression"\nlabel = "age"\nsplit = {kind = "random"}', epochs=10))
    (result,) = plan.opened.results([plan.answers()])
    assert result.pooled.values["mae"] < 8
    assert result.pooled.values["r2"] > 0.7
    assert "rmse" in session.reports[-1] or "rmse" in {key for report in session.reports for key in report}


MULTITASK = """
task = "multitask"
split = {kind = "stratified", stratify_by = "kind"}
[[heads]]
name = "kind"
class_weights = "balanced"
[[heads]]
name = "sparse"
weight = 0.1
[[heads]]
name = "years"
column = "age"
kind = "regression"
"""


def test_several_heads_with_missing_labels(config_of: Callable[..., FinetuneConfig]) -> None:
    plan, session = train_fold(config_of(MULTITASK, epochs=10))
    measured = {name for name in plan.opened.metric_names() if not name.endswith("_auc")}  # those are for the test
    assert measured <= {name for report in session.reports for name in report}
    results = {result.name: result.pooled for result in plan.opened.results([plan.answers()])}
    assert set(results) == {"kind", "sparse", "years"}
    assert results["kind"].values["accuracy"] > 0.9
    assert results["years"].values["r2"] > 0.6
    assert results["sparse"].n + results["sparse"].unlabelled == results["kind"].n
    assert results["sparse"].unlabelled > 0
    assert "kind/macro_f1" in {key for report in session.reports for key in report}


def test_classes_of_genes_are_learnt_on_other_genes(
    config_of: Callable[..., FinetuneConfig], tmp_path: Path, parent: str
) -> None:
    """Genes whose embeddings are alike are of one class: held-out ones are told by their embedding."""
    from safetensors.torch import load_file, save_file

    weights = load_file(Path(parent) / "model.safetensors")
    words = weights["bert.embeddings.word_embeddings.weight"].clone()
    words[2:17] += 0.5 * torch.randn(words.shape[1], generator=torch.Generator().manual_seed(0))
    weights["bert.embeddings.word_embeddings.weight"] = words
    save_file(weights, Path(parent) / "model.safetensors", metadata={"format": "pt"})
    made = json.loads((Path(parent) / "provenance.json").read_text())
    made["weights_sha256"] = storage.sha256_file(str(Path(parent) / "model.safetensors"))
    (Path(parent) / "provenance.json").write_text(json.dumps(made))
    table = {"first": GENES[:15], "second": GENES[15:30]}
    (tmp_path / "genes.json").write_text(json.dumps(table))
    task = 'task = "gene_classification"\ngenes = "genes.json"\n[split]\nfolds = 3\nvalidation_fraction = 0.2'
    plan, session = train_fold(config_of(task, epochs=4, learning_rate=1e-3), fold=1)
    figures = plan.opened.metrics(1, 2, plan.answers())
    assert figures["accuracy"] == 1.0
    assert figures["token/accuracy"] > 0.9
    tested = plan.opened.folds.rows(1, 2)
    assert len(tested) == 10
    assert not set(tested) & set(plan.opened.folds.rows(1, 0))
    assert "macro_f1" in {key for report in session.reports for key in report}


def test_early_stopping_takes_the_best_step(config_of: Callable[..., FinetuneConfig]) -> None:
    plan, session = (
        plans_of(config_of(CLASSES, epochs=60, learning_rate=5e-3, patience=2, monitor="macro_f1"))[0],
        LocalSession(),
    )
    outcome = run_plan(plan, session, CPU)
    history = session.history("macro_f1")
    assert outcome.steps < plan.loop.steps
    assert history[outcome.best_step] == max(history.values())
    assert [step for step in history if step > outcome.best_step] == list(history)[-2:]
    again = LocalSession()
    assert run_plan(plan, again, CPU).steps == outcome.steps  # it is over: nothing more is trained
    assert again.reports == []


def test_a_metric_that_is_not_defined_is_no_better(config_of: Callable[..., FinetuneConfig]) -> None:
    """Ranks of answers that are all alike have no correlation."""
    task = 'task = "regression"\nlabel = "age"\nsplit = {kind = "random"}'
    plan, session = train_fold(config_of(task, epochs=1, learning_rate=1e-30, dropout=0.0, monitor="spearman"))
    assert session.history("validation_loss").keys() == {plan.loop.steps}


def test_small_weights_of_heads_do_not_shrink_what_is_reported(
    config_of: Callable[..., FinetuneConfig], tmp_path: Path
) -> None:
    head = '{{name = "kind", kind = "classification", weight = {}}}'
    task = 'task = "multitask"\nheads = [{}]\nsplit = {{kind = "random"}}'
    told = []
    for weight in (1.0, 0.001):
        config = config_of(task.format(head.format(weight)), epochs=1, log_every=1, output=str(tmp_path / f"{weight}"))
        told.append(train_fold(config)[1])
    for name in ("train_loss", "grad_norm"):
        first, second = (session.history(name)[1] for session in told)
        assert second == pytest.approx(first, rel=1e-4), name


def test_nothing_to_validate_on(config_of: Callable[..., FinetuneConfig]) -> None:
    task = CLASSES + "validation_fraction = 0.0\n"
    plan, session = train_fold(config_of(task, epochs=2))
    assert session.history("validation_loss") == {}
    assert len(plan.answers()["cells"]) == 32
    for changes in ({"patience": 2}, {"monitor": "macro_f1"}):
        with pytest.raises(InputError, match="watch a validation part; found a split without one"):
            plans_of(config_of(task, **changes))


def test_frozen_layers_and_lora_train_little(config_of: Callable[..., FinetuneConfig]) -> None:
    for changes in ({"freeze_layers": 2}, {"lora_rank": 4, "learning_rate": 1e-2}):
        config = config_of(CLASSES, **changes, output=f"{config_of(CLASSES).output}-{next(iter(changes))}")
        plan, _ = train_fold(config)
        (result,) = plan.opened.results([plan.answers()])
        assert result.pooled.values["accuracy"] > 0.6, changes


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ('label = "kind"', {}, "task must be one of cell_classification, regression, multitask, gene_classification"),
        ('task = "cell_classification"\nlabel = "colour"', {}, "'colour'; kept: kind, age, donor, sparse"),
        (
            'task = "cell_classification"\nlabel = "kind"\nlable = 1',
            {},
            "found lable is no option there (did you mean label?). See",
        ),
        (
            'task = "cell_classification"\nlabel = "kind"\nfold = 2',
            {},
            "found fold is no option there (did you mean folds in [split]?). See",
        ),
        ('task = "cell_classification"\nsplit.folds = 2', {}, "found label is missing. See"),
        ('task = "cell_classification"\nlabel = "kind"\nsplit.kind = "grouped"', {}, "found a grouped kind of split"),
        (
            'task = "multitask"\nheads = [{name = "kind"}, {name = "age", kind = "number"}]',
            {},
            "found head 2.kind 'number': Input should be 'classification' or 'regression'",
        ),
        ('task = "regression"\nlabel = "kind"', {}, "a regression needs a numeric column"),
        (CLASSES, {"monitor": "f1"}, "--monitor: the metric to watch must be measured; found 'f1'"),
        (CLASSES, {"pooling": "cls"}, "cls"),
        (CLASSES, {"freeze_layers": 9}, "frozen layers must lie in 0..3"),
    ],
)
def test_bad_input_is_told(
    config_of: Callable[..., FinetuneConfig], task: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        train_fold(config_of(task, **changes))
    assert message in str(caught.value)


def test_folds_a_report_and_a_model_that_predicts_what_was_tested(
    config_of: Callable[..., FinetuneConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On Ray Train: two folds by donor, then a model of all cells."""
    caplog.set_level("INFO", "cellray")
    task = 'task = "cell_classification"\nlabel = "kind"\n[split]\nkind = "grouped"\ngroup = "donor"\nfolds = 2'
    store = f"sqlite:///{tmp_path}/mlflow.db"
    config = config_of(task, tracking_uri=store)
    result = finetune(config)
    mean, spread = result.heads["kind"]["accuracy"]
    assert mean is not None
    assert mean > 0.85
    assert spread is not None
    report = Path(result.report)
    assert {"metrics.json", "per_class.csv", "confusion.csv", "folds.csv"} <= {p.name for p in report.iterdir()}
    answers = pd.read_parquet(report / "test_predictions.parquet")
    assert answers["cell_id"].is_unique
    assert len(answers) == CELLS
    right = answers["kind.true"] == answers["kind.predicted"]
    assert right.groupby(answers["fold"]).mean().mean() == pytest.approx(mean)
    assert result.pooled["kind"]["accuracy"] == pytest.approx(right.mean())
    assert result.tested == {"kind": f"{CELLS} cells"}
    kept = [message for message in caplog.messages if "kept: step" in message]
    assert [message.split(", kept")[0] for message in kept] == ["fold 0", "fold 1", "all cells"]
    assert "(validation_loss 0." in kept[0]
    assert kept[2].endswith(", the last one")
    run, *folds = recorded_runs(store)
    assert run.data.metrics["test/kind/accuracy"] == pytest.approx(mean)
    assert "accuracy" not in run.data.metrics
    assert [fold.info.run_name for fold in folds] == ["fold 0", "fold 1", "all cells"]
    logged = {file.path for file in MlflowClient(store).list_artifacts(run.info.run_id)}
    assert {"metrics.json", "training.png", "kind_confusion.png", "task.json", "config.json"} <= logged
    assert "test_predictions.parquet" in logged
    model = ModelDirectory.open(result.uri)
    assert [head.classes for head in model.heads] == [("a", "b", "c")]
    assert model.provenance["objective"] == "cell_classification"
    assert model.provenance["parent_digest"] == ModelDirectory.open(config.model).digest
    predict_cells(PredictConfig(corpus=config.corpus, model=result.uri, output=str(tmp_path / "told")))
    tables = [pq.read_table(path) for path in sorted((tmp_path / "told").rglob("*.parquet"))]
    told = np.concatenate([table["kind"].to_numpy(zero_copy_only=False) for table in tables])
    kinds = Corpus.open(config.corpus).ray_dataset(["kind"]).to_pandas()["kind"].to_numpy()
    assert (told == kinds).mean() > 0.95
    assert finetune(config) == result  # done already
    assert not Path(f"{result.uri}.training").exists()
    with pytest.raises(InputError, match="must be empty or hold this very result"):
        finetune(config.model_copy(update={"seed": 3}))
