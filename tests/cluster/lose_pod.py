"""Drain a node of a small cluster as Kubernetes would before it stops a pod; run by a test in a process of its own.

The node has a process table of its own, as in a pod: that is where Ray finds which node it is on. Told to stop, it runs
the command of the manifests, with nothing but the environment of a pod.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from tests.cluster.crd import CLUSTER

BUSY_S = 12
POD = """
ray start --address "$RAY_ADDRESS" --num-cpus 1 --object-store-memory 100000000 --disable-usage-stats > started 2>&1
touch up
until [ -e stop ]; do sleep 0.1; done
"$DRAIN" 60 2> said
echo $? > status
until [ -e over ]; do sleep 0.1; done
"""
"""A pod: Ray, and when it is to be stopped what is called before that."""


def wait_for(path: Path, seconds: float = 90) -> Path:
    """Wait until a file is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name} after {seconds} s"
        time.sleep(0.1)
    return path


@ray.remote(num_cpus=1)
class Worker:
    """Work that takes a while."""

    def work(self, seconds: float) -> str:
        """Take the time."""
        time.sleep(seconds)
        return "whole"


def main(folder: Path) -> None:
    """Begin work on a node, stop its pod, see how long that waits."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "PATH": path, "DRAIN": str(CLUSTER / "drain.sh")}
    own = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    pod = subprocess.Popen([*own, "bash", "-c", POD], env=environment, cwd=folder)
    wait_for(folder / "up")
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    worker = Worker.remote()
    node = ray.get(worker.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))
    result, began = worker.work.remote(BUSY_S), time.monotonic()
    (folder / "stop").touch()
    print("work", ray.get(result), flush=True)  # noqa: T201
    print("waited for it", not (folder / "status").exists(), flush=True)  # noqa: T201
    ray.kill(worker)
    print("status", wait_for(folder / "status").read_text().strip(), flush=True)  # noqa: T201
    print("did not wait longer", time.monotonic() - began < BUSY_S + 20, flush=True)  # noqa: T201
    while any(each["Alive"] and each["NodeID"] == node for each in ray.nodes()):
        time.sleep(0.1)
    [gone] = [each for each in ray.nodes() if each["NodeID"] == node]
    print("the node left because", gone["DeathReasonMessage"], flush=True)  # noqa: T201
    print((folder / "said").read_text(), file=sys.stderr)  # noqa: T201
    ray.shutdown()
    (folder / "over").touch()
    pod.wait(30)
    cluster.shutdown()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="cellray-pod-") as place:
        main(Path(place))
