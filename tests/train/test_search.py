"""Searches on Ray Tune: failures are counted, a killed search goes on, the best trial's model is published."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cellray.config import parse_config
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.infer.predict import PredictConfig, predict_cells
from cellray.model.checkpoint import ModelDirectory
from cellray.train.finetune import FinetuneConfig
from cellray.train.search.job import search
from cellray.train.search.options import SearchConfig
from cellray.train.search.study import StudyPlace
from tests.conftest import REPOSITORY
from tests.train.test_finetune import CLASSES, labelled, parent

__all__ = ["labelled", "parent"]  # fixtures of another file

SPACE = """
[learning_rate]
kind = "choice"
values = [1e-3, 3e-3, 1e30]
[weight_decay]
kind = "uniform"
low = 0.0
high = 0.3
"""


@pytest.fixture
def config_of(labelled: str, parent: str, tmp_path: Path) -> Callable[..., SearchConfig]:
    def make(space: str = SPACE, **changes: object) -> SearchConfig:
        (tmp_path / "task.toml").write_text(CLASSES)
        (tmp_path / "space.toml").write_text(space)
        values: dict[str, object] = {
            "corpus": labelled,
            "model": parent,
            "task": str(tmp_path / "task.toml"),
            "space": str(tmp_path / "space.toml"),
            "output": str(tmp_path / "found"),
            "objectives": ("macro_f1",),
            "trials": 3,
            "cpus_per_trial": 1,
            "epochs": 3,
            "batch_size": 16,
            "seed": 8,
            "threads": 1,
            "sampler": "random",
            "tracking_uri": "none",
            "log_every": 5,
        }
        return SearchConfig(**(values | changes))  # type: ignore[arg-type]

    return make


def command_of(config: SearchConfig) -> list[str]:
    """Return a search's command line."""
    default = {name: field.default for name, field in SearchConfig.model_fields.items()}
    given = {name: value for name, value in config.model_dump().items() if value != default[name]}
    shown = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in given.items()}
    options = [part for name, value in shown.items() for part in (f"--{name.replace('_', '-')}", value)]
    return [sys.executable, "-m", "jobs.tune", *options]


def trials_of(config: SearchConfig) -> list[optuna.trial.FrozenTrial]:
    kept = StudyPlace("any", f"sqlite:///{config.output}.search/study.db").open_storage()
    trials = [trial for study in kept.get_all_studies() for trial in kept.get_all_trials(study._study_id)]
    kept.remove_session()
    kept.engine.dispose()
    return trials


def under_way(config: SearchConfig) -> bool:
    """Tell whether a trial has ended and one is running; not where the database is being made or written just now."""
    states: set[str] = set()
    with (
        suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(f"file:{config.output}.search/study.db?mode=ro", uri=True, timeout=1)) as database,
    ):
        states = {state for (state,) in database.execute("SELECT state FROM trials")}
    return "RUNNING" in states and bool(ENDS & states)


def held(process: subprocess.Popen[bytes], config: SearchConfig) -> bool:
    """Stop a search while it is under way: its last trial may end before it can be killed. Else it goes on."""
    if not under_way(config):
        return False
    os.killpg(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if under_way(config):
        return True
    os.killpg(process.pid, signal.SIGCONT)
    return False


def cut_off(config: SearchConfig, folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Start a search, kill its process when a trial has ended and one is running; return the trials it left."""
    import ray

    paths = {"PYTHONPATH": f"{REPOSITORY}/platform:{REPOSITORY}", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **paths, "RAY_ADDRESS": str(ray.get_runtime_context().gcs_address)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command_of(config), cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            for _ in range(1000):
                assert process.poll() is None, (folder / "log").read_text()
                if held(process, config):
                    break
                time.sleep(0.2)
            else:
                raise AssertionError((folder / "log").read_text())
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its own session; its actors follow
            process.wait()
    return trials_of(config)


ENDS = {"COMPLETE", "PRUNED", "FAIL"}


def test_a_killed_search_goes_on_and_publishes_the_best_model(
    config_of: Callable[..., SearchConfig],
    tmp_path: Path,
    ray_session: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second trial's learning rate is absurd: it fails, is counted, and the others go on."""
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    config = config_of(concurrent=2, tracking_uri=store, register_as="kinds@best")
    before = cut_off(config, tmp_path)
    caplog.set_level("INFO", logger="cellray")
    result = search(config)

    trials = trials_of(config)
    interrupted = {trial.number for trial in before if trial.state.name == "RUNNING"}
    assert interrupted
    assert result.counts["interrupted"] == len(interrupted)
    assert sum(number for state, number in result.counts.items() if state != "interrupted") == 3
    for old, new in zip(before, trials, strict=False):
        if old.number not in interrupted:
            assert old == new
    assert {t.user_attrs.get("retry_of") for t in trials} == {None, *interrupted}
    assert any("the loss became" in trial.user_attrs.get("reason", "") for trial in trials)
    assert "3 of 3 trials done; best so far: trial" in caplog.text

    values = {t.number: t.value for t in trials if t.state.name == "COMPLETE"}
    assert result.winner["objectives"]["macro_f1"] == max(values.values())
    assert result.winner["trial"] == min(n for n, value in values.items() if value == max(values.values()))
    table = pd.read_csv(f"{result.report}/trials.csv")
    assert list(table["trial"]) == [trial.number for trial in trials]
    counted = table[table["state"] != "interrupted"].set_index("trial")
    assert len(counted) == 3
    assert counted["seconds"].notna().all()  # a trial cut off in its last moment may have them, too
    made = {path.name for path in Path(result.report).iterdir()}
    assert {"trials.csv", "best.toml", "history_macro_f1.png", "metrics.json", "confusion.csv"} <= made
    assert not Path(f"{config.output}.search/trials").exists()

    best = parse_config(FinetuneConfig, ["--config", f"{result.report}/best.toml"], "python -m jobs.finetune")
    assert {name: getattr(best, name) for name in result.winner["parameters"]} == result.winner["parameters"]
    assert (best.epochs, best.batch_size, best.monitor) == (3, 16, "macro_f1")
    assert store not in Path(f"{result.report}/best.toml").read_text()

    check_recorded(store, config, result.winner["trial"], result.counts["failed"])
    assert recorded_states(store) == counted["state"].to_dict()
    check_predicts(config, tmp_path)
    assert search(config) == result  # done already
    assert trials_of(config) == trials
    with pytest.raises(InputError, match="3 trials where 5 are asked for"):
        search(config.model_copy(update={"trials": 5}))
    with pytest.raises(InputError, match="must be empty or hold this very result"):
        search(config.model_copy(update={"epochs": 1}))


def check_recorded(store: str, config: SearchConfig, winner: int, failed: int) -> None:
    """One run for the search and one below it for each of three trials, repeated ones included; pictures; a version."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("cellray").experiment_id])
    (top,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == top.info.run_id]
    assert len(nested) == 3
    assert {run.info.status for run in [top, *nested]} == {"FINISHED", "FAILED"}
    assert [run.info.status for run in nested].count("FAILED") == failed
    assert all("weight_decay" in run.data.params for run in nested)
    assert top.data.tags["best_trial"] == str(winner)
    assert {"test/kind/macro_f1", "best/macro_f1"} <= top.data.metrics.keys()
    assert not {name for name in top.data.metrics if name.startswith("kind/")}
    assert top.data.tags["corpus_digest"] == Corpus.open(config.corpus).manifest.digest
    kept = {each.path for each in client.list_artifacts(top.info.run_id)}
    assert {"trials.csv", "best.toml", "history_macro_f1.png", "metrics.json"} <= kept
    assert client.get_model_version_by_alias("kinds", "best").run_id == top.info.run_id


def recorded_states(store: str) -> dict[int, str]:
    """Return how each trial ended, as MLflow has it."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("cellray").experiment_id])
    told = [run.data.tags for run in runs if "mlflow.parentRunId" in run.data.tags]
    for tags in told:
        again = f" (retry of {tags['cellray.trial_retry_of']})" if "cellray.trial_retry_of" in tags else ""
        assert tags["mlflow.runName"] == f"trial {tags['cellray.trial_number']}{again}"
    return {int(tags["cellray.trial_number"]): tags["cellray.trial_state"] for tags in told}


def check_predicts(config: SearchConfig, folder: Path) -> None:
    """Let the published model tell kinds of cells and say where it comes from."""
    made = ModelDirectory.open(config.output).provenance
    assert made["search"]["study"].startswith("task-")
    assert made["search"]["states"]["failed"] >= 1
    figures = json.loads(Path(f"{config.output}.report/metrics.json").read_text())
    assert figures["heads"]["kind"]["pooled"]["n"] == 32
    predict_cells(PredictConfig(corpus=config.corpus, model=config.output, output=str(folder / "told")))
    tables = [pq.read_table(path) for path in sorted((folder / "told").rglob("*.parquet"))]
    told = np.concatenate([table["kind"].to_numpy(zero_copy_only=False) for table in tables])
    kinds = Corpus.open(config.corpus).ray_dataset(["kind"]).to_pandas()["kind"].to_numpy()
    assert (told == kinds).mean() > 0.6


@pytest.mark.chaos
def test_a_search_over_inner_folds(config_of: Callable[..., SearchConfig], ray_session: None, tmp_path: Path) -> None:
    space = "[dropout]\nkind = 'uniform'\nlow = 0.0\nhigh = 0.2"
    config = config_of(space, trials=1, learning_rate=3e-3)
    (tmp_path / "task.toml").write_text(f"{CLASSES}folds = 2\n")
    result = search(config)
    assert result.counts == {"complete": 1}
    assert result.winner["spread"].keys() == {"macro_f1"}
    table = pd.read_csv(f"{result.report}/trials.csv")
    assert list(table["folds"]) == [2]
    figures = json.loads(Path(f"{result.report}/metrics.json").read_text())
    assert figures["heads"]["kind"]["pooled"]["n"] == 32
    split = pd.read_csv(f"{result.report}/folds.csv").set_index("part")["cells"]
    assert split.to_dict() == {"train": 128, "validation": 0, "test": 32}
    assert ModelDirectory.open(result.uri).provenance["steps"] >= 1


@pytest.mark.chaos
def test_a_distributed_trial_with_two_objectives(config_of: Callable[..., SearchConfig], ray_session: None) -> None:
    space = "[dropout]\nkind = 'uniform'\nlow = 0.0\nhigh = 0.2"
    changes = {"num_workers": (2, 2), "cpus_per_worker": 0.5, "trials": 1, "learning_rate": 3e-3}
    result = search(config_of(space, objectives=("macro_f1", "ece"), **changes))
    assert result.counts == {"complete": 1}
    assert set(result.winner["objectives"]) == {"macro_f1", "ece"}
    assert result.winner["front"] == [0]
    assert "pareto_macro_f1_ece.png" in {path.name for path in Path(result.report).iterdir()}
    assert ModelDirectory.open(result.uri).provenance["search"]["rule"].startswith("of the Pareto front")


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        (SPACE, {"objectives": ("f1",)}, "--objectives: what is made better must be measured; found 'f1'"),
        (SPACE, {"monitor": "f1"}, "--monitor: what is made better must be measured"),
        ("[freeze_layers]\nkind = 'integer'\nlow = 0\nhigh = 9", {}, "frozen layers must lie in 0..3"),
        (SPACE, {"cpus_per_trial": 64}, "--cpus-per-trial: a trial must fit on the machine"),
    ],
)
def test_bad_input_is_told_before_anything_starts(
    config_of: Callable[..., SearchConfig], ray_session: None, space: str, changes: dict[str, object], message: str
) -> None:
    config = config_of(space, **changes)
    with pytest.raises(InputError) as caught:
        search(config)
    assert message in str(caught.value)
    assert not Path(f"{config.output}.search").exists()
