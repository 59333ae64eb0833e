"""Killed actors, drivers and nodes: shifts and gene effects of a screen are those of a quiet one, byte for byte."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cellray import storage
from cellray.infer.screen import ScreenConfig, screen
from cellray.vocabulary import GeneVocabulary
from tests.conftest import REPOSITORY
from tests.infer.tiny import cells_of, corpus_in, model_in
from tests.processes import kill_worker

CELLS = 30

pytestmark = [pytest.mark.own_ray, pytest.mark.timeout(900)]


@pytest.fixture
def config(vocabulary: GeneVocabulary, tmp_path: Path) -> ScreenConfig:
    """Return a screen with gene effects, of a unit a cell."""
    corpus = corpus_in(tmp_path, vocabulary, cells_of(cells=CELLS))
    options = {"effects": True, "cells_per_part": 1, "threads": 1, "actors": (2, 2), "cpus_per_actor": 0.5}
    model = model_in(tmp_path, vocabulary)
    return ScreenConfig(corpus=corpus.uri, model=model, output=str(tmp_path / "shifts"), **options)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, str]:
    """Return path and digest of every file, leavings of killed writers, too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): storage.sha256_file(str(path)) for path in files}


def require_equal(config: ScreenConfig) -> None:
    """Check that the output holds what an undisturbed screen writes beside it, in this process."""
    beside = Path(config.output).with_name("quiet")
    quiet = screen(config.model_copy(update={"output": str(beside), "actors": (0, 0)}))
    assert content(Path(config.output)) == content(beside)
    assert len(quiet.parts) == len(quiet.effect_parts) == CELLS  # type: ignore[union-attr]


def parts_there(config: ScreenConfig) -> int:
    """Count finished parts, of shifts and of effects."""
    return len(list(Path(config.output).rglob("shards/[0-9a-f]*.parquet")))


def stops(config: ScreenConfig, kills: int, seed: int) -> "list[int]":
    """Draw how many parts shall be there at each kill: one in each of as many equal stretches of the work's first half.

    Who kills may be late; there is another half to be so in.
    """
    rng, total = random.Random(seed), CELLS  # noqa: S311
    return [
        rng.randrange(total * i // kills, max(total * (i + 1) // kills - 3, total * i // kills + 1))
        for i in range(kills)
    ]


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.chaos)])
def test_killed_actors(ray_session: None, config: ScreenConfig, kills: int) -> None:
    rng, killed, done = random.Random(0), 0, threading.Event()  # noqa: S311

    def kill() -> None:
        nonlocal killed
        for stop in stops(config, kills, 0):
            while not done.wait(0.005):
                if parts_there(config) >= stop and kill_worker(rng, "ray::MapWorker(Map(_UnitActor))"):
                    killed += 1
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        screen(config)
    finally:
        done.set()
        killer.join()
    assert killed == kills
    require_equal(config)


def start_job(config: ScreenConfig, **environment: str) -> subprocess.Popen[bytes]:
    """Start the job's script as a user would."""
    options = [
        *("--corpus", config.corpus, "--model", config.model, "--output", config.output, "--effects"),
        *("--cells-per-part", "1", "--threads", "1", "--cpus-per-actor", str(config.cpus_per_actor)),
        *("--actors", ",".join(map(str, config.actors))),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.perturb", *options],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_drivers(config: ScreenConfig, kills: int, **environment: str) -> None:
    """Start the job and kill it, again and again, each time some parts further on."""
    for stop in stops(config, kills, 1):
        job = start_job(config, **environment)
        while job.poll() is None and parts_there(config) < stop:
            time.sleep(0.002)
        assert job.poll() is None
        job.kill()
        job.wait()
        assert not (Path(config.output) / "manifest.json").exists()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.chaos)])
def test_killed_processes(config: ScreenConfig, kills: int) -> None:
    config = config.model_copy(update={"actors": (0, 0)})
    kill_drivers(config, kills)
    assert parts_there(config) > 0
    screen(config)
    require_equal(config)


@pytest.mark.chaos
def test_killed_drivers(ray_session: None, config: ScreenConfig) -> None:
    import ray

    kill_drivers(config, 20, RAY_ADDRESS=str(ray.get_runtime_context().gcs_address))
    screen(config)
    require_equal(config)


@pytest.mark.chaos
def test_a_killed_node(config: ScreenConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config.model_copy(update={"cpus_per_actor": 1}).model_dump_json())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    script = Path(__file__).with_name("lose_node.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "config.json")],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"lost a node" in done.stdout
    require_equal(config)
