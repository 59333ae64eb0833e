"""Machines that come and go: training grows and shrinks, leaves a machine before it is taken away, loses no step."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cellray.train.pretrain import PretrainConfig
from tests.conftest import REPOSITORY
from tests.tracking.conftest import _tables, store
from tests.train.jobs import recorded_history
from tests.train.local import LocalSession, train

__all__ = ["_tables", "store"]  # fixtures of another file

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]


def train_on_changing_nodes(config: PretrainConfig) -> str:
    """Return what was told."""
    out = Path(config.output).with_name("out.txt")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    environment |= {
        "PYTHONPATH": f"{REPOSITORY / 'platform'}:{REPOSITORY}",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    }
    with out.open("wb") as stream:
        command = [sys.executable, "-m", "tests.train.change_nodes", config.model_dump_json()]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=stream, check=False)
    told = out.read_text()
    assert done.returncode == 0, told[-3000:]
    assert "gone" in told
    return told


@pytest.mark.chaos
@pytest.mark.parametrize("most", [2, 1])
def test_nodes_that_come_and_go(corpus: str, store: str, tmp_path: Path, most: int) -> None:
    config = PretrainConfig(
        corpus=corpus,
        output=str(tmp_path / "model"),
        max_steps=1500,
        batch_size=16,
        validate_every=50,
        log_every=10,
        warmup_steps=2,
        validation_fraction=0.1,
        threads=1,
        num_workers=(1, most),
        resize_interval=1.0,
        tracking_uri=store,
        experiment="tests",
    )
    told = train_on_changing_nodes(config)
    status, history = recorded_history(store, "tests", ("train_loss", "validation_loss"))
    assert status == "FINISHED"
    assert config.max_steps is not None
    assert {step for step, _ in history["train_loss"]} >= set(range(10, config.max_steps + 1, 10))
    assert len({step for step, _ in history["train_loss"]}) == len(history["train_loss"])
    (drained,) = map(int, re.findall(r"drained after step (\d+)", told))
    going = [(int(step.replace(",", "")), int(n)) for step, n in re.findall(r"step ([\d,]+) with (\d) worker", told)]
    assert "a machine is about to be taken away" in told
    after, workers = going[-1]
    assert (workers, after >= drained) == (1, True)
    if most == 2:
        assert [n for _, n in going][:1] == [2]  # grown, then shrunk
        return
    shown = [int(step.replace(",", "")) for step in re.findall(r"step ([\d,]+) of", told)]
    assert shown == sorted(set(shown))  # no step was done twice
    straight = LocalSession()
    train(config.model_copy(update={"output": str(tmp_path / "quiet")}), straight)
    assert dict(history["train_loss"]) == straight.history("train_loss")
