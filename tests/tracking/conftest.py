"""MLflow stores for tests: one SQLite file for the session, a real server on loopback, an experiment a test."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from transformers import BertForMaskedLM

from cellray.model.checkpoint import save_model
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary
from tests.ports import free_port


@pytest.fixture(scope="session")
def _tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite file with MLflow's tables, which take seconds to create."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tracking URI of an empty SQLite store; artifacts and downloaded models stay in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
    shutil.copyfile(_tables, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mlflow server` on a folder until the block is left."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "kept")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        _await_answer(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # its own session: the server and its workers, though one of them may have ended
        process.wait()


def _await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def server_folder(_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(_tables, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def server(server_folder: Path) -> Iterator[str]:
    """URL of a real MLflow server."""
    port = free_port()
    with serving(server_folder, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def make_model(vocabulary_v2: GeneVocabulary, tmp_path: Path) -> Callable[..., str]:
    """Write a model directory; another seed gives other weights."""

    def make(name: str, seed: int = 0, **provenance: object) -> str:
        torch.manual_seed(seed)
        model = BertForMaskedLM(bert_config("tiny", vocabulary_v2, 16))
        save_model(model, vocabulary_v2, {"corpus_digest": "c0ffee", **provenance}, str(tmp_path / name))
        return str(tmp_path / name)

    return make
