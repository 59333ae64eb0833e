"""Fixtures shared by all tests: one local Ray, small files of counts, the optional folder of real data."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray.vocabulary import GeneVocabulary
from tests.s3 import bucket, s3_endpoint, s3_environment

__all__ = ["bucket", "s3_endpoint"]  # fixtures of another file

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"

GENES = [f"ENSG{i:011d}" for i in range(1, 41)]
"""Forty made-up human genes; the small vocabulary knows the first thirty."""


RAYS = {"data": 0, "jobs": 0, "tracking": 0, "train": 0}
"""Which of the two Rays of `make test` the tests of a folder run on, so that each starts a server or cluster once; 1
where nothing is said. Most of their time processes start, which two at once do in little more than the time of one."""


def pytest_configure(config: pytest.Config) -> None:
    """Let Hypothesis draw the same examples in every run, however slow the machine; others when faults are sought."""
    from hypothesis import HealthCheck, settings

    slow = [HealthCheck.too_slow]
    settings.register_profile("steady", deadline=None, suppress_health_check=slow, derandomize=True)
    settings.register_profile("chaos", deadline=None, suppress_health_check=slow)
    settings.load_profile("chaos" if config.option.markexpr == "chaos" else "steady")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep tests that use the same Ray in one process; those of Hypothesis are a part of the long run, too."""
    if item.config.option.markexpr == "chaos" and getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
        item.add_marker("chaos")
    if "ray_session" in getattr(item, "fixturenames", ()) or item.get_closest_marker("own_ray"):
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        item.add_marker(pytest.mark.xdist_group(f"ray{RAYS.get(folder, 1)}"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse versions of pytest and xdist that do not work together: groups would be passed over in silence."""
    if getattr(session.config.option, "loadgroup", False):
        for item in session.items:
            group = item.get_closest_marker("xdist_group")
            assert group is None or item.nodeid.endswith(f"@{group.args[0]}"), item.nodeid


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Ctrl-C means here, and in processes started here, what it means in a terminal; xdist's processes ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _torch_draws_alike() -> None:
    """Begin torch's own generator anew: what a test draws must not depend on those that this process did before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def ray_session(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray of two CPUs for the whole test session; its workers know the S3 server."""
    import ray

    from cellray.data.session import ensure_ray

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={
            "env_vars": s3_environment(s3_endpoint) | {"CELLRAY_CACHE": str(tmp_path_factory.mktemp("cache"))}
        },
    )
    ensure_ray()
    yield
    ray.shutdown()


@pytest.fixture
def shared() -> Path:
    """Folder with real cells and golden numbers, where there is one beside the project."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of real cells and golden numbers, which is not part of the project")
    return SHARED


@pytest.fixture
def vocabulary() -> GeneVocabulary:
    """Thirty genes with medians 0.5, 1.0, 1.5, ...; V1 special tokens; rows of up to 16 tokens."""
    medians = {gene: (i + 1) / 2 for i, gene in enumerate(GENES[:30])}
    return GeneVocabulary.from_medians(medians, "v1", "ensembl", input_size=16)


@pytest.fixture
def vocabulary_v2() -> GeneVocabulary:
    """Return the same genes with `<cls>` and `<eos>`."""
    medians = {gene: (i + 1) / 2 for i, gene in enumerate(GENES[:30])}
    return GeneVocabulary.from_medians(medians, "v2", "ensembl", input_size=16)


def random_counts(cells: int, genes: int, seed: int = 0, density: float = 0.4) -> sparse.csr_matrix:
    """Whole counts in sparse rows; every cell has at least one."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3, (cells, genes)) * (rng.random((cells, genes)) < density)
    counts[:, 0] += 1
    return sparse.csr_matrix(counts.astype(np.float32))


@pytest.fixture
def make_h5ad(tmp_path: Path) -> Callable[..., Path]:
    """Write an .h5ad of random counts; keyword arguments replace its parts."""

    def make(
        name: str = "cells.h5ad",
        *,
        cells: int = 50,
        seed: int = 0,
        x: sparse.spmatrix | np.ndarray | None = None,
        var: pd.DataFrame | None = None,
        obs: dict[str, object] | None = None,
        **parts: object,
    ) -> Path:
        x = random_counts(cells, len(GENES), seed) if x is None else x
        index = [f"cell{i}" for i in range(x.shape[0])]
        table = pd.DataFrame(obs or {"kind": pd.Categorical(["a", "b"] * (len(index) // 2) + ["a"] * (len(index) % 2))})
        table.index = pd.Index(index)
        var = pd.DataFrame(index=GENES[: x.shape[1]]) if var is None else var
        path = tmp_path / name
        anndata.AnnData(x, obs=table, var=var, **parts).write_h5ad(path)
        return path

    return make
