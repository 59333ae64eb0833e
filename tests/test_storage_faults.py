"""Storage that fails in passing: every operation gets through or says in plain words that the store is to blame."""

import asyncio
import gc
import hashlib
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import fsspec
import numpy as np
import pytest

from cellray import storage
from cellray.data.locate import expand_sources
from cellray.data.parts import Unit, make_part
from cellray.data.source import open_source
from cellray.data.tokenization import TokenizeOptions, TokenizeWorker
from cellray.errors import InputError, StorageError
from cellray.read_ahead import ReadAheadBlocks
from cellray.retries import RetryPolicy
from cellray.vocabulary import GeneVocabulary
from tests.conftest import random_counts
from tests.faulty_proxy import FAULTS, Fault, FaultyProxy

Make = Callable[..., Path]
PASSING = sorted(set(FAULTS) - {"stall"})
DATA = bytes(range(256)) * 400
MINE = "s3://cells/a/data.bin"


@pytest.fixture
def proxy(
    s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FaultyProxy]:
    """Stand between this process and the server, with a file in the bucket; failed requests are repeated at once."""
    monkeypatch.setattr(RetryPolicy, "pause_s", lambda *_: 0.0)
    storage.write_bytes(MINE, DATA)
    fresh()
    with FaultyProxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
    fresh()


def fresh() -> None:
    """Forget connections, listings and addresses."""
    from cellray.s3 import PatientS3FileSystem

    PatientS3FileSystem.clear_instance_cache()


def sums(names: list[str], folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def read_scattered() -> bytes:
    with storage.open_scattered(MINE) as stream:
        stream.seek(50_000)
        tail = stream.read()
        stream.seek(0)
        return bytes(stream.read(50_000) + tail)


def read_directory() -> list[bytes]:
    with storage.local_directory("s3://cells/a") as directory:
        return [path.read_bytes() for path in sorted(directory.iterdir())]


def write_and_read(data: bytes) -> bytes:
    storage.write_bytes("s3://cells/b/new.bin", data)
    return storage.read_bytes("s3://cells/b/new.bin")


def publish_and_read(data: bytes) -> bytes:
    storage.publish_once("s3://cells/b/once.json", data)
    return storage.read_bytes("s3://cells/b/once.json")


def publish_a_directory() -> list[str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", "weights"):
            (Path(folder) / name).write_text(name)
        storage.publish_directory(Path(folder), "s3://cells/model", last="config.json")
    return storage.walk("s3://cells/model")


def remove_and_look() -> bool:
    storage.remove_directory("s3://cells/a")
    return storage.exists(MINE)


OPERATIONS: dict[str, tuple[Callable[[], object], object]] = {
    "exists": (lambda: storage.exists(MINE), True),
    "exists, a bucket": (lambda: storage.exists("s3://cells"), True),
    "exists, not": (lambda: storage.exists("s3://cells/none"), False),
    "is_directory": (lambda: storage.is_directory("s3://cells/a"), True),
    "glob": (lambda: storage.glob("s3://cells/*/*.bin"), [MINE]),
    "walk": (lambda: storage.walk("s3://cells"), [MINE]),
    "stamp": (lambda: storage.stamp(MINE).size, len(DATA)),
    "stamp, a folder": (lambda: storage.stamp("s3://cells/a").size, len(DATA)),
    "read_bytes": (lambda: storage.read_bytes(MINE), DATA),
    "sha256_file": (lambda: storage.sha256_file(MINE), hashlib.sha256(DATA).hexdigest()),
    "open_scattered": (read_scattered, DATA),
    "local_directory": (read_directory, [DATA]),
    "write_bytes": (lambda: write_and_read(b"new" * 9), b"new" * 9),
    "publish_once": (lambda: publish_and_read(b"{}"), b"{}"),
    "publish_directory": (publish_a_directory, ["s3://cells/model/config.json", "s3://cells/model/weights"]),
    "remove_directory": (remove_and_look, False),
}
"""What is done, and what must come of it."""


@pytest.mark.parametrize("kind", PASSING)
def test_every_operation_survives_every_fault(proxy: FaultyProxy, kind: str) -> None:
    for name, (act, expected) in OPERATIONS.items():
        storage.write_bytes(MINE, DATA)
        storage.remove_directory("s3://cells/b")
        storage.remove_directory("s3://cells/model")
        proxy.fail(Fault(kind, times=3))
        assert act() == expected, name
        assert proxy.injected[kind] == 3 or kind == "short", name
