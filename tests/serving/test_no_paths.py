"""A request names no file, address or pickle: what looks like one is unknown, or the name of nothing."""

import asyncio
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anndata
import h5py
import numpy as np
import pytest
from pydantic import ValidationError
from starlette.requests import Request

from cellray.api import schema
from cellray.api.schema import EmbeddingRequest, PerturbationRequest, PredictionRequest
from cellray.api.wire import CELLS, H5AD, JSON, CellTable, pack_cells
from cellray.errors import InputError
from serving.bodies import Parsers, media_type, parse
from serving.config import Limits
from serving.faults import HttpError
from serving.upload import Uploads

REQUESTS = [EmbeddingRequest, PredictionRequest, PerturbationRequest]
BODY: dict[str, Any] = {"cells": [{"id": "c1", "genes": ["ENSG00000000001"], "counts": [3]}]}
LIMITS = Limits()
NAMES = [
    "path",
    "file",
    "uri",
    "url",
    "source",
    "output",
    "vocabulary",
    "checkpoint",
    "pickle",
    "callback",
    "__class__",
]


class Touched:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def parsed(model: type, kind: str, body: bytes, **query: str) -> tuple[CellTable, Any]:
    scope = {"type": "http", "headers": [(b"content-type", kind.encode())], "query_string": urlencode(query).encode()}
    request = Request(scope)
    return asyncio.run(parse(model, request, media_type(request), body, LIMITS, Uploads(LIMITS), Parsers()))


def packed(**parameters: object) -> bytes:
    table = CellTable(["c1"], ["ENSG00000000001"], np.array([0, 1]), np.zeros(1, np.int32), np.ones(1))
    return pack_cells(table, parameters)


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    adata = anndata.AnnData(np.ones((2, 2), np.float32))
    adata.layers["counts"] = adata.X
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_no_field_asks_for_one() -> None:
    fields = {name for model in REQUESTS for name in model.model_fields} | set(schema.CellCounts.model_fields)
    assert not fields & set(NAMES)


@pytest.mark.parametrize("model", REQUESTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_asks_for_one_is_refused(model: type, name: str, upload: Path) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        parsed(model, JSON, json.dumps(BODY | {name: "/etc/passwd"}).encode())
    with pytest.raises(ValidationError, match="Extra inputs"):
        parsed(model, JSON, json.dumps({"cells": [BODY["cells"][0] | {name: "/etc/passwd"}]}).encode())
    with pytest.raises(ValidationError, match="Extra inputs"):
        parsed(model, CELLS, packed(**{name: "/etc/passwd"}))
    with pytest.raises(ValidationError, match="Extra inputs"):
        parsed(model, H5AD, upload.read_bytes(), **{name: "/etc/passwd"})


@pytest.mark.parametrize("matrix", ["/etc/passwd", "layers/../X", "s3://b/X"])
def test_a_matrix_is_one_of_the_file(matrix: str, upload: Path) -> None:
    with pytest.raises(InputError) as caught:
        parsed(EmbeddingRequest, H5AD, upload.read_bytes(), matrix=matrix)
    assert "cellray-upload" not in str(caught.value)  # where the server keeps files is nobody's business


def test_the_files_own_matrices_are_found(upload: Path) -> None:
    """So that the refusals above are not of everything."""
    for matrix in ("X", "layers/counts"):
        cells, _ = parsed(EmbeddingRequest, H5AD, upload.read_bytes(), matrix=matrix)
        assert cells.counts.tolist() == [1, 1, 1, 1]


def test_a_file_that_leads_elsewhere_is_refused(upload: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.full(4, 42, np.float32).tobytes())
    with h5py.File(upload, "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        file.create_dataset("X", (2, 2), "f4", external=[(str(secret), 0, 16)]).attrs.update(attributes)
    with pytest.raises(InputError, match="may not lead into other files"):
        parsed(EmbeddingRequest, H5AD, upload.read_bytes())


@pytest.mark.parametrize("model", REQUESTS)
def test_a_pickle_is_never_opened(model: type, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    body = pickle.dumps(Touched(touched))
    for kind in (JSON, CELLS, H5AD):
        with pytest.raises((ValidationError, InputError)):
            parsed(model, kind, body)
    for kind in ("application/octet-stream", "application/x-python-pickle", "text/plain"):
        with pytest.raises(HttpError) as caught:
            parsed(model, kind, body)
        assert caught.value.status == 415
    assert not touched.exists()
