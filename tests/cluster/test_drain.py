"""A pod that is to be stopped: Ray is told, work ends, and the pod does not wait longer than that."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.chaos
@pytest.mark.own_ray
def test_a_worker_is_drained_before_it_is_stopped() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "tests.cluster.lose_pod"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert made.stdout.splitlines() == [
        "work whole",
        "waited for it True",
        "status 0",
        "did not wait longer True",
        "the node left because the pod is being deleted",
    ]
