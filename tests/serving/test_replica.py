"""A replica without HTTP and without Ray: heads of genes, layers that share weights, plans of another version."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

from cellray.api.schema import CellsRequest, PerturbationRequest
from cellray.api.wire import CellTable, cells_of
from cellray.errors import InputError
from cellray.infer.predict import PredictConfig, predict_cells
from cellray.model.checkpoint import ModelDirectory
from cellray.model.encoder import load_encoder
from cellray.vocabulary import GeneVocabulary
from serving.answers import ModelChangedError, ScreenPlan, Tabled, TooMuchError
from serving.batcher import ComputeError
from serving.config import ModelOptions
from serving.loaded import LoadedModel, first_layers
from serving.perturbing import Screen
from serving.ranking import strongest
from serving.replica import ModelReplica
from tests.conftest import GENES
from tests.infer.tiny import DOSAGE, corpus_in, model_in, rows_in
from tests.serving.conftest import json_cells, small_vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> GeneVocabulary:
    return small_vocabulary()


@pytest.fixture(scope="module")
def replica(vocabulary: GeneVocabulary, tmp_path_factory: pytest.TempPathFactory) -> ModelReplica:
    folder = tmp_path_factory.mktemp("replica")
    return ModelReplica("m", ModelOptions(uri=model_in(folder, vocabulary, DOSAGE), threads=1), 30)


def table_of(adata: anndata.AnnData) -> CellTable:
    return cells_of(CellsRequest.model_validate_json(json.dumps(json_cells(adata))))


def test_heads_of_genes_tell_of_each_gene_of_a_cell(
    replica: ModelReplica, vocabulary: GeneVocabulary, cells: anndata.AnnData, tmp_path: Path
) -> None:
    found = asyncio.run(replica.predict(table_of(cells))).table.to_pandas()
    model = replica._options.uri
    config = PredictConfig(
        corpus=corpus_in(tmp_path, vocabulary, cells).uri,
        model=model,
        output=str(tmp_path / "told"),
        actors=(0, 0),
        level="token",
        obs_columns=(),
    )
    wanted = rows_in(tmp_path / "told", predict_cells(config).parts).drop(columns="source_row")
    assert found.columns.tolist() == wanted.columns.tolist()
    assert found[["cell_id", "gene", "dosage"]].equals(wanted[["cell_id", "gene", "dosage"]])
    for column in wanted.columns[3:]:
        np.testing.assert_allclose(found[column], wanted[column], atol=2e-6)


def test_a_model_that_is_replaced_while_it_plans_answers_all_the_same(
    replica: ModelReplica, cells: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = PerturbationRequest.model_validate(json_cells(cells[:1].copy()))
    wanted = asyncio.run(replica.perturb(table_of(cells[:1].copy()), request, 10**9, 10**9))
    screens, plan = replica._screens, Screen.plan

    def replaced(*arguments: Any) -> ScreenPlan:  # noqa: ANN401
        monkeypatch.setattr(replica, "_screens", None)  # as a swap does
        return plan(*arguments)

    monkeypatch.setattr(Screen, "plan", replaced)
    found = asyncio.run(replica.perturb(table_of(cells[:1].copy()), request, 10**9, 10**9))
    assert isinstance(found, Tabled)
    assert isinstance(wanted, Tabled)
    assert found.table.equals(wanted.table)
    monkeypatch.setattr(replica, "_screens", screens)


def test_the_plan_counts_the_anchors_copies(replica: ModelReplica, cells: anndata.AnnData) -> None:
    request = PerturbationRequest.model_validate(json_cells(cells[:2].copy()) | {"anchor": GENES[:1], "top": None})
    plan = asyncio.run(replica.perturb(table_of(cells[:2].copy()), request, 0, 10**9))
    assert isinstance(plan, ScreenPlan)
    rows = sum(table.num_rows + skipped for table, skipped in replica._screens.require(plan).measure(plan))
    assert rows <= plan.perturbations <= rows + 2 * len(plan.ids)
    assert plan.perturbations == sum(piece.copies for piece in plan.pieces)


def test_predictions_of_no_known_gene_are_an_empty_table(replica: ModelReplica) -> None:
    cells = CellTable(["a"], GENES[:3], np.array([0, 0]), np.empty(0, np.int32), np.empty(0))
    found = asyncio.run(replica.predict(cells))
    assert found.table.num_rows == 0
    assert found.table.schema.names[:3] == ["cell_id", "gene", "dosage"]
    assert found.notes[0].tokens == 0


@pytest.mark.parametrize("layer", [0, -1, -3])
def test_layers_share_weights(vocabulary: GeneVocabulary, tmp_path: Path, layer: int) -> None:
    directory = ModelDirectory.open(model_in(tmp_path, vocabulary))
    alone, whole = load_encoder(directory, layer), load_encoder(directory, 0)
    shared = first_layers(whole, directory.n_layers + layer)
    ids_nl = torch.randint(4, 30, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(shared(ids_nl), alone(ids_nl), rtol=0, atol=0)
    assert shared.bert.embeddings is whole.bert.embeddings


def test_many_kinds_of_request_at_once(replica: ModelReplica, cells: anndata.AnnData) -> None:
    table = table_of(cells)

    async def ask() -> list[np.ndarray]:
        kinds = [("cell", -1), ("cls", 0), ("cell", 0), ("gene", -1)] * 5
        return [each.embedding_nd for each in await asyncio.gather(*(replica.embed(table, *kind) for kind in kinds))]

    found = asyncio.run(ask())
    for number, own in enumerate(found):
        np.testing.assert_allclose(own, found[number % 4], atol=2e-6)


def test_plans_are_cut_and_put_together(replica: ModelReplica, cells: anndata.AnnData) -> None:
    table = table_of(cells[:4].copy())
    asked = PerturbationRequest.model_validate({"cells": [{"id": "", "counts": []}], "top": None})

    async def ask() -> None:
        whole = await replica.perturb(table, asked, 10**9, 10**9)
        plan = await replica.perturb(table, asked, 0, 10**9)
        assert isinstance(plan, ScreenPlan)
        assert isinstance(whole, Tabled)
        parts = [await replica.measure(plan.part(i, i + 1)) for i in range(len(plan.pieces))]
        rows = [row for part in parts for row in part.table.to_pylist()]
        assert [row["genes"] for row in rows] == whole.table["genes"].to_pylist()
        np.testing.assert_allclose([row["similarity"] for row in rows], whole.table["similarity"], atol=2e-6)
        assert sum(piece.stop - piece.first for piece in plan.pieces) == plan.perturbations
        other = replace(plan, stamp=plan.stamp.model_copy(update={"digest": "other"}))
        with pytest.raises(ModelChangedError):
            await replica.measure(other)
        with pytest.raises(TooMuchError, match="job_tokens is 10"):
            await replica.perturb(table, asked, 0, 10)

    asyncio.run(ask())


def test_a_replica_that_computes_nothing_but_errors_is_ill(
    vocabulary: GeneVocabulary, cells: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ill = ModelReplica("m", ModelOptions(uri=model_in(tmp_path, vocabulary), threads=1), 30)
    table = table_of(cells[:2].copy())

    def fail(*_: object) -> None:
        raise MemoryError

    async def ask() -> None:
        await ill.check_health()
        with monkeypatch.context() as broken:
            broken.setattr(LoadedModel, "embed", fail)
            for _ in range(3):
                await ill.check_health()
                with pytest.raises(ComputeError, match="MemoryError"):
                    await ill.embed(table, "cell", -1)
        with pytest.raises(RuntimeError, match="3 computations failed one after the other"):
            await ill.check_health()
        assert (await ill.embed(table, "cell", -1)).tokens > 0
        await ill.check_health()
        monkeypatch.setattr(ill._batcher, "_turn_began", time.monotonic() - 61)
        with pytest.raises(RuntimeError, match=r"has not ended for 6\d s"):
            await ill.check_health()

    asyncio.run(ask())


def test_the_strongest_by_hand() -> None:
    import pyarrow as pa

    table = pa.table(
        {
            "cell_id": ["b", "a", "a", "b", "a"],
            "perturbation": [1, 1, 2, 2, 3],
            "similarity": [0.5, 0.9, 0.7, 0.6, float("nan")],
            "shift:up": [0.1, -0.3, 0.2, -0.2, 0.0],
        }
    )
    numbers = [
        strongest(table, ["a", "b"], goal, top)["perturbation"].to_pylist()
        for goal in (None, "up")
        for top in (1, None)
    ]
    assert numbers == [[2, 1], [2, 1, 3, 1, 2], [1, 2], [1, 2, 3, 2, 1]]


def test_an_official_directory_needs_a_vocabulary(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    uri = Path(model_in(tmp_path, vocabulary))
    (uri / "vocabulary.json").unlink()
    (uri / "provenance.json").unlink()
    with pytest.raises(InputError, match=r"no vocabulary\.json"):
        LoadedModel("m", ModelOptions(uri=str(uri)))
    vocabulary.save(str(tmp_path / "v.json"))
    loaded = LoadedModel("m", ModelOptions(uri=str(uri), vocabulary=str(tmp_path / "v.json")))
    assert loaded.stamp.vocabulary_digest == vocabulary.digest
