"""Reading a sparse h5ad through an S3 server with latency: how the blocks are cached and fetched ahead.

The server and the proxy that adds the latency run in a process of their own. Every way reads the same rows in the same
blocks and must give the same sum.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
from scipy import sparse

from cellray import storage
from cellray.data.sources.anndata_store import AnnDataSource
from cellray.read_ahead import ReadAheadBlocks
from tests.s3 import s3_environment

CELLS, GENES, PER_CELL, READ_CELLS = 5_000, 20_000, 2_000, 1024
MIB = 1 << 20
WAYS: dict[str, tuple[int, str, dict[str, int]]] = {
    "blockcache 4 MiB": (4 * MIB, "blockcache", {"maxblocks": 12}),
    "blockcache 16 MiB": (16 * MIB, "blockcache", {"maxblocks": 4}),
    "readahead 4 MiB": (4 * MIB, "readahead", {}),
    "background 4 MiB": (4 * MIB, "background", {"maxblocks": 12}),
    "background 8 MiB": (8 * MIB, "background", {"maxblocks": 6}),
    **{
        f"ours {size} MiB, {ahead} ahead": (size * MIB, ReadAheadBlocks.name, {"ahead": ahead, "keep": 48 // size})
        for size, ahead in ((4, 0), (4, 1), (4, 2), (4, 4), (8, 0), (8, 1), (8, 2))
    },
}
"""Name to block size, kind of fsspec cache and its options."""


def serve(pipe: Connection, latency_s: float, bytes_per_s: float | None) -> None:
    """Run the server and the proxy; send the address, then the number of requests whenever asked."""
    from moto.server import ThreadedMotoServer

    from tests.faulty_proxy import FaultyProxy

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with FaultyProxy("http://{}:{}".format(*server.get_host_and_port()), bytes_per_s=bytes_per_s) as proxy:
        pipe.send(proxy.url)
        while pipe.recv():
            pipe.send(sum(proxy.requests.values()))
            proxy.fail()
            proxy.latency_s = latency_s
    server.stop()


def make(path: Path, compression: str | None) -> None:
    """Write an h5ad of made-up counts."""
    rng = np.random.default_rng(0)
    columns = np.sort(rng.integers(0, GENES // PER_CELL, (CELLS, PER_CELL)) + np.arange(PER_CELL) * (GENES // PER_CELL))
    counts = rng.geometric(0.4, CELLS * PER_CELL).astype(np.float32)
    indptr = np.arange(CELLS + 1) * PER_CELL
    x = sparse.csr_matrix((counts, columns.ravel().astype(np.int32), indptr), (CELLS, GENES))
    anndata.AnnData(x).write_h5ad(path, compression=compression)


def read(uri: str, way: tuple[int, str, dict[str, int]]) -> tuple[float, float]:
    """Return seconds and the sum of the counts of all blocks."""
    size, kind, options = way
    fs, path = storage.filesystem(uri)
    began = time.perf_counter()
    stream: Any = fs.open(path, "rb", block_size=size, cache_type=kind, cache_options=options)
    total = 0.0
    with stream, AnnDataSource(uri, "X", h5py.File(stream, "r"), lambda: None) as source:
        for block in source.blocks(0, source.n_cells, READ_CELLS):
            total += float(np.sort(block.counts).sum())  # some work between reads, as encoding is
    return time.perf_counter() - began, total


def main() -> None:
    """Print a table: seconds, as a ratio to the plain block cache, and requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=30)
    parser.add_argument("--mib-per-s", type=float, default=0, help="of one connection; 0: no limit")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    here, there = multiprocessing.get_context("spawn").Pipe()
    rate = given.mib_per_s * MIB or None
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, given.latency_ms / 1e3, rate))
    server.start()
    os.environ.update(s3_environment(here.recv()))
    storage.filesystem("s3://cells")[0].mkdir("cells")
    with tempfile.TemporaryDirectory() as folder:
        for compression in ("gzip", None):
            path = Path(folder) / f"{compression}.h5ad"
            make(path, compression)
            uri = f"s3://cells/{path.name}"
            storage.write_bytes(uri, path.read_bytes())
            print(f"{compression}: {path.stat().st_size / MIB:.0f} MiB, {CELLS:,} cells of {PER_CELL:,} genes")
            compare(uri, given.rounds, here)
    here.send(0)
    server.join()


def compare(uri: str, rounds: int, server: Connection) -> None:
    """Read one file in every way, the ways in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    requests, sums = {}, set()
    server.send(1)
    server.recv()
    for _ in range(rounds):
        for name, way in WAYS.items():
            spent, total = read(uri, way)
            seconds[name].append(spent)
            sums.add(total)
            server.send(1)
            requests[name] = server.recv()
    assert len(sums) == 1
    plain = min(seconds["blockcache 4 MiB"])
    for name, spent in seconds.items():
        print(f"  {name:24} {min(spent):6.2f} s  {plain / min(spent):5.2f} x  {requests[name]:4d} requests")


if __name__ == "__main__":
    main()
