"""Fine-tuning through its command line: a killed job repeats no finished fold, and bad input is one clear line."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellray.data.corpora.corpus import Corpus
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.model.checkpoint import save_model
from cellray.model.masked_lm import new_masked_lm
from cellray.models import open_model
from cellray.train.evaluation import write_report
from cellray.train.finetune import FinetuneConfig, make_plans, publish
from cellray.train.folds import TRAIN
from cellray.train.tasks.table import read_task
from cellray.train.worker import Outcome, run_plan
from cellray.vocabulary import GeneVocabulary
from jobs._run import run_job
from jobs.finetune import main
from tests.conftest import GENES, random_counts
from tests.train.jobs import start_job
from tests.train.local import CPU, LocalSession

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]

CELLS = 90


@pytest.fixture
def options(make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path) -> dict[str, object]:
    """Options of a job; the corpus has a label with one cell, and one of a single donor."""
    kind = np.array(["a", "b", "c"])[np.arange(CELLS) % 3].astype(object)
    donor = np.array([f"d{i // 15}" for i in range(CELLS)], object)
    rare, local = kind.copy(), kind.copy()
    rare[7], local[30:33] = "alone", "only in d2"
    counts = random_counts(CELLS, len(GENES), seed=1).toarray()
    counts[np.arange(CELLS), np.arange(CELLS) % 3 + 3] = 200
    obs = {"kind": kind, "donor": donor, "rare": rare, "local": local, "all": ["train"] * CELLS}
    source = make_h5ad(x=counts.astype(np.float32), obs={name: pd.Series(v, dtype="object") for name, v in obs.items()})
    vocabulary.save(str(tmp_path / "vocabulary.json"))
    corpus = str(tmp_path / "labelled")
    tokenize_corpus(
        TokenizeConfig(
            source=(str(source),), vocabulary=str(tmp_path / "vocabulary.json"), output=corpus, obs_columns=tuple(obs)
        )
    )
    save_model(new_masked_lm("tiny", vocabulary, 16, 0), vocabulary, {}, str(tmp_path / "parent"))
    return {
        "corpus": corpus,
        "model": str(tmp_path / "parent"),
        "task": str(tmp_path / "task.toml"),
        "output": str(tmp_path / "tuned"),
        "epochs": 12,
        "batch_size": 10,
        "learning_rate": 1e-3,
        "threads": 1,
        "cpus_per_worker": 0.5,
        "tracking_uri": "none",
        "log_every": 1,
        "validate_every": 5,
    }


def write_task(options: dict[str, object], label: str, split: str) -> None:
    text = f'task = "cell_classification"\nlabel = "{label}"\n[split]\n{split}\n'
    Path(str(options["task"])).write_text(text)


def run_here(options: dict[str, object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command line in this process; return its exit status and what it said last on standard error."""
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    status = 0
    try:
        run_job("finetune", FinetuneConfig, main, words)
    except SystemExit as ended:
        status = int(ended.code or 0)
    lines = capsys.readouterr().err.splitlines()
    return status, lines[-1] if lines else ""


def train_here(config: FinetuneConfig) -> None:
    """Do the same without Ray, undisturbed."""
    corpus, task_config = Corpus.open(config.corpus), read_task(config.task)
    task, parent = task_config.open(corpus), open_model(config.model)[1]
    plans = make_plans(config, corpus, parent, task, task_config, "0" * 12)
    outcomes: list[Outcome] = []
    for plan in plans:
        outcomes.append(run_plan(plan.following(outcomes), LocalSession(), CPU))
    tested = [plan.answers() for plan in plans if plan.part == TRAIN]
    report = Path(f"{config.output}.report")
    report.mkdir()
    write_report(report, task.results(tested), task.folds, "title", task.details(tested))
    publish(plans[-1].following(outcomes[:-1]), corpus, {}, config.output)


@pytest.mark.chaos
def test_a_killed_job_repeats_no_finished_fold(options: dict[str, object], tmp_path: Path) -> None:
    """Killed in the second of three folds; the report is that of a quiet run."""
    import ray

    write_task(options, "local", 'kind = "grouped"\ngroup = "donor"\nfolds = 3')
    where = {"RAY_ADDRESS": str(ray.get_runtime_context().gcs_address)}
    log, again, beside = tmp_path / "log", tmp_path / "again", tmp_path / "quiet"
    job = start_job("finetune", options, log, **where)
    training = Path(f"{options['output']}.training")
    while not list(training.glob("*-1-0/step-*/checkpoint.json")):
        assert job.poll() is None, log.read_text()[-3000:]
        time.sleep(0.005)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    (answers,) = training.glob("*-0-0.npz")
    before = answers.stat().st_mtime_ns
    resumed = start_job("finetune", options, again, **where)
    while training.exists() and resumed.poll() is None:
        after = answers.stat().st_mtime_ns if answers.exists() else before
        assert after == before
        time.sleep(0.05)
    assert resumed.wait(240) == 0, again.read_text()[-3000:]
    steps = {
        name: [int(s) for s in re.findall(rf"{name}, step (\d+) of", again.read_text())]
        for name in ("fold 0", "fold 1")
    }
    assert steps["fold 0"] == []
    assert steps["fold 1"][0] > 5
    assert "fold 1, going on from the checkpoint of step" in again.read_text()
    train_here(FinetuneConfig(**{**options, "output": str(beside)}))  # type: ignore[arg-type]
    told = [json.loads((Path(f"{uri}.report") / "metrics.json").read_text()) for uri in (options["output"], beside)]
    assert told[0] == told[1]
    (unseen,) = told[0]["tested_but_not_trained_on"]
    assert (unseen["class"], unseen["cells"]) == ("only in d2", 3)
    assert f"tested on, but never trained on: 'local: only in d2 (fold {unseen['fold']}, 3 cells)'" in again.read_text()
    weights = [(Path(str(uri)) / "model.safetensors").read_bytes() for uri in (options["output"], beside)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("label", "split", "message"),
    [
        (
            "rare",
            "folds = 3",
            "every class must have at least 3 cells; found 'alone (1)'. Leave them out with min_cells = 3",
        ),
        (
            "local",
            'kind = "grouped"\ngroup = "donor"\nfolds = 3\nrefuse_unseen = true',
            "every class that is tested on must be trained on; found 'local: only in d2 (fold",
        ),
        (
            "kind",
            "test_fraction = 0.001",
            "a stratified split needs enough cells, classes and groups; found The test_size",
        ),
        ("kind", 'kind = "grouped"\ngroup = "donor"\nfolds = 7', "at least 7 groups; found 6 in 'donor'"),
        ("kind", 'column = "donor"', "column 'donor' must hold train, validation, test or nothing; found 'd0'"),
        ("kind", 'column = "all"', "no part of a split may be empty; found no cells for test in fold 0"),
        ("colour", "folds = 2", "'colour'; kept: "),
    ],
)
def test_bad_labels_and_splits_are_one_line(
    options: dict[str, object], label: str, split: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(options, label, split)
    status, last = run_here(options, capsys)
    assert status == 2
    assert last.startswith("error: ")
    assert message in last
    assert not Path(f"{options['output']}.training").exists()


def test_a_model_of_another_vocabulary_is_refused(
    options: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = GeneVocabulary.from_medians(dict.fromkeys(GENES[5:35], 1.0), "v1", "ensembl", input_size=16)
    save_model(new_masked_lm("tiny", other, 16, 0), other, {}, str(tmp_path / "other"))
    write_task(options, "kind", "folds = 2")
    status, last = run_here({**options, "model": tmp_path / "other"}, capsys)
    assert status == 2
    assert f"model {tmp_path / 'other'}" in last
    assert str(options["corpus"]) in last
    assert "vocabular" in last
