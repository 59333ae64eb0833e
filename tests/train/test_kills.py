"""Killed workers and killed jobs: the trained weights and the record are those of a quiet run."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from cellray.data.corpora.corpus import Corpus
from cellray.errors import TrainingError
from cellray.train.pretrain import PretrainConfig, pretrain
from cellray.train.state import load_weights
from tests.processes import kill_worker, ray_workers
from tests.tracking.conftest import _tables, store
from tests.train.jobs import last_line, newest_step, recorded_history, start_job, wait_for_step
from tests.train.local import CPU, LocalSession, plan_of, train
from tests.train.test_group import train_in_group

__all__ = ["_tables", "store"]  # fixtures of another file

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1200)]

TRACE = ("train_loss", "validation_loss")


@pytest.fixture
def config(corpus: str, store: str, tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        corpus=corpus,
        output=str(tmp_path / "model"),
        max_steps=60,
        batch_size=16,
        validate_every=5,
        log_every=1,
        warmup_steps=2,
        validation_fraction=0.1,
        threads=1,
        cpus_per_worker=0.5,
        tracking_uri=store,
        experiment="tests",
    )


def quiet(config: PretrainConfig, tmp_path: Path) -> tuple[dict[str, torch.Tensor], LocalSession]:
    """Train without Ray, undisturbed; return the weights and what was reported."""
    config = config.model_copy(update={"output": str(tmp_path / "quiet")})
    if config.num_workers == (1, 1):
        session = LocalSession()
        train(config, session)
    else:
        (session,) = train_in_group([(config, None)], config.num_workers[1], tmp_path, plan_of)
    plan = plan_of(config)
    objective = plan.objective(Corpus.open(config.corpus), CPU, 0)
    with plan.store().newest() as found:
        assert found is not None
        assert found[1]["step"] == config.max_steps
        load_weights(found[0], objective.module)
    return objective.module.model.state_dict(), session  # type: ignore[union-attr, operator]


def require_equal(config: PretrainConfig, tmp_path: Path, *, two_writers: bool = False) -> None:
    """Check weights, and that the one run holds every step once, with the values of a quiet training.

    With two writers a step may stand there twice, with one value.
    """
    weights, session = quiet(config, tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(config.output).state_dict()
    assert all(torch.equal(model[name], weight) for name, weight in weights.items())
    status, history = recorded_history(config.tracking_uri or "", "tests", (*TRACE, "peak_memory_gb", "checkpoint_mb"))
    assert status == "FINISHED"
    assert config.max_steps is not None
    if two_writers:
        history = {name: sorted(set(points)) for name, points in history.items() if name in TRACE}
        assert history == {name: sorted(session.history(name).items()) for name in TRACE}
        return
    assert [step for step, _ in history["train_loss"]] == list(range(1, config.max_steps + 1))
    for name in TRACE:
        assert dict(history[name]) == session.history(name), name
        assert len(history[name]) == len(session.history(name))
    assert len(history["peak_memory_gb"]) == config.max_steps
    assert all(size > 1 for _, size in history["checkpoint_mb"])
    assert not Path(f"{config.output}.training").exists()


@contextmanager
def killer(config: PretrainConfig, kills: int) -> Iterator[list[int]]:
    """Kill a worker each time training has come to a step drawn by chance; yields how far it was.

    All are in the first half: who kills may be late, and there is another half to be so in.
    """
    rng, done, killed = random.Random(kills), threading.Event(), []  # noqa: S311
    assert config.max_steps is not None
    targets = sorted(rng.sample(range(config.max_steps // 2), kills))

    def kill() -> None:
        for target in targets:
            while not done.is_set():
                if (step := newest_step(config.output)) >= target and ray_workers("ray::RayTrainWorker"):
                    time.sleep(rng.random() / 10)
                    if kill_worker(rng, "ray::RayTrainWorker"):
                        killed.append(step)
                        time.sleep(1.0)  # until Ray has noticed
                        break
                done.wait(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("workers", "kills"),
    [(1, 1), *(pytest.param(*each, marks=pytest.mark.chaos) for each in ((2, 1), (1, 10), (2, 10)))],
)
def test_killed_workers(
    config: PretrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int, kills: int
) -> None:
    changes = {"num_workers": (workers, workers), "max_failures": 3 * kills, "max_steps": 40 + 20 * kills}
    config = config.model_copy(update=changes)
    with killer(config, kills) as killed, caplog.at_level("INFO", "cellray"):
        pretrain(config)
    assert len(killed) == kills
    require_equal(config, tmp_path)
    told = [record.getMessage() for record in caplog.records]
    lost = [line for line in told if "(the process was killed, or its machine went away); all start again" in line]
    assert 1 <= len(lost) <= kills  # one that was killed while it started is not a loss
    assert any(line.startswith("going on from the checkpoint of step") and f"with {workers} w" in line for line in told)


def options_of(config: PretrainConfig) -> dict[str, object]:
    return config.model_dump(exclude_defaults=True)


@pytest.fixture
def ray_address(ray_session: None) -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("embedded", "kills"),
    [pytest.param(own, n, marks=pytest.mark.chaos) for own, n in ((False, 1), (True, 10), (False, 10))],
)
def test_killed_jobs(config: PretrainConfig, tmp_path: Path, ray_address: str, embedded: bool, kills: int) -> None:
    """Stopped with Ctrl-C, killed, and run again until it is done; on a cluster, or with a Ray of each job's own."""
    rng, log = random.Random(kills), tmp_path / "log"  # noqa: S311
    where = {} if embedded else {"RAY_ADDRESS": ray_address}
    config = config.model_copy(update={"max_steps": 60 + 40 * kills})
    for signalled in [signal.SIGINT, *[signal.SIGKILL] * kills]:
        job = start_job("pretrain", options_of(config), log, **where)
        wait_for_step(config.output, newest_step(config.output) + 1 + rng.randrange(30), job, log)
        os.kill(job.pid, signalled)
        status = job.wait(60)
        if signalled == signal.SIGINT:
            assert status == 130, log.read_text()[-3000:]
            assert last_line(log) == "error: interrupted; run the same command again to go on"
    assert start_job("pretrain", options_of(config), log, **where).wait(300) == 0, log.read_text()[-3000:]
    assert "Traceback" not in log.read_text()
    require_equal(config, tmp_path)


@pytest.mark.chaos
def test_two_jobs_at_once(config: PretrainConfig, tmp_path: Path) -> None:
    """The one that began last goes on, the other one is told."""
    config = config.model_copy(update={"max_steps": 1500})
    logs = [tmp_path / "first", tmp_path / "second"]
    jobs: list[subprocess.Popen[bytes]] = []
    for number, log in enumerate(logs):
        jobs.append(start_job("pretrain", options_of(config), log))
        wait_for_step(config.output, 10 + 20 * number, jobs[-1], log)
    assert [job.wait(300) for job in jobs] == [1, 0], logs[0].read_text()[-3000:] + logs[1].read_text()[-3000:]
    assert "another job took over this output" in last_line(logs[0])
    require_equal(config, tmp_path, two_writers=True)


def test_a_loss_that_is_not_finite_ends_the_job(config: PretrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = config.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 1e30})
    with pytest.raises(TrainingError) as caught, caplog.at_level("INFO", "cellray"):
        pretrain(config)
    told = str(caught.value)
    assert "the loss became nan at step" in told
    assert "on cells 'cell" in told
    assert told.endswith("Try a lower learning rate, or look at these cells.")
    assert "start again" not in caplog.text  # it would happen again
    assert recorded_history(config.tracking_uri or "", "tests", TRACE)[0] == "FAILED"
