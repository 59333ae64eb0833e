"""The server against the offline job: cells a second through HTTP, latencies, overload, bytes of both forms.

V1's architecture with random weights, 512 genes a cell, all on this machine and loopback: clients, HTTP and the model
share its cores. `--seconds` is how long each load lasts.
"""

import argparse
import asyncio
import json
import logging
import os
import resource
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import numpy as np
import torch
from ray import serve
from transformers import BertForMaskedLM

from cellray.api import wire
from cellray.api.schema import EmbeddingRequest
from cellray.api.wire import CellTable
from cellray.infer.embed import embed_rows
from cellray.infer.replicas import TOKEN_BUDGET
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.encoder import load_encoder
from cellray.model.pooling import is_gene_token
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary
from serving.config import ServingConfig
from serving.encoding import Encoder
from serving.starting import address, await_ready, start, start_ray

GENES, TOKENS, CELLS, CLIENTS, THREADS, ROUNDS = 25_424, 512, 16, 8, 2, 5
HEADERS = {"content-type": wire.CELLS, "accept": wire.ARROW_STREAM}


def cells_of(number: int, seed: int) -> CellTable:
    """Random counts of 512 genes a cell, of a file's worth of genes."""
    rng = np.random.default_rng(seed)
    genes = [f"ENSG{i:011d}" for i in range(GENES)]
    columns = np.concatenate([rng.choice(GENES, TOKENS, replace=False) for _ in range(number)]).astype(np.int32)
    counts = rng.poisson(3, number * TOKENS).astype(np.float32) + 1
    return CellTable([f"c{i}" for i in range(number)], genes, np.arange(number + 1) * TOKENS, columns, counts)


def json_of(cells: CellTable) -> dict[str, object]:
    rows = [
        {"id": name, "indices": cells.columns[a:b].tolist(), "counts": cells.counts[a:b].tolist()}
        for name, a, b in zip(cells.ids, cells.indptr[:-1], cells.indptr[1:], strict=True)
    ]
    return {"genes": list(cells.genes), "cells": rows}


class Offline:
    """The job's own code in this process.

    Parameters
    ----------
    model
        Its directory.
    vocabulary
        Of the model.
    """

    def __init__(self, model: str, vocabulary: GeneVocabulary) -> None:
        torch.set_num_threads(THREADS)
        self._encoder = load_encoder(ModelDirectory.open(model), -1)
        self._rows = Encoder(vocabulary, vocabulary.input_size)(cells_of(64, 0)).rows
        self._gene_v = is_gene_token(vocabulary)

    def __call__(self, seconds: float) -> float:
        """Return the cells a second."""
        started, done = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            embed_rows(self._encoder, self._rows, "cell", self._gene_v, TOKEN_BUDGET["cpu"])
            done += len(self._rows.lengths)
        return done / (time.monotonic() - started)


class Answers:
    """What clients were answered, and after how long."""

    def __init__(self) -> None:
        self.seconds: dict[int, list[float]] = {}
        self.others: Counter[str] = Counter()

    async def ask(self, client: httpx2.AsyncClient, body: bytes) -> None:
        started = time.monotonic()
        try:
            answer = await client.post("/v1/embeddings?model=default", content=body, headers=HEADERS)
            self.seconds.setdefault(answer.status_code, []).append(time.monotonic() - started)
        except httpx2.HTTPError as error:
            self.others[type(error).__name__] += 1

    def quantile(self, status: int, q: float) -> float:
        return float(np.quantile(self.seconds.get(status, [np.nan]), q))


async def closed(url: str, body: bytes, clients: int, seconds: float) -> tuple[Answers, float]:
    """Let clients ask one request after the other; return the answers and how long it took."""
    made, until = Answers(), time.monotonic() + seconds

    async def one(client: httpx2.AsyncClient) -> None:
        while time.monotonic() < until:
            await made.ask(client, body)

    limits = httpx2.Limits(max_connections=clients)
    started = time.monotonic()
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return made, time.monotonic() - started


async def opened(url: str, body: bytes, a_second: float, seconds: float) -> tuple[Answers, float]:
    """Send requests at a rate, whatever becomes of them."""
    made, tasks = Answers(), []
    limits = httpx2.Limits(max_connections=512)
    started = time.monotonic()
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        for number in range(int(a_second * seconds)):
            await asyncio.sleep(max(0.0, started + number / a_second - time.monotonic()))
            tasks.append(asyncio.create_task(made.ask(client, body)))
        within = sum(len(times) for status, times in made.seconds.items() if status == 200)
        elapsed = time.monotonic() - started
        await asyncio.gather(*tasks)
    made.others["within"] = within
    return made, elapsed


def memory_mb() -> float:
    """Resident memory of all processes of Serve, in MB."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            name = (status.parent / "cmdline").read_text()
            text = status.read_text()
        except OSError:
            continue
        own = name.startswith(("ray::ServeReplica:cellray", "ray::ProxyActor"))
        if own and (status.parent / "environ").exists():
            total += int(text.split("VmRSS:", 1)[1].split(None, 1)[0]) / 1024
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--overload", type=float, default=60)
    parser.add_argument("--only-overload", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    medians = {f"ENSG{i:011d}": 1.0 for i in range(GENES)}
    vocabulary = GeneVocabulary.from_medians(medians, "v1", "ensembl", input_size=TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_model(BertForMaskedLM(bert_config("v1-10m", vocabulary, TOKENS)), vocabulary, {}, folder)
        config = ServingConfig.model_validate(
            {
                "models": {"default": {"uri": folder, "threads": THREADS, "max_queued_cells": 192, "num_cpus": 0.5}},
                "access": {"auth": "none"},
                "port": 18_765,
                "ingress_cpus": 0.1,
            }
        )
        started = start_ray()
        start(config, started)
        await_ready(config, address(config), threading.Event())
        measure(address(config), Offline(folder, vocabulary), options)
        serve.shutdown()


def measure(url: str, offline: Offline, options: argparse.Namespace) -> None:
    """Measure the server; against the offline code in turns, since other work on the machine comes and goes."""
    body = wire.pack_cells(cells_of(CELLS, 1), {})
    asyncio.run(closed(url, body, CLIENTS, 5))
    if options.only_overload:
        overload(url, body, options.overload)
        return
    offline(3)
    plain, served = [], []
    for _ in range(ROUNDS):
        plain.append(offline(options.seconds / ROUNDS))
        made, took = asyncio.run(closed(url, body, CLIENTS, options.seconds / ROUNDS))
        assert set(made.seconds) == {200}, made.seconds.keys()
        served.append(len(made.seconds[200]) * CELLS / took)
    peak = float(np.median(served))
    ratio = float(np.median(np.array(served) / np.array(plain)))
    print(f"offline, {THREADS} threads: {np.median(plain):.1f} cells/s")
    print(f"HTTP, {CLIENTS} clients x {CELLS} cells: {peak:.1f} cells/s, {ratio:.0%} of offline (target 80 %)")
    one, _ = asyncio.run(closed(url, body, 1, options.seconds / 2))
    print(f"1 client: p50 {one.quantile(200, 0.5):.2f} s, p99 {one.quantile(200, 0.99):.2f} s")
    half, _ = asyncio.run(opened(url, body, peak / CELLS / 2, options.seconds))
    print(f"half load: p50 {half.quantile(200, 0.5):.2f} s, p99 {half.quantile(200, 0.99):.2f} s")
    small = wire.pack_cells(cells_of(1, 2), {})
    cell, _ = asyncio.run(closed(url, small, 1, options.seconds / 2))
    print(f"1 client x 1 cell: p50 {1e3 * cell.quantile(200, 0.5):.0f} ms, p99 {1e3 * cell.quantile(200, 0.99):.0f} ms")
    overload(url, body, options.overload)
    forms(url)


def overload(url: str, body: bytes, seconds: float) -> None:
    """Ask for five times as much as can be done, which is measured before and after."""
    before, start = _peak(url, body, seconds / 3), memory_mb()
    made, took = asyncio.run(opened(url, body, 5 * before / CELLS, seconds))
    good, end = made.others.pop("within") * CELLS / took, memory_mb()
    after = _peak(url, body, seconds / 3)
    others = {status: len(times) for status, times in made.seconds.items() if status not in (200, 429)}
    print(
        f"5 x overload for {took:.0f} s: goodput {good:.1f} cells/s ({2 * good / (before + after):.0%} of the peak of "
        f"{before:.1f} before and {after:.1f} after; target 90 %); "
        f"{len(made.seconds.get(429, []))} refused, p50 {1e3 * made.quantile(429, 0.5):.0f} ms, "
        f"p99 {1e3 * made.quantile(429, 0.99):.0f} ms, longest {1e3 * made.quantile(429, 1):.0f} ms; "
        f"else {others | dict(made.others)}; memory {start:.0f} -> {end:.0f} MB"
    )


def _peak(url: str, body: bytes, seconds: float) -> float:
    """Return the cells a second that patient clients get."""
    made, took = asyncio.run(closed(url, body, CLIENTS, seconds))
    return len(made.seconds[200]) * CELLS / took


def forms(url: str) -> None:
    """Compare JSON and the binary form for 64 cells, with a shared list of the genes they have."""
    cells = cells_of(64, 3)
    used, columns = np.unique(cells.columns, return_inverse=True)
    cells = CellTable(cells.ids, [cells.genes[i] for i in used], cells.indptr, columns.astype(np.int32), cells.counts)
    body, packed = json.dumps(json_of(cells)).encode(), wire.pack_cells(cells, {})
    zipped = wire.compress(packed, "zstd")
    plain, zstd = {"content-type": wire.JSON}, {**HEADERS, "content-encoding": "zstd"}
    with httpx2.Client(base_url=url, timeout=120) as client:
        for name, content, headers in (("JSON", body, plain), ("binary", packed, HEADERS), ("zstd", zipped, zstd)):
            times, size = [], 0
            for _ in range(5):
                started = time.monotonic()
                answer = client.post("/v1/embeddings", content=content, headers=headers)
                times.append(time.monotonic() - started)
                assert answer.status_code == 200, answer.text
                size = len(answer.content)
            both = f"{len(content):,} bytes there, {size:,} back"
            print(f"{name}, 64 cells: {both}, {1e3 * np.median(times):.0f} ms")
    started = time.monotonic()
    for _ in range(20):
        wire.unpack_cells(packed)
    binary = (time.monotonic() - started) / 20
    started = time.monotonic()
    for _ in range(5):
        wire.cells_of(EmbeddingRequest.model_validate_json(body))
    print(f"parsing 64 cells: JSON {1e3 * (time.monotonic() - started) / 5:.1f} ms, binary {1e3 * binary:.1f} ms")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    main()
