"""Train on a cluster whose nodes come and go; run by a test in a process of its own.

The head has no CPU for workers. A node joins a training that may grow; the one it began on is drained, as before a spot
machine is taken away, and then taken away.
"""

import logging
import sys
import threading
import time
from pathlib import Path

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from cellray.data.session import ensure_ray
from cellray.train.pretrain import PretrainConfig, pretrain
from tests.train.jobs import newest_step

DEADLINE_S = 60


def drain(cluster: Cluster, node_id: str) -> None:
    """Announce that a node will be taken away."""
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    until_ms = int((time.time() + DEADLINE_S) * 1000)
    accepted, why = GcsClient(address=cluster.address).drain_node(node_id, reason, "taken away", until_ms)
    assert accepted, why


def workers_of(node_id: str) -> int:
    """Return the training workers that run on a node."""
    actors = ray._private.state.actors().values()
    alive = [each for each in actors if each["State"] == "ALIVE" and "RayTrainWorker" in each["ActorClassName"]]
    return sum(each["Address"]["NodeID"] == node_id for each in alive)


def wait_until(what: str, done: object) -> None:
    """Wait for a function to return something true, and say so."""
    until = time.monotonic() + 120
    while not done():  # type: ignore[operator]
        assert time.monotonic() < until, f"never {what}"
        time.sleep(0.02)
    print(what, flush=True)  # noqa: T201


def main(config: PretrainConfig) -> None:
    """Train while a node joins and another one leaves."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("cellray").setLevel(logging.INFO)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    first = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    ensure_ray()
    trained = threading.Thread(target=pretrain, args=(config,))
    trained.start()
    wait_until("started", lambda: newest_step(config.output) > 10)
    cluster.add_node(num_cpus=1)
    if config.num_workers[1] > 1:
        log = Path(config.output).with_name("out.txt")
        wait_until("grown", lambda: "with 2 worker(s)" in log.read_text())
        now = newest_step(config.output)
        wait_until("further", lambda: newest_step(config.output) > now + 10)
    print(f"drained after step {newest_step(config.output)}", flush=True)  # noqa: T201
    drain(cluster, first.node_id)
    wait_until("left", lambda: workers_of(first.node_id) == 0)
    cluster.remove_node(first, allow_graceful=False)
    print("gone", flush=True)  # noqa: T201
    trained.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(PretrainConfig.model_validate_json(sys.argv[1]))
