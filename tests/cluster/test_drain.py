"""A pod that is to be stopped: Ray is told, work ends, and the pod does not wait longer than that."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.crd import CLUSTER
from tests.cluster.objects import at, clusters
from tests.conftest import REPOSITORY

STRANGER = 65534
"""A user that owns nothing, as whom it runs where tests run as root."""
FAKES = {
    # `pgrep -af` prints a number and a title of each process: here a line of `processes` a look, the last for ever
    "pgrep": 'head -n 1 processes\nif [ "$(wc -l < processes)" -gt 1 ]; then tail -n +2 processes > next; '
    "cat next > processes; fi",
    "ray": 'printf "%s\\n" "$@" > told\nprintf "%s" "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" > token\nexit "$(cat answer)"',
    "sleep": "echo >> slept",
}
IDLE, AGENT, BUSY = "7 ray::IDLE", "8 ray::DashboardAgent", "9 ray::Worker.work"
COMMANDS = sorted(
    {
        tuple(command)
        for cluster in clusters().values()
        for command in at(cluster, "workerGroupSpecs.*.template.spec.containers.*.lifecycle.preStop.exec.command")
    }
)


@dataclass(frozen=True)
class Pod:
    """What a container has of its image: the script by its name there, and programs that stand for Ray and its work."""

    folder: Path

    def stop(self, command: tuple[str, ...], processes: tuple[str, ...], answer: int = 0, fakes: str = "") -> float:
        """Run the command that comes before the end as a stranger, and return how long it took [s]."""
        for name, text in {"processes": "\n".join(processes) + "\n", "answer": str(answer)}.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o666)
        for name in fakes.split() or FAKES:
            (self.folder / "bin" / name).write_text(f"#!/bin/sh\n{FAKES[name]}\n")
            (self.folder / "bin" / name).chmod(0o755)
        began = time.monotonic()
        made = subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.folder,
            env={"PATH": f"{self.folder}/bin:/usr/bin:/bin", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "abc"},
            user=STRANGER if os.getuid() == 0 else None,
            capture_output=True,
            text=True,
            check=False,
        )
        (self.folder / "said").write_text(made.stderr)
        assert made.returncode == 0  # Kubernetes would tell of anything else as a failed hook
        return time.monotonic() - began

    def read(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def pod() -> Iterator[Pod]:
    folder = Path(tempfile.mkdtemp(prefix="cellray-pod-"))  # tmp_path is shut to other users
    folder.chmod(0o777)
    (folder / "bin").mkdir(mode=0o755)
    shutil.copy(CLUSTER / "drain.sh", folder / "bin" / "cellray-drain")
    yield Pod(folder)
    shutil.rmtree(folder)


def test_pods_call_the_script_alike() -> None:
    assert COMMANDS == [("cellray-drain", "60"), ("cellray-drain", "90")]


@pytest.mark.parametrize("command", COMMANDS)
def test_ray_is_told_with_the_token_and_finds_the_node_itself(pod: Pod, command: tuple[str, ...]) -> None:
    pod.stop(command, (IDLE,))
    options = pod.read("told")
    assert options[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert options[-2:] == ["--deadline-remaining-seconds", command[1]]
    assert "--node-id" not in options
    assert "" not in options
    assert pod.read("token") == ["token abc"]
    assert pod.read("slept") == []  # a node without work is left at once
    assert pod.read("said") == []


def test_it_waits_until_the_work_has_left(pod: Pod) -> None:
    pod.stop(("cellray-drain", "90"), (BUSY, BUSY, BUSY, AGENT))
    assert len(pod.read("slept")) == 3


def test_it_does_not_wait_longer_than_it_was_told(pod: Pod) -> None:
    assert pod.stop(("cellray-drain", "2"), (BUSY,), fakes="pgrep ray") < 60
    assert pod.read("told")[-1] == "2"


def test_a_ray_that_cannot_be_told_is_no_reason_to_cut_work_off(pod: Pod) -> None:
    pod.stop(("cellray-drain", "90"), (BUSY, BUSY, IDLE), answer=1)
    assert pod.read("said") == ["cellray-drain: Ray could not be told"]
    assert len(pod.read("slept")) == 2


def test_ray_finds_its_node_by_the_process_that_the_pod_has() -> None:
    """What `ray drain-node` without `--node-id` rests on."""
    import inspect

    from ray._private import services

    assert "find_node_ids()" in inspect.getsource(services.get_node_to_connect_for_driver)
    assert '"--node_id"' in inspect.getsource(services.find_node_ids)


@pytest.mark.chaos
@pytest.mark.own_ray
def test_a_worker_is_drained_before_it_is_stopped() -> None:
    """As the pods do it: by the real command, without naming the node, with the token of the environment."""
    if subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], check=False).returncode:
        pytest.skip("a process table of its own needs more rights than there are")
    made = subprocess.run(
        [sys.executable, "-m", "tests.cluster.lose_pod"],
        cwd=REPOSITORY,
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert "could not be told" not in made.stderr
    assert made.stdout.splitlines() == [
        "work whole",
        "waited for it True",
        "status 0",
        "did not wait longer True",
        "the node left because the pod is being deleted",
    ]
