"""One server with tiny models for all tests of HTTP, on loopback in the shared Ray."""

import time
import warnings
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import anndata
import httpx2
import numpy as np
import pytest

from cellray.infer.states import write_states
from cellray.tracking import start_run
from cellray.tracking.register import register_model
from cellray.vocabulary import GeneVocabulary
from serving.config import ServingConfig
from tests.conftest import GENES
from tests.infer.tiny import AGE, DISEASE, cells_of, model_in
from tests.ports import free_port

SMALL = {"num_cpus": 0.1, "threads": 1, "max_wait_ms": 1.0}
STATES = {"sick": np.linspace(-1, 1, 128, dtype=np.float32), "well": np.linspace(1, 0, 128, dtype=np.float32) ** 2}


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Attributes
    ----------
    url, config
        Of the server.
    vocabulary
        Of all its models.
    folder
        Holds the models, by their names.
    """

    url: str
    config: ServingConfig
    vocabulary: GeneVocabulary
    folder: Path

    def client(self, **options: object) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=150, **options)  # type: ignore[arg-type]


def small_vocabulary() -> GeneVocabulary:
    """Thirty genes with medians 0.5, 1.0, 1.5, ...; rows of up to 16 tokens with <cls> and <eos>."""
    medians = {gene: (i + 1) / 2 for i, gene in enumerate(GENES[:30])}
    return GeneVocabulary.from_medians(medians, "v2", "ensembl", input_size=16)


@pytest.fixture(scope="session")
def monkeypatch_session() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def served(
    ray_session: None, monkeypatch_session: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Serve two models: a pretrained one with states, and a fine-tuned one that is registered."""
    folder, vocabulary = tmp_path_factory.mktemp("served"), small_vocabulary()
    for name in ("default", "cells"):
        (folder / name).mkdir()
    monkeypatch_session.setenv("CELLRAY_CACHE", str(folder / "cache"))
    write_states(str(folder / "states.parquet"), STATES)
    models = {
        "default": {"uri": model_in(folder / "default", vocabulary), "states": str(folder / "states.parquet"), **SMALL},
        "cells": {"uri": "models:/cells@live", "tracking_uri": store_in(folder), "reload_s": 0.5, **SMALL},
    }
    register(folder, model_in(folder / "cells", vocabulary, DISEASE, AGE))
    limits = {
        "body_mb": 2,
        "body_s": 3,
        "cells_per_request": 64,
        "genes_per_cell": 200,
        "perturbation_tokens": 20_000,
        "request_timeout_s": 120,
    }
    port = free_port()
    config = ServingConfig.model_validate(
        {"models": models, "limits": limits, "access": {"auth": "none"}, "port": port, "ingress_cpus": 0}
    )
    with serving(config) as url:
        yield Served(url, config, vocabulary, folder)


def store_in(folder: Path) -> str:
    """MLflow's tables in a file of the folder."""
    return f"sqlite:///{folder}/mlflow.db"


def register(folder: Path, model: str) -> str:
    """Make a directory the version that models:/cells@live means; return its number."""
    store = store_in(folder)
    with chdir(folder):  # MLflow puts artifacts there
        return register_model(start_run(store, "serving", "run", {}, {}), model, "cells", "live").version


class serving:  # noqa: N801  # a context manager, used as a function
    """Run a server until the block is left."""

    def __init__(self, config: ServingConfig, name: str = "cellray") -> None:
        self.config, self.name = config, name

    def __enter__(self) -> str:
        from ray import serve
        from ray.serve.config import HTTPOptions

        from serving.app import build

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Serve's own use of deprecated things
            serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=self.config.port))
            serve.run(build(self.config), name=self.name, route_prefix="/")
        url = f"http://127.0.0.1:{self.config.port}"
        await_ready(url)
        return url

    def __exit__(self, *exc: object) -> None:
        from ray import serve

        serve.shutdown()


def await_ready(url: str, seconds: float = 120) -> None:
    told, until = "", time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            answer = httpx2.get(f"{url}/readyz", timeout=30)
        except httpx2.TransportError as error:  # who speaks HTTP may still begin to listen
            told = repr(error)
        else:
            if answer.status_code == 200:
                return
            told = answer.text
        time.sleep(0.1)
    raise AssertionError(told)


@pytest.fixture(scope="session")
def cells() -> anndata.AnnData:
    return cells_of(cells=20)


def json_cells(adata: anndata.AnnData) -> dict[str, object]:
    """Return cells as JSON: sparse rows of shared genes."""
    counts = adata.X.tocsr()
    rows = [
        {"id": name, "indices": counts[i].indices.tolist(), "counts": counts[i].data.tolist()}
        for i, name in enumerate(adata.obs_names)
    ]
    return {"genes": adata.var_names.tolist(), "cells": rows}
