"""Tokenize on a cluster of two nodes and kill one of them half-way; run by a test in a process of its own."""

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from cellray.data.session import ensure_ray
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus


def main(source: str, vocabulary: str, output: str, cells_per_shard: str) -> None:
    """Start, lose a node, finish."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    ensure_ray()
    config = TokenizeConfig(
        source=(source,),
        vocabulary=vocabulary,
        output=output,
        obs_columns=("kind",),
        cells_per_shard=int(cells_per_shard),
    )

    def lose() -> None:
        while len(list(Path(output).glob("shards/*.parquet"))) < 20:
            time.sleep(0.01)
        cluster.remove_node(second, allow_graceful=False)
        print(f"lost a node after {len(list(Path(output).glob('shards/*.parquet')))} shards", flush=True)  # noqa: T201

    thread = threading.Thread(target=lose)
    thread.start()
    tokenize_corpus(config)
    thread.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
