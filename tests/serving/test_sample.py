"""Cells of a file come back with what it tells of them, in the form that requests take; so do examples."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellray.api import wire
from cellray.api.schema import CellsRequest, CellsResponse
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary
from serving.answers import TooMuchError
from serving.encoding import Encoder
from serving.example import GROUP, MADE_UP, REAL, example_cells, made_up, real_cells
from serving.handover import Sample
from serving.sample import cells_body, read_sample
from serving.upload import Upload, read_upload
from tests.infer.tiny import cells_of
from tests.serving.conftest import Served, json_cells, small_vocabulary

H5AD = {"content-type": wire.H5AD}


def read(adata: anndata.AnnData, folder: Path, **options: object) -> CellsResponse:
    adata.write_h5ad(folder / "cells.h5ad")
    made = {"matrix": "X", "gene_ids": None, "cells": 100, "genes": 100, "counts": 1000, "names": 1000} | options
    sample = read_sample(Upload(str(folder / "cells.h5ad"), **made))  # type: ignore[arg-type]
    assert isinstance(sample, Sample)
    return CellsResponse.model_validate_json(cells_body(sample))


def four_cells() -> anndata.AnnData:
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(["a", None, "b", "a"]),
            "age": [1.5, np.nan, np.inf, 2.0],
            "n": [1, 2, 3, 4],
            "well": [True, False, True, True],
        },
        index=["c1", "c2", "c3", "c4"],
    )
    x_ng = sparse.csr_matrix(np.array([[3, 0, 1], [0, 0, 2], [5, 4, 0], [1, 1, 1]], np.float32))
    var = pd.DataFrame({"feature_name": ["GATA4", "TBX5", "MYH6"]}, index=["G1", "G2", "G3"])
    return anndata.AnnData(x_ng, obs=obs, var=var)


def test_cells_and_their_columns_come_back(tmp_path: Path) -> None:
    found = read(four_cells(), tmp_path)
    assert found.genes == ["G1", "G2", "G3"]
    assert found.symbols == ["GATA4", "TBX5", "MYH6"]
    assert [(cell.id, cell.indices, cell.counts) for cell in found.cells[:2]] == [
        ("c1", [0, 2], [3, 1]),
        ("c2", [2], [2]),
    ]
    assert found.obs == {
        "type": ["a", None, "b", "a"],
        "age": [1.5, None, None, 2.0],
        "n": [1, 2, 3, 4],
        "well": ["true", "false", "true", "true"],
    }
    assert (found.obs_left_out, found.about) == (0, "")


def test_columns_of_one_gene_are_summed(tmp_path: Path) -> None:
    adata = four_cells()
    adata.var["ensembl_id"] = ["G9", "G5", "G9"]
    found = read(adata, tmp_path)
    assert (found.genes, found.symbols) == (["G9", "G5"], ["GATA4", "TBX5"])
    table = wire.cells_of(CellsRequest(genes=found.genes, cells=found.cells))
    x_ng = sparse.csr_matrix((table.counts, table.columns, table.indptr), (4, 2)).toarray()
    np.testing.assert_array_equal(x_ng, [[4, 0], [2, 0], [5, 4], [2, 1]])


def test_columns_beyond_the_most_are_counted(tmp_path: Path) -> None:
    adata = four_cells()
    adata.obs = pd.DataFrame({f"o{i}": [i] * 4 for i in range(70)}, index=adata.obs_names)
    found = read(adata, tmp_path)
    assert list(found.obs) == [f"o{i}" for i in range(64)]
    assert found.obs_left_out == 6


def test_counts_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    adata = four_cells()
    adata.X.data[1] = np.nan
    with pytest.raises(InputError, match="finite"):
        read(adata, tmp_path)


def test_made_up_cells_fit_any_model() -> None:
    vocabulary = small_vocabulary()
    sample = made_up(vocabulary)
    assert set(sample.cells.genes) == set(vocabulary.medians)
    notes = Encoder(vocabulary, 16)(sample.cells).notes
    assert min(note.genes_mapped for note in notes) > 0
    assert sorted(set(sample.obs[GROUP])) == ["group A", "group B", "group C"]
    assert cells_body(sample) == cells_body(made_up(vocabulary))
    x_ng = sparse.csr_matrix((sample.cells.counts, sample.cells.columns, sample.cells.indptr)).toarray()
    own = x_ng / x_ng.sum(axis=1, keepdims=True)
    group_n = np.array([name[-1] for name in sample.obs[GROUP]])
    assert own[group_n == "A", 0].mean() > 3 * own[group_n == "B", 0].mean()


def test_examples_are_real_where_the_model_knows_the_genes() -> None:
    real = real_cells()
    assert real is not None
    known = GeneVocabulary.from_medians(dict.fromkeys(real.cells.genes, 1.0), "v1", "symbol", input_size=64)
    sample, unknown = example_cells(known, Encoder(known, 64)), small_vocabulary()
    assert (sample.about, len(sample.cells)) == (REAL, 350)
    assert list(sample.obs) == ["bulk_labels", "n_counts", "n_genes", "phase"]
    assert len(set(sample.obs["bulk_labels"])) == 10
    assert example_cells(unknown, Encoder(unknown, 16)).about == MADE_UP


def test_cells_of_an_upload_can_be_asked_about(served: Served, cells: anndata.AnnData, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with served.client() as client:
        found = client.post("/v1/cells", content=(tmp_path / "cells.h5ad").read_bytes(), headers=H5AD)
        assert found.status_code == 200, found.text
        answer = CellsResponse.model_validate_json(found.content)
        assert answer.obs["state"] == cells.obs["state"].tolist()
        ask = {name: found.json()[name] for name in ("genes", "cells")}
        embedded = client.post("/v1/embeddings", json=ask).json()["embeddings"]
        wanted = client.post("/v1/embeddings", json=json_cells(cells)).json()["embeddings"]
        example = client.get("/v1/example").json()
        assert client.post("/v1/cells", json=ask).status_code == 415
        assert client.post("/v1/cells", content=b"no file", headers=H5AD).status_code == 422
        assert client.get("/v1/example?model=nope").status_code == 404
        described = client.get("/openapi.json").json()
    np.testing.assert_allclose(embedded, wanted, atol=5e-6)
    assert example["about"] == MADE_UP
    assert list(described["paths"]["/v1/cells"]["post"]["requestBody"]["content"]) == [wire.H5AD]
    assert json.dumps(described).count("CellsResponse") >= 2


def test_more_counts_than_the_limit_lets_are_told_before_all_are_read(tmp_path: Path) -> None:
    four_cells().write_h5ad(tmp_path / "cells.h5ad")
    found = read_sample(Upload(str(tmp_path / "cells.h5ad"), "X", None, 100, 100, 5, 1000))
    assert isinstance(found, TooMuchError)
    assert (found.limit, found.value) == ("counts_per_request", 5)


def test_more_columns_than_the_limit_lets_are_told_before_any_is_read(tmp_path: Path) -> None:
    four_cells().write_h5ad(tmp_path / "cells.h5ad")
    columns = four_cells().n_vars
    for read_file in (read_sample, read_upload):
        found = read_file(Upload(str(tmp_path / "cells.h5ad"), "X", None, 100, 100, 1000, columns - 1))
        assert isinstance(found, TooMuchError)
        assert (found.limit, found.value) == ("genes_per_request", columns - 1)
        assert isinstance(read_file(Upload(str(tmp_path / "cells.h5ad"), "X", None, 100, 100, 1000, columns)), Sample)


def test_cells_are_drawn_from_a_file_of_many(tmp_path: Path) -> None:
    adata = cells_of(cells=3000)
    adata.obs["row"] = np.arange(3000)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    upload = Upload(str(tmp_path / "cells.h5ad"), "X", None, 100, 1000, 10**6, 1000, draw=50)
    found, again = read_sample(upload), read_sample(upload)
    assert isinstance(found, Sample)
    assert isinstance(again, Sample)
    rows = found.obs["row"]
    assert (len(found.cells), found.of, len(set(rows))) == (50, 3000, 50)
    assert rows == sorted(rows) == again.obs["row"]
    assert found.cells.ids == adata.obs_names[rows].tolist()
    x_ng = sparse.csr_matrix((found.cells.counts, found.cells.columns, found.cells.indptr), (50, adata.n_vars))
    np.testing.assert_array_equal(x_ng.toarray(), adata.X[rows].toarray())
    whole = read_sample(Upload(str(tmp_path / "cells.h5ad"), "X", None, 100, 1000, 10**6, 1000))
    assert isinstance(whole, TooMuchError)
