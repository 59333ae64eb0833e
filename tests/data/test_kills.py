"""Killed workers, drivers and nodes, a full disk, a corrupt file among forty: the corpus is that of a quiet run."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellray import storage
from cellray.data.corpora.corpus import Corpus, damaged_shards
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary
from tests.conftest import REPOSITORY
from tests.faulty_proxy import FAULTS, Fault, FaultyProxy
from tests.processes import kill_worker
from tests.s3 import s3_environment

Make = Callable[..., Path]
FILES, CELLS, SHARD = 40, 60, 12

pytestmark = [pytest.mark.own_ray, pytest.mark.timeout(900)]


@pytest.fixture
def config(make_h5ad: Make, vocabulary: GeneVocabulary, tmp_path: Path) -> TokenizeConfig:
    """Forty files, two hundred units."""
    (tmp_path / "in").mkdir()
    for i in range(FILES):
        make_h5ad(f"in/cells-{i:02}.h5ad", cells=CELLS, seed=i)
    vocabulary.save(str(tmp_path / "v.json"))
    return TokenizeConfig(
        source=(str(tmp_path / "in"),),
        vocabulary=str(tmp_path / "v.json"),
        output=str(tmp_path / "corpus"),
        obs_columns=("kind",),
        cells_per_shard=SHARD,
    )


def content(corpus: Path) -> dict[str, str]:
    """Return path and digest of every file."""
    files = [path for path in corpus.rglob("*") if path.is_file()]
    return {str(path.relative_to(corpus)): storage.sha256_file(str(path)) for path in files}


def quiet(config: TokenizeConfig) -> dict[str, str]:
    """Tokenize undisturbed, beside the output."""
    beside = Path(config.output).with_name("quiet")
    tokenize_corpus(config.model_copy(update={"output": str(beside)}))
    return content(beside)


def require_equal(config: TokenizeConfig) -> None:
    """Check that output and quiet run hold the same bytes and every cell once."""
    assert content(Path(config.output)) == quiet(config)
    corpus = Corpus.open(config.output)
    assert corpus.manifest.rows == FILES * CELLS
    assert damaged_shards(corpus) == []


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.chaos)])
def test_killed_workers(ray_session: None, config: TokenizeConfig, kills: int) -> None:
    rng, killed, done = random.Random(0), 0, threading.Event()  # noqa: S311

    def kill() -> None:
        nonlocal killed
        while killed < kills and not done.wait(0.05 + rng.random() / 5):
            killed += kill_worker(rng, "ray::_call", "ray::IDLE")

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        tokenize_corpus(config)
    finally:
        done.set()
        killer.join()
    assert killed > 0
    require_equal(config)


def start_job(config: TokenizeConfig, **environment: str) -> subprocess.Popen[bytes]:
    """Start the job's script as a user would."""
    options = [
        *("--source", config.source[0], "--vocabulary", config.vocabulary, "--output", config.output),
        *("--obs-columns", "kind", "--cells-per-shard", str(SHARD)),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.tokenize_corpus", *options],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.fixture
def ray_address(ray_session: None) -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.chaos)])
def test_killed_drivers(ray_address: str, config: TokenizeConfig, kills: int) -> None:
    rng, shards = random.Random(1), Path(config.output) / "shards"  # noqa: S311
    total = FILES * -(-CELLS // SHARD) // 2  # of the first half: who kills may be late
    for i in range(kills):
        job = start_job(config, RAY_ADDRESS=ray_address)
        there = len(list(shards.glob("*.parquet")))
        until = there + rng.randrange(max(1, max(0, total - there) // (kills - i)))
        while job.poll() is None and len(list(shards.glob("*.parquet"))) <= until:
            time.sleep(0.005)
        job.kill()
        job.communicate()
        assert not (Path(config.output) / "manifest.json").exists()
    last = start_job(config, RAY_ADDRESS=ray_address)
    out, _ = last.communicate()
    assert last.returncode == 0, out
    require_equal(config)
    before = content(Path(config.output))
    again = start_job(config, RAY_ADDRESS=ray_address)
    again.communicate()
    assert content(Path(config.output)) == before  # a third run writes nothing


def test_a_killed_node(config: TokenizeConfig, ray_session: None) -> None:
    script = Path(__file__).with_name("lose_node.py")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, str(script), config.source[0], config.vocabulary, config.output, str(SHARD)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"lost a node" in done.stdout
    require_equal(config)


@pytest.mark.chaos
def test_a_job_over_a_bad_network(config: TokenizeConfig, ray_session: None, bucket: str, s3_endpoint: str) -> None:
    fs, _ = storage.filesystem(bucket)
    fs.put(config.source[0], "cells/in", recursive=True)
    remote = config.model_copy(update={"source": (f"{bucket}/in",), "output": f"{bucket}/corpus"})
    faults = [Fault(kind, 0.05 / 6) for kind in sorted(set(FAULTS) - {"stall", "forbidden"})]
    with FaultyProxy(s3_endpoint, faults) as proxy:
        own_ray = {**s3_environment(proxy.url), "RAY_ADDRESS": ""}
        first = start_job(remote, **own_ray)
        while first.poll() is None and len(fs.glob(f"{bucket}/corpus/shards/*")) < 20:
            time.sleep(0.05)
            fs.invalidate_cache()
        first.kill()
        first.communicate()
        last = start_job(remote, **own_ray)
        out, _ = last.communicate()
        assert last.returncode == 0, out
        assert len(proxy.injected) > 3
    quiet(config)
    here, there = Corpus.open(str(Path(config.output).with_name("quiet"))), Corpus.open(f"{bucket}/corpus")
    assert [part.sha256 for part in there.manifest.parts] == [part.sha256 for part in here.manifest.parts]
    assert damaged_shards(there) == []


def test_a_corrupt_file_among_forty(ray_session: None, config: TokenizeConfig, tmp_path: Path) -> None:
    bad = tmp_path / "in" / "cells-17.h5ad"
    bad.write_bytes(bad.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cells-17\.h5ad: the file must be a whole HDF5 file; found 5,000 of"):
        tokenize_corpus(config)
    assert not (tmp_path / "corpus").exists()
    manifest = tokenize_corpus(config.model_copy(update={"on_bad_file": "skip"}))
    assert [Path(failed.uri).name for failed in manifest.failed] == ["cells-17.h5ad"]
    assert manifest.rows == (FILES - 1) * CELLS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of 300 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a worker may still have a file of it open


def test_a_full_disk(ray_session: None, config: TokenizeConfig, small_disk: Path) -> None:
    config = config.model_copy(update={"output": str(small_disk / "corpus")})
    with pytest.raises(Exception, match="No space left on device"):
        tokenize_corpus(config)
    assert not (small_disk / "corpus" / "manifest.json").exists()
    until = time.monotonic() + 60
    while list(small_disk.rglob("*.tmp")) and time.monotonic() < until:  # cancelled writers clear away
        time.sleep(0.1)
    assert not list(small_disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    tokenize_corpus(config)
    require_equal(config)
