"""Searches on Ray Tune: failures are counted, a killed search goes on, the best trial's model is published."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
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
            "trials": 4,
            "cpus_per_trial": 1,
            "epochs": 3,
            "batch_size": 16,
            "seed": 1,
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
    url = f"sqlite:///{config.output}.search/study.db"
    (name,) = optuna.get_all_study_names(url)
    return optuna.load_study(study_name=name, storage=url).get_trials()


def test_a_killed_search_goes_on_and_publishes_the_best_model(
    config_of: Callable[..., SearchConfig],
    tmp_path: Path,
    ray_session: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(concurrent=2, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", register_as="kinds@best")
    caplog.set_level("INFO", logger="cellray")
    result = search(config)
    print(caplog.text)
    print(result)
    print(Path(f"{result.report}/trials.csv").read_text())
    print(Path(f"{result.report}/best.toml").read_text())
    print(sorted(Path(result.report).iterdir()))
    raise AssertionError
