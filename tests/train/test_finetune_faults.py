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

from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.model.checkpoint import save_model
from cellray.model.masked_lm import new_masked_lm
from cellray.train.finetune import FinetuneConfig
from cellray.vocabulary import GeneVocabulary
from jobs._run import run_job
from jobs.finetune import main
from tests.conftest import GENES, random_counts
from tests.train.jobs import start_job

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]

CELLS = 90


@pytest.fixture
def options(make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path) -> dict[str, object]:
    """Options of a job; the corpus has a label with one cell, one of a single donor, and one that is always missing."""
    kind = np.array(["a", "b", "c"])[np.arange(CELLS) % 3].astype(object)
    donor = np.array([f"d{i // 15}" for i in range(CELLS)], object)
    rare, local = kind.copy(), kind.copy()
    rare[7], local[donor == "d2"] = "alone", "only in d2"
    counts = random_counts(CELLS, len(GENES), seed=1).toarray()
    counts[np.arange(CELLS), np.arange(CELLS) % 3 + 3] = 200
    parts = np.where(np.arange(CELLS) < 80, "train", "test")
    obs = {"kind": kind, "donor": donor, "rare": rare, "local": local, "part": parts, "none": [None] * CELLS}
    source = make_h5ad(x=counts.astype(np.float32), obs={name: pd.Series(v, dtype="object") for name, v in obs.items()})
    vocabulary.save(str(tmp_path / "vocabulary.json"))
    corpus = str(tmp_path / "labelled")
    columns = tuple(name for name in obs if name != "none")
    tokenize_corpus(
        TokenizeConfig(
            source=(str(source),), vocabulary=str(tmp_path / "vocabulary.json"), output=corpus, obs_columns=columns
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


def test_a_killed_job_repeats_no_finished_fold(options: dict[str, object], tmp_path: Path) -> None:
    """Killed in the second of three folds; the report is that of a quiet run."""
    import ray

    write_task(options, "kind", 'kind = "grouped"\ngroup = "donor"\nfolds = 3')
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
    steps = {name: [int(s) for s in re.findall(rf"{name}, step (\d+) of", again.read_text())] for name in ("fold 0", "fold 1")}
    assert steps["fold 0"] == []
    assert steps["fold 1"][0] > 5
    assert "fold 1, going on from the checkpoint of step" in again.read_text()
    assert start_job("finetune", {**options, "output": beside}, log, **where).wait(240) == 0, log.read_text()[-3000:]
    told = [json.loads((Path(f"{uri}.report") / "metrics.json").read_text()) for uri in (options["output"], beside)]
    assert told[0] == told[1]
    weights = [(Path(str(uri)) / "model.safetensors").read_bytes() for uri in (options["output"], beside)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("label", "split", "changes", "message"),
    [
        ("rare", 'kind = "stratified"\nfolds = 3', {}, "xx"),
        ("kind", 'kind = "stratified"\ntest_fraction = 0.001', {}, "xx"),
        ("kind", 'kind = "grouped"\ngroup = "donor"\nfolds = 7', {}, "xx"),
        ("kind", 'kind = "stratified"\ncolumn = "donor"', {}, "xx"),
    ],
)
def test_bad_splits_are_one_line(
    options: dict[str, object],
    label: str,
    split: str,
    changes: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_task(options, label, split)
    status, last = run_here({**options, **changes}, capsys)
    assert (status, last) == (2, message)
