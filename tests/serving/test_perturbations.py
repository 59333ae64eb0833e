"""Perturbations and predictions over HTTP are those of the jobs on the same cells; long ones are jobs."""

import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from httpx2 import Client

from cellray.api import wire
from cellray.infer.predict import PredictConfig, predict_cells
from cellray.infer.states import write_states
from tests.conftest import GENES
from tests.infer.tiny import corpus_in, rows_in, screened
from tests.serving.conftest import STATES, Served, json_cells

DESIGNS = [
    {"kind": "delete", "perturb": "all"},
    {"kind": "delete", "perturb": "all", "anchor": GENES[:1]},
    {"kind": "overexpress", "perturb": GENES[:4], "pairs": True, "start": "sick", "goal": "well"},
    {"kind": "inhibit", "quartiles": 2, "perturb": GENES[:3], "together": True, "pooling": "cls"},
]


def batch(served: Served, cells: anndata.AnnData, folder: Path, ask: dict[str, object]) -> pd.DataFrame:
    """Return what the job's screen finds."""
    options = {name: value for name, value in ask.items() if name != "perturb"}
    options["genes"] = ("all",) if ask["perturb"] == "all" else tuple(ask["perturb"])  # type: ignore[arg-type]
    if "start" in ask:
        write_states(str(folder / "states.parquet"), STATES)
        options["state_embeddings"] = str(folder / "states.parquet")
    corpus = corpus_in(folder, served.vocabulary, cells)
    _, found = screened(corpus, served.config.models["default"].uri, folder / "shifts", **options)
    return found.drop(columns=["state", "donor"]).sort_values(["cell_id", "perturbation"], ignore_index=True)


def table_of(answer: dict[str, object]) -> pd.DataFrame:
    found = pd.DataFrame(answer["table"])
    return found.sort_values(["cell_id", "perturbation"], ignore_index=True)


def assert_same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    assert found.columns.tolist() == wanted.columns.tolist()
    for column in wanted:
        if wanted[column].dtype.kind == "f":
            np.testing.assert_allclose(found[column], wanted[column], atol=5e-6)
        else:
            assert found[column].tolist() == wanted[column].tolist(), column


@pytest.mark.parametrize("ask", DESIGNS, ids=lambda ask: str(ask["kind"]))
def test_effects_are_those_of_the_job(
    served: Served, cells: anndata.AnnData, tmp_path: Path, ask: dict[str, object]
) -> None:
    few = cells[:5].copy()
    with served.client() as client:
        answer = client.post("/v1/perturbations", json=json_cells(few) | ask | {"top": None})
    assert answer.status_code == 200, answer.text
    wanted = batch(served, few, tmp_path, ask)
    assert_same(table_of(answer.json()), wanted)
    assert answer.json()["counts"]["perturbations"] == len(wanted)


def test_the_strongest_come_first(served: Served, cells: anndata.AnnData) -> None:
    few = json_cells(cells[:4].copy())
    states = {"start": "sick", "goal": "well"}
    with served.client() as client:
        every = pd.DataFrame(client.post("/v1/perturbations", json=few | states | {"top": None}).json()["table"])
        shifted = pd.DataFrame(client.post("/v1/perturbations", json=few | states | {"top": 3}).json()["table"])
        changed = pd.DataFrame(client.post("/v1/perturbations", json=few | {"top": 3}).json()["table"])
    for found, strength in ((shifted, every["shift:well"].abs()), (changed, 1 - every["similarity"])):
        assert found["cell_id"].tolist() == [row["id"] for row in few["cells"] for _ in range(3)]  # type: ignore[attr-defined]
        for name, own in found.groupby("cell_id"):
            wanted = strength[every["cell_id"] == name].sort_values(ascending=False).index[:3]
            assert own["genes"].tolist() == every.loc[wanted, "genes"].tolist()


def finished(client: Client, job: str, seconds: float = 150) -> dict[str, object]:
    for _ in range(int(seconds * 20)):
        status = client.get(f"/v1/jobs/{job}").json()
        if status["state"] in ("done", "failed", "cancelled"):
            return dict(status)
        time.sleep(0.05)
    raise AssertionError(status)


def test_a_job_gives_what_waiting_gives(served: Served, cells: anndata.AnnData) -> None:
    ask = json_cells(cells[:4].copy()) | {"start": "sick", "goal": "well", "top": 5}
    with served.client() as client:
        begun = client.post("/v1/perturbations", json=ask | {"background": True})
        assert begun.status_code == 202, begun.text
        job = begun.json()["id"]
        assert begun.headers["location"] == f"/v1/jobs/{job}"
        status = finished(client, job)
        assert (status["state"], status["progress"], status["error"]) == ("done", 1.0, None)
        assert status["done"] == status["total"]
        result = client.get(str(status["result"]))
        waited = client.post("/v1/perturbations", json=ask).json()
        binary = client.get(str(status["result"]), headers={"accept": wire.ARROW_STREAM})
        assert job in [each["id"] for each in client.get("/v1/jobs").json()]
        assert client.delete(f"/v1/jobs/{job}").status_code == 200
        assert client.get(f"/v1/jobs/{job}").status_code == 404
    assert_same(pd.DataFrame(result.json()["table"]), pd.DataFrame(waited["table"]))
    assert result.json()["counts"] == waited["counts"]
    table, about = wire.unpack_table(binary.content)
    assert_same(table.to_pandas(), pd.DataFrame(waited["table"]).astype({"similarity": "f4"}))
    assert about["notes"] == waited["notes"]


def test_much_work_becomes_a_job_that_can_be_cancelled(served: Served, cells: anndata.AnnData) -> None:
    rows = json_cells(cells)["cells"]
    many = {"genes": GENES, "cells": [row | {"id": f"{row['id']}-{i}"} for i in range(3) for row in rows]}  # type: ignore[attr-defined]
    ask = many | {"perturb": GENES[:30], "pairs": True, "kind": "overexpress"}
    with served.client() as client:
        refused = client.post("/v1/perturbations", json=ask | {"background": False})
        assert refused.status_code == 422
        assert refused.json()["error"]["limit"] == {"name": "perturbation_tokens", "value": 20_000}
        begun = client.post("/v1/perturbations", json=ask)
        assert begun.status_code == 202
        job = begun.json()["id"]
        assert client.get(f"/v1/jobs/{job}/result").status_code == 409
        assert client.post("/v1/embeddings", json=json_cells(cells[:2].copy())).status_code == 200
        assert client.get(f"/v1/jobs/{job}").json()["state"] in ("queued", "running")  # who asks little goes first
        assert client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
        assert finished(client, job)["state"] == "cancelled"
        assert client.get(f"/v1/jobs/{job}/result").status_code == 409


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ({"perturb": ["NOPE"]}, "NOPE"),
        ({"perturb": []}, "perturb"),
        ({"goal": "bored"}, "bored"),
        ({"goal": "well", "layer": 0}, "layer -1"),
        ({"goal": "well", "start": "well"}, "Name each state once"),
        ({"perturb": "all", "together": True}, "together"),
        ({"layer": 7}, "must lie in"),
        ({"kind": "squash"}, "kind"),
        ({"cells": [{"id": "a", "genes": GENES[:2], "counts": [1, 2]}] * 2}, "ids must differ"),
    ],
)
def test_what_makes_no_sense_is_refused(
    served: Served, cells: anndata.AnnData, ask: dict[str, object], said: str
) -> None:
    with served.client() as client:
        answer = client.post("/v1/perturbations", json=json_cells(cells[:2].copy()) | ask)
    assert answer.status_code == 422
    assert said in answer.json()["error"]["message"]


def test_predictions_are_those_of_the_job(served: Served, cells: anndata.AnnData, tmp_path: Path) -> None:
    with served.client() as client:
        answer = client.post("/v1/predictions", json=json_cells(cells) | {"model": "cells"})
        other = client.post("/v1/predictions", json=json_cells(cells))
    corpus = corpus_in(tmp_path, served.vocabulary, cells)
    model, output = str(served.folder / "cells" / "tuned"), str(tmp_path / "predictions")
    made = predict_cells(PredictConfig(corpus=corpus.uri, model=model, output=output, actors=(0, 0), obs_columns=()))
    wanted = rows_in(tmp_path / "predictions", made.parts).drop(columns="source_row")
    assert answer.status_code == 200, answer.text
    assert_same(pd.DataFrame(answer.json()["table"]), wanted)
    assert other.status_code == 422
    assert "fine-tuned" in other.json()["error"]["message"]
