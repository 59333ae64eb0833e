"""Runs a job's script as a user would, in a process of its own, to be killed or watched."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient

from tests.conftest import REPOSITORY


def start_job(name: str, options: Mapping[str, object], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start `python -m jobs.NAME`, on an embedded Ray of its own unless the environment names one."""
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    own |= {"PYTHONPATH": str(REPOSITORY / "platform"), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", **environment}
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", f"jobs.{name}", *words],
            cwd=REPOSITORY,
            env=own,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def last_line(log: Path) -> str:
    """Return what a job said last."""
    lines = log.read_text().splitlines()
    return lines[-1] if lines else ""


def newest_step(output: str) -> int:
    """Return the step of the newest checkpoint beside an output, 0 if there is none."""
    records = Path(f"{output}.training").glob("*/step-*/checkpoint.json")
    try:
        return max((int(path.parent.name.removeprefix("step-")) for path in records), default=0)
    except FileNotFoundError:  # a job that is done clears the folder away, under the eyes of who looks into it
        return 0


def wait_for_step(output: str, step: int, job: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a running job has a checkpoint of a step or of a later one."""
    while newest_step(output) < step:
        assert job.poll() is None, log.read_text()[-3000:]
        time.sleep(0.005)


def recorded_history(
    store: str, experiment: str, names: tuple[str, ...]
) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """Return the status of an experiment's only run, and the points of some metrics."""
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    return run.info.status, {name: [(p.step, p.value) for p in points] for name, points in history.items()}
