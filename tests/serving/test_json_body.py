"""Large answers in slices are the JSON that they would be as a whole."""

import json

import numpy as np
import pyarrow as pa
import pytest

from cellray.api.schema import EmbeddingResponse, PerturbationResponse
from serving import json_body
from serving.answers import Embedded, Tabled
from serving.tables import embedding_body, perturbation_body
from tests.serving.test_background import STAMP, plan_of

NOTES = plan_of(5, 1).notes


@pytest.fixture(params=[1, 4, 1000])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of one number, of several, and all in one."""
    monkeypatch.setattr(json_body, "_NUMBERS_AT_ONCE", request.param)


@pytest.mark.usefixtures("at_once")
def test_embeddings_in_slices() -> None:
    embedding_nd = np.arange(10, dtype=np.float32).reshape(5, 2) / 8
    embedding_nd[3, 1] = np.nan
    found = EmbeddingResponse.model_validate_json(
        embedding_body(Embedded(STAMP, NOTES, embedding_nd), "cell", -1, binary=False)
    )
    assert found.embeddings == [[0.0, 0.125], [0.25, 0.375], [0.5, 0.625], None, [1.0, 1.125]]
    assert (found.notes, found.model, found.genes) == (NOTES, STAMP, None)


def test_embeddings_of_genes_cell_by_cell() -> None:
    cell_t, names = np.array([0, 0, 4]), ["g1", "g2", "g1"]
    answer = Embedded(STAMP, NOTES, np.ones((3, 2), np.float32), cell_t, names)
    found = EmbeddingResponse.model_validate_json(embedding_body(answer, "gene", 0, binary=False))
    assert found.genes is not None
    assert [(each.id, each.genes, each.embeddings) for each in found.genes] == [
        ("c0", ["g1", "g2"], [[1.0, 1.0], [1.0, 1.0]]),
        ("c1", [], []),
        ("c2", [], []),
        ("c3", [], []),
        ("c4", ["g1"], [[1.0, 1.0]]),
    ]
    assert found.embeddings is None


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_tables_in_slices(rows: int) -> None:
    names = [f'c"{i}' if i % 2 else None for i in range(rows)]
    values = pa.array([float("nan") if i == 3 else i / 4 for i in range(rows)], pa.float32())
    table = pa.table(
        {'a "name"': pa.array(names, pa.string()), "value": values, "n": pa.array(range(rows), pa.int64())}
    )
    body = perturbation_body(Tabled(STAMP, NOTES, table, {"perturbations": rows}), binary=False)
    assert json.loads(body)["table"] == {
        'a "name"': names,
        "value": [None if i == 3 else i / 4 for i in range(rows)],
        "n": list(range(rows)),
    }
    found = PerturbationResponse.model_validate_json(body)
    assert (found.notes, found.counts) == (NOTES, {"perturbations": rows})


def test_a_table_without_columns() -> None:
    assert json.loads(perturbation_body(Tabled(STAMP, [], pa.table({})), binary=False))["table"] == {}
