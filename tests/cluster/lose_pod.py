"""Drain a node of a small cluster as Kubernetes would before it stops a pod; run by a test in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from tests.cluster.crd import CLUSTER

BUSY_S = 12


@ray.remote(num_cpus=1)
class Worker:
    """Work that takes a while."""

    def work(self, seconds: float) -> str:
        """Take the time."""
        time.sleep(seconds)
        return "whole"


def main() -> None:
    """Begin work on a node, stop its pod, see how long that waits."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    worker = Worker.remote()
    ray.get(worker.work.remote(0))
    result, began = worker.work.remote(BUSY_S), time.monotonic()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(CLUSTER / "drain.sh"), "60", "--node-id", node.node_id]
    stopping = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": cluster.address, "PATH": path})
    print("work", ray.get(result), flush=True)  # noqa: T201
    print("waited for it", stopping.poll() is None, flush=True)  # noqa: T201
    ray.kill(worker)
    print("status", stopping.wait(), flush=True)  # noqa: T201
    print("did not wait longer", time.monotonic() - began < BUSY_S + 20, flush=True)  # noqa: T201
    while any(each["Alive"] and each["NodeID"] == node.node_id for each in ray.nodes()):
        time.sleep(0.1)
    [gone] = [each for each in ray.nodes() if each["NodeID"] == node.node_id]
    print("the node left because", gone["DeathReasonMessage"], flush=True)  # noqa: T201
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
