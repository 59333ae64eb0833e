"""Storage that fails in passing: every operation gets through or says in plain words that the store is to blame."""

import gc
import hashlib
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pytest

from cellray import storage
from cellray.data.parts import Unit, make_part
from cellray.data.sources.contract import open_source
from cellray.data.sources.locate import expand_sources
from cellray.data.tokenization import TokenizeOptions, TokenizeWorker
from cellray.errors import InputError, StorageError
from cellray.read_ahead import ReadAheadBlocks
from cellray.retries import RetryPolicy
from cellray.vocabulary import GeneVocabulary
from tests.conftest import random_counts
from tests.faulty_proxy import FAULTS, Fault, FaultyProxy
from tests.s3 import forget_connections

Make = Callable[..., Path]
PASSING = sorted(set(FAULTS) - {"stall", "forbidden"})
DATA = bytes(range(256)) * 400
MINE = "s3://cells/a/data.bin"


@pytest.fixture
def proxy(s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Stand between this process and the server, with a file in the bucket; failed requests are repeated at once."""
    monkeypatch.setattr(RetryPolicy, "pause_s", lambda *_: 0.0)
    storage.write_bytes(MINE, DATA)
    forget_connections()
    with FaultyProxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
    forget_connections()


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


def test_an_answer_that_is_only_slow_needs_no_retry(proxy: FaultyProxy) -> None:
    proxy.fail(Fault("stall"))
    assert storage.read_bytes(MINE) == DATA
    assert proxy.requests == {"GET": 1}
    storage.write_bytes("s3://cells/empty", b"")
    assert storage.read_bytes("s3://cells/empty") == b""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("slow_down", "SlowDown: Please reduce your request rate"),
        ("internal_error", "InternalError: We encountered"),
        ("short", "ShortReadError: 51,200 bytes received where 102,400 were asked for"),
        ("truncated", "payload is not completed"),
        ("reset", "Could not connect|closed|reset"),
    ],
)
def test_a_store_that_stays_ill_is_named(proxy: FaultyProxy, kind: str, words: str) -> None:
    proxy.fail(Fault(kind, operations=("GET",)))
    fs, path = storage.filesystem(MINE)
    with pytest.raises(StorageError, match=rf"s3://cells/a/data.bin: .* get_object in 6 attempts.*{words}") as caught:
        fs.cat_file(path, start=0, end=len(DATA))
    assert 6 <= proxy.requests["GET"] <= 12  # on a reused connection, aiohttp asks once more by itself
    assert not isinstance(caught.value, OSError | ValueError | RuntimeError)  # which readers take for a damaged file
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_environment_sets_the_attempts(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.fail(Fault("slow_down"))
    forget_connections()
    with pytest.raises(StorageError, match="2 attempts"):
        storage.exists(MINE)
    assert proxy.requests == {"HEAD": 2}
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "none")
    with pytest.raises(InputError, match="AWS_MAX_ATTEMPTS: it must be a number of attempts"):
        RetryPolicy.from_environment()
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")


def test_pauses_double_and_differ() -> None:
    policy = RetryPolicy(first_pause_s=0.5, longest_pause_s=8)
    for failures, most in enumerate([0.5, 1, 2, 4, 8, 8, 8], start=1):
        pauses = {policy.pause_s(failures) for _ in range(100)}
        assert len(pauses) > 50
        assert most / 2 <= min(pauses) <= max(pauses) <= most


def test_what_will_not_pass_is_not_repeated(proxy: FaultyProxy) -> None:
    with pytest.raises(InputError, match="no such file"):
        storage.stamp("s3://cells/none")
    assert proxy.requests == {"HEAD": 1, "LIST": 1}
    proxy.fail(Fault("forbidden"))
    with pytest.raises(InputError, match="no permission"):
        storage.stamp(MINE)
    assert proxy.requests == {"HEAD": 1}
    proxy.fail()
    for uri in ("s3://nowhere/a", "s3://cells/none"):
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(uri)
    assert proxy.requests == {"GET": 2}
    proxy.fail()
    with pytest.raises(FileExistsError):
        storage.publish_once(MINE, b"mine")
    assert proxy.requests == {"PUT": 1, "GET": 1}  # whose bytes are these?
    assert storage.read_bytes(MINE) == DATA


def test_a_listing_that_fails_is_not_an_empty_folder(proxy: FaultyProxy) -> None:
    proxy.fail(Fault("internal_error", operations=("LIST",)))
    for look in (
        lambda: storage.glob("s3://cells/a/*.bin"),
        lambda: storage.walk("s3://cells/a"),
        lambda: expand_sources(["s3://cells/a/*.h5ad"]),
        lambda: storage.require_vacant("s3://cells/new"),
    ):
        with pytest.raises(StorageError, match="list_objects_v2"):
            look()
    proxy.fail(Fault("internal_error", operations=("HEAD",)))
    with pytest.raises(StorageError, match="head_bucket"):
        storage.exists("s3://cells")


def test_a_first_publisher_whose_answer_was_lost_is_still_the_first(proxy: FaultyProxy) -> None:
    uri = "s3://cells/manifest.json"
    proxy.fail(Fault("lost_answer", times=1, operations=("PUT",)))
    storage.publish_once(uri, b"first")
    proxy.fail(Fault("slow_down", times=1, operations=("PUT",)))
    with pytest.raises(FileExistsError):  # this one was repeated too, but its file is another
        storage.publish_once(uri, b"other")
    assert storage.read_bytes(uri) == b"first"


@pytest.mark.parametrize("kind", ["lost_answer", "internal_error"])
def test_a_large_upload_in_parts(proxy: FaultyProxy, kind: str) -> None:
    data = np.random.default_rng(0).bytes(11 << 20)
    fs, path = storage.filesystem("s3://cells/large.bin")
    proxy.fail(Fault(kind, times=2, operations=("POST", "PUT"), key="upload"), Fault(kind, 1, 1, ("POST",), "uploadId"))
    fs.pipe_file(path, data, chunksize=5 << 20)
    assert sum(proxy.injected.values()) == 3
    proxy.fail(Fault("truncated", times=1, operations=("GET",)))
    assert storage.sha256_file("s3://cells/large.bin") == hashlib.sha256(data).hexdigest()


def test_a_large_download_is_of_one_version(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cellray.s3.PIECE", 10_000)
    fs, path = storage.filesystem(MINE)
    proxy.fail(Fault("truncated", 0.3, operations=("GET",)))
    fs.get_file(path, str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == DATA
    assert proxy.requests["GET"] > 11
    proxy.fail()
    monkeypatch.setattr(fs, "_info", _outdated(fs._info))
    with pytest.raises(OSError, match="pre-conditions"):
        fs.get_file(path, str(tmp_path / "again"))


def _outdated(info: Callable[..., object]) -> Callable[..., object]:
    async def outdated(*args: object, **kwargs: object) -> dict[str, object]:
        return {**await info(*args, **kwargs), "ETag": '"0"'}  # type: ignore[misc]

    return outdated


@pytest.fixture
def counts(make_h5ad: Make, tmp_path: Path) -> dict[str, Path]:
    """Return the same cells as .h5ad and as .zarr, in many small chunks."""
    h5ad, store = make_h5ad(x=random_counts(300, 40)), tmp_path / "cells.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata warns of defaults to come
        anndata.read_h5ad(h5ad).write_zarr(store)
    return {"h5ad": h5ad, "zarr": store}


def upload(path: Path) -> str:
    """Put a file or a folder into the bucket; return its URI."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        storage.write_bytes(f"s3://cells/in/{file.relative_to(path.parent)}", file.read_bytes())
    return f"s3://cells/in/{path.name}"


def read_all(uri: str) -> list[object]:
    """Read a file's tables and counts."""
    with open_source(uri) as source:
        blocks = [(b.counts.tolist(), b.columns.tolist()) for b in source.blocks(0, source.n_cells, 100)]
        names = source.cell_names(0, source.n_cells).to_pylist()
        return [blocks, names, source.obs("kind", 0, 300).to_pylist(), list(source.var().index)]


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_a_failure_anywhere_in_a_file_is_never_the_files(
    proxy: FaultyProxy, counts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("cellray.read_ahead.BLOCK", 4096)
    uri, expected = upload(counts[kind]), read_all(str(counts[kind]))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_connections()
    proxy.fail()
    assert read_all(uri) == expected
    total = proxy.requests.total()
    failed = 0
    for number in range(total):
        proxy.fail(Fault("internal_error", after=number))
        try:
            assert read_all(uri) == expected  # a block fetched ahead may not be needed in the end
        except StorageError:
            failed += 1
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    assert total > 10
    assert failed > total * 0.7


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_shards_made_over_a_bad_network_are_those_made_at_home(
    proxy: FaultyProxy,
    counts: dict[str, Path],
    vocabulary: GeneVocabulary,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
) -> None:
    monkeypatch.setattr("cellray.read_ahead.BLOCK", 4096)
    worker = TokenizeWorker(TokenizeOptions(vocabulary, "X", None, None, 16, {"kind": "text"}))
    uri = upload(counts[kind])
    proxy.fail(*(Fault(name, 0.05 / 7) for name in PASSING))
    for start in range(0, 300, 50):
        shards = []
        for source, output in ((str(counts[kind]), str(tmp_path / "corpus")), (uri, "s3://cells/corpus")):
            unit = Unit(f"{start:064d}", source, storage.stamp(source).version, 0, start, start + 50)
            record = make_part(unit, worker, output)
            shards.append((record, storage.read_bytes(storage.join(output, record.path))))
        assert shards[0] == shards[1]
        assert shards[0][0].rows == 50
    assert len(proxy.injected) >= 3
    assert 0.02 < proxy.injected.total() / proxy.requests.total() < 0.1


def reader(size: int, **options: int) -> tuple[ReadAheadBlocks, bytes, list[int]]:
    """Return a cache of blocks of 100 bytes, the bytes behind it, and a list of the blocks it will have asked for."""
    data, asked = np.random.default_rng(1).bytes(size), []

    def fetch(start: int, stop: int) -> bytes:
        asked.append(start // 100)
        return data[start:stop]

    return ReadAheadBlocks(100, fetch, size, **options), data, asked


def test_blocks_hold_the_files_bytes_and_no_more_than_they_may() -> None:
    cache, data, _ = reader(12_345, keep=7, ahead=2)
    rng = np.random.default_rng(2)
    for start, length in zip(rng.integers(0, 13_000, 300), rng.integers(0, 1500, 300), strict=True):
        assert cache._fetch(int(start), int(start + length)) == data[start : start + length]
        assert len(cache._blocks) <= 7
    assert cache._fetch(None, None) == data
    cache.close()


def test_two_readers_in_turns_fetch_every_block_once_and_ahead() -> None:
    cache, data, asked = reader(10_000, keep=8, ahead=2)
    for step in range(0, 4000, 250):
        for half in (0, 5000):
            assert cache._fetch(half + step, half + step + 250) == data[half + step : half + step + 250]
    cache.close()
    assert sorted(asked) == sorted(set(asked))
    assert set(asked) >= {*range(40), *range(50, 90)}


def test_only_a_sequential_reader_is_run_ahead_of() -> None:
    cache, data, asked = reader(10_000, ahead=2)
    for start, ahead in ((700, [7]), (5000, [7, 50]), (5100, [7, 50, 51, 52, 53]), (9950, [7, 50, 51, 52, 53, 99])):
        assert cache._fetch(start, start + 50) == data[start : start + 50]
        for block in cache._blocks.values():
            block.result()
        assert sorted(asked) == ahead
    cache.close()


def test_a_block_that_failed_is_asked_for_again() -> None:
    failing = True

    def fetch(start: int, stop: int) -> bytes:
        if failing:
            raise StorageError("s3://cells/a", "get_object", 6, "SlowDown")
        return bytes(stop - start)

    cache = ReadAheadBlocks(100, fetch, 1000)
    with pytest.raises(StorageError):
        cache._fetch(0, 250)
    failing = False
    assert cache._fetch(0, 250) == bytes(250)
    cache.close()


def test_the_collector_rests_while_bytes_are_on_their_way() -> None:
    """Else it might free an object of h5py in a thread that h5py itself waits for."""
    seen = []

    def fetch(start: int, stop: int) -> bytes:
        seen.append(gc.isenabled())
        return bytes(stop - start)

    cache = ReadAheadBlocks(100, fetch, 1000)
    assert cache._fetch(0, 1000) == bytes(1000)
    cache.close()
    for _ in range(6000):
        if gc.isenabled():
            break
        time.sleep(0.01)
    assert gc.isenabled()
    assert not any(seen)
