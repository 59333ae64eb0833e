"""Checkpoints on storage that fails: an upload that is cut, an object that is cut, a slow store, a full disk."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from cellray import storage
from cellray.train.checkpoints import Checkpoints
from cellray.train.pretrain import PretrainConfig
from cellray.train.turn import Turn
from cellray.train.worker import run_plan
from tests.conftest import REPOSITORY
from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3 import forget_connections, s3_environment
from tests.train.jobs import last_line, start_job
from tests.train.local import CPU, LocalSession, plan_of, train

pytestmark = pytest.mark.usefixtures("ray_session")  # the corpus is made on it


@pytest.fixture
def config(corpus: str, tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        corpus=corpus,
        output=str(tmp_path / "model"),
        max_steps=24,
        batch_size=16,
        validate_every=6,
        log_every=1,
        warmup_steps=2,
        validation_fraction=0.1,
        threads=1,
        tracking_uri="none",
    )


def final(config: PretrainConfig) -> tuple[int, str]:
    """Return the step and the weights' digest of the newest checkpoint."""
    with plan_of(config).store().newest() as found:
        assert found is not None
        return int(found[1]["step"]), found[1]["files"]["model_state.safetensors"]["sha256"]


def quiet(config: PretrainConfig, tmp_path: Path) -> tuple[int, str]:
    """Return the same of an undisturbed training on a local disk."""
    beside = config.model_copy(update={"output": str(tmp_path / "quiet")})
    train(beside)
    return final(beside)


def test_a_killed_upload_is_passed_over(
    config: PretrainConfig, bucket: str, s3_endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The optimiser's state of step 12 is on its way when the process is killed; then step 6 is cut, too."""
    remote = config.model_copy(update={"output": f"{bucket}/model"})
    store = plan_of(remote).store()
    with FaultyProxy(s3_endpoint, [Fault("stall", operations=["PUT", "POST"], key="step-00000012/optim")]) as proxy:
        proxy.stall_s = 120
        environment = {**os.environ, **s3_environment(proxy.url), "PYTHONPATH": str(REPOSITORY / "platform")}
        environment["TMPDIR"] = str(tmp_path)
        command = [sys.executable, "-m", "tests.train.train_alone", remote.model_dump_json()]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE)
        while not proxy.injected:
            assert process.poll() is None, process.communicate()[1].decode()[-2000:]
            time.sleep(0.01)
        process.kill()
        process.communicate()
    assert store.steps() == [6]
    assert storage.exists(f"{store.uri}/step-00000012/model_state.safetensors")
    (left,) = tmp_path.glob("cellray-checkpoint-*")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        assert train(remote).steps == 24
    assert not left.exists()  # what the killed process left on this machine
    assert final(remote) == quiet(config, tmp_path)

    cut = f"{store.uri}/step-00000024/optimizer_state.safetensors"
    storage.write_bytes(cut, storage.read_bytes(cut)[:1000])
    session = LocalSession()
    train(remote, session)
    assert min(session.history("train_loss")) == 19
    assert any(
        "step-00000024: this checkpoint is broken (optimizer_state.safetensors was cut" in n for n in session.notes
    )
    assert "this checkpoint is broken" in caplog.text
    assert final(remote) == quiet(config, tmp_path)


class NotedSession(LocalSession):
    """Keeps the step at which each note came, too."""

    def report(
        self, metrics: Mapping[str, float], notes: Sequence[str], earlier: Sequence[Mapping[str, float]] = ()
    ) -> None:
        super().report(metrics, [f"{metrics['step']}: {note}" for note in notes], earlier)


@pytest.mark.chaos
def test_training_goes_on_during_an_upload(config: PretrainConfig, bucket: str, s3_endpoint: str) -> None:
    with FaultyProxy(s3_endpoint, latency_s=0.4) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        forget_connections()
        changes = {"output": f"{bucket}/slow", "max_steps": 300, "validate_every": 150}
        session = NotedSession()
        outcome = train(config.model_copy(update=changes), session)
    forget_connections()
    (note,) = [each for each in session.notes if "checkpoint of step 150:" in each]
    assert int(note.split(":")[0]) > 155  # steps are done meanwhile
    (size,) = session.history("checkpoint_mb").values()
    assert size > 1
    assert session.history("checkpoint_s").keys() == session.history("checkpoint_mb").keys()
    assert outcome.figures["checkpoint_s"] > 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk that holds one checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)


def test_a_full_disk_ends_training_only_if_it_stays_full(
    config: PretrainConfig, small_disk: Path, tmp_path: Path
) -> None:
    on_disk = config.model_copy(update={"output": str(small_disk / "model")})
    session = LocalSession()
    outcome = train(on_disk, session)
    assert outcome.error.startswith("the last checkpoint could not be written (")
    assert "No space left on device" in outcome.error
    assert "the newest one is of step 6. Make room" in outcome.error
    told = [note for note in session.notes if note.startswith("a checkpoint could not be written")]
    assert len(told) == 2  # of steps 12 and 18
    assert all("the newest one is step 6" in note for note in told)
    assert not list(small_disk.rglob("*.tmp"))
    grow(small_disk)
    again = LocalSession()
    assert train(on_disk, again).error == ""
    assert min(again.history("train_loss")) == 7
    assert final(on_disk) == quiet(config, tmp_path)


def test_room_that_is_made_in_time_is_used(config: PretrainConfig, small_disk: Path, tmp_path: Path) -> None:
    class Making(LocalSession):
        def report(self, metrics: Mapping[str, float], *rest: Sequence[str]) -> None:  # type: ignore[override]
            super().report(metrics, *rest)
            if metrics["step"] == 13:
                grow(small_disk)

    on_disk, session = config.model_copy(update={"output": str(small_disk / "model")}), Making()
    assert train(on_disk, session).error == ""
    assert any("could not be written" in note for note in session.notes)
    assert plan_of(on_disk).store().steps() == [18, 24]
    assert final(on_disk) == quiet(config, tmp_path)


@pytest.mark.chaos
def test_a_job_on_a_full_disk(config: PretrainConfig, small_disk: Path, tmp_path: Path) -> None:
    config, log = config.model_copy(update={"output": str(small_disk / "model")}), tmp_path / "log"
    options = config.model_dump(exclude_defaults=True)
    assert start_job("pretrain", options, log).wait(240) == 1
    assert last_line(log).startswith("error: the last checkpoint could not be written (")
    assert "run the same command again" in last_line(log)
    assert log.read_text().count("a checkpoint could not be written") == 2
    grow(small_disk)
    assert start_job("pretrain", options, log).wait(240) == 0, log.read_text()[-2000:]


def test_who_comes_later_takes_over(config: PretrainConfig, tmp_path: Path) -> None:
    from dataclasses import replace

    mine = Turn.take(str(tmp_path / "model.training"))
    assert not mine.lost(at_once=True)

    class Overtaken(LocalSession):
        def report(self, metrics: Mapping[str, float], *rest: Sequence[str]) -> None:  # type: ignore[override]
            super().report(metrics, *rest)
            if metrics["step"] == 7:
                Turn.take(mine.folder)
                mine._looked = 0.0  # as if it had not looked for a while

    session = Overtaken()
    outcome = run_plan(replace(plan_of(config), turn=mine), session, CPU)
    assert outcome.error.startswith("another job took over this output")
    assert outcome.steps == 7
    late = Checkpoints(plan_of(config).checkpoints, turn=mine)
    before = late.steps()
    late.save(8, None, {}, None)  # type: ignore[arg-type]  # it is not written
    late.finish()
    assert late.steps() == before == [6]
