"""Screen on a cluster of two nodes and kill one of them half-way; run by a test in a process of its own."""

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from cellray.data.session import ensure_ray
from cellray.infer.screen import ScreenConfig, screen


def main(config_file: str) -> None:
    """Start, lose a node, finish."""
    config = ScreenConfig.model_validate_json(Path(config_file).read_text())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    ensure_ray()

    def lose() -> None:
        while len(list(Path(config.output).glob("shards/*.parquet"))) < 20:
            time.sleep(0.01)
        cluster.remove_node(second, allow_graceful=False)
        print(f"lost a node after {len(list(Path(config.output).glob('shards/*.parquet')))} parts", flush=True)  # noqa: T201

    thread = threading.Thread(target=lose)
    thread.start()
    screen(config)
    thread.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
