"""The binary form: what is packed comes back, and what is damaged or made to do harm is refused."""

import json
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cellray import shift_schema
from cellray.api import schema, wire
from cellray.api.schema import CellsRequest, EmbeddingRequest, ErrorBody, PerturbationRequest
from cellray.api.wire import CellTable, cells_of
from cellray.errors import InputError
from cellray.model import pooling

REQUEST = {
    "genes": ["A", "B", "C"],
    "cells": [
        {"id": "own", "genes": ["D", "B"], "counts": [1, 2]},
        {"id": "indexed", "indices": [2, 0], "counts": [3, 4.0]},
        {"id": "dense", "counts": [5, 0, 6]},
        {"id": "empty", "genes": [], "counts": []},
    ],
}
DENSE = [[0, 2, 0, 1], [4, 0, 3, 0], [5, 0, 6, 0], [0, 0, 0, 0]]


def dense(cells: CellTable) -> list[list[float]]:
    out = np.zeros((len(cells), len(cells.genes)))
    for row, (start, stop) in enumerate(zip(cells.indptr[:-1], cells.indptr[1:], strict=True)):
        out[row, cells.columns[start:stop]] += cells.counts[start:stop]
    return out.tolist()


def small() -> CellTable:
    return cells_of(CellsRequest.model_validate(REQUEST))


def test_json_cells_become_rows() -> None:
    cells = small()
    assert (cells.ids, cells.genes) == (["own", "indexed", "dense", "empty"], ["A", "B", "C", "D"])
    assert dense(cells) == DENSE
    assert cells.longest == 3


def test_cells_survive_the_wire() -> None:
    cells, parameters = wire.unpack_cells(wire.pack_cells(small(), {"pooling": "cls", "layer": 0}))
    assert (cells.ids, cells.genes, parameters) == (
        ["own", "indexed", "dense", "empty"],
        ["A", "B", "C", "D"],
        {"pooling": "cls", "layer": 0},
    )
    assert dense(cells) == DENSE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"genes": ["A", "A", "B"]}, "stands there once"),
        ({"cells": [{"id": "x", "indices": [3], "counts": [1]}]}, "places in the request's genes"),
        ({"cells": [{"id": "x", "indices": [-1], "counts": [1]}]}, "places in the request's genes"),
        ({"cells": [{"id": "x", "counts": [1]}]}, "each count needs a gene"),
    ],
)
def test_cells_without_sense_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cells_of(CellsRequest.model_validate(REQUEST | change))


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"cells": []},
        {"cells": [{"id": "x", "genes": ["A"], "indices": [0], "counts": [1]}]},
        {"cells": [{"id": "x", "genes": ["A"], "counts": [1, 2]}]},
        {"cells": [{"id": "x", "genes": ["A"], "counts": ["1"]}]},
        {"cells": [{"id": "x", "genes": ["A"], "counts": [True]}]},
        {"cells": [{"id": "x" * 513, "genes": [], "counts": []}]},
        {"pooling": "max"},
    ],
)
def test_requests_are_strict(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        EmbeddingRequest.model_validate(REQUEST | change)


def test_embeddings_survive_the_wire() -> None:
    embedding_nd = np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32)
    ids, back_nd, response = wire.unpack_embeddings(wire.pack_embeddings(["a", "b", "c"], embedding_nd, {"layer": -1}))
    assert (ids, response) == (["a", "b", "c"], {"layer": -1})
    np.testing.assert_array_equal(back_nd, embedding_nd)
    table, _ = wire.unpack_table(wire.pack_embeddings(["a", "b", "c"], embedding_nd, {}))
    assert table["embedding"].to_pylist() == [[1, 2], None, [3, 4]]


def packed(**changes: object) -> bytes:
    """Two cells of two genes, some of the vectors replaced."""
    texts = {"ids": ["a", "b"], "genes": ["A", "B"], "parameters": {}}
    arrays = {
        "indptr": np.array([0, 1, 2]),
        "columns": np.array([0, 1], np.int32),
        "counts": np.array([1, 2], np.float32),
    }
    for name, value in changes.items():
        (arrays if isinstance(value, np.ndarray) else texts)[name] = value  # type: ignore[index, assignment]
    told = {name: np.frombuffer(json.dumps(text).encode(), np.uint8) for name, text in texts.items()}
    return save({**told, **arrays})


def test_the_pattern_is_sound() -> None:
    assert dense(wire.unpack_cells(packed())[0]) == [[1, 0], [0, 2]]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (packed(columns=np.array([0, 2], np.int32)), "places in the 2 `genes`"),
        (packed(columns=np.array([-1, 0], np.int32)), "places in the 2 `genes`"),
        (packed(columns=np.array([0], np.int32)), "each count has a column"),
        (packed(columns=np.array([0, 1])), "it has the vectors"),
        (packed(counts=np.array([[1, 2]], np.float32)), "it has the vectors"),
        (packed(indptr=np.array([0, 2])), "a step for each cell"),
        (packed(indptr=np.array([0, 3, 2])), "rises from 0"),
        (packed(indptr=np.array([1, 1, 2])), "rises from 0"),
        (packed(indptr=np.array([], np.int64)), "rises from 0"),
        (packed(more=np.array([1])), "it has the vectors"),
        (packed(genes={"A": 1}), "`genes` is a JSON list of names"),
        (packed(genes=["A", "A"]), "stands there once"),
        (packed(ids=["a", "b" * 513]), "at most 512 characters"),
        (packed(ids=["a", None]), "`ids` is a JSON list"),
        (packed(parameters=[]), "`parameters` is a JSON object"),
        (b"", "it must be safetensors"),
        (b"\xff" * 64, "it must be safetensors"),
    ],
)
def test_bodies_without_sense_are_refused(body: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        wire.unpack_cells(body)


@settings(max_examples=1000)
@given(st.data())
def test_damaged_streams_are_refused_or_read(data: st.DataObject) -> None:
    body = bytearray(wire.pack_cells(small(), {}))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    try:
        cells, _ = wire.unpack_cells(bytes(body))
    except InputError:
        return
    assert cells.indptr[-1] == len(cells.columns) == len(cells.counts)
    assert all(0 <= column < len(cells.genes) for column in cells.columns)


@pytest.mark.parametrize("encoding", ["zstd", "gzip"])
def test_bodies_are_compressed_as_a_whole(encoding: str) -> None:
    body = bytes(5_000_000)
    packed = wire.compress(body, encoding)
    assert len(packed) < 20_000
    assert wire.decompress(packed, encoding, len(body)) == body
    assert wire.decompress(packed, encoding, len(body) - 1) is None
    with pytest.raises(InputError, match=encoding):
        wire.decompress(b"no such thing", encoding, 100)


def test_an_unknown_encoding_is_named() -> None:
    with pytest.raises(InputError, match="zstd, gzip"):
        wire.decompress(b"", "br", 1)


def test_names_are_those_of_the_library() -> None:
    assert typing.get_args(schema.Kind) == typing.get_args(shift_schema.Kind)
    assert typing.get_args(schema.Pooling) == pooling.POOLINGS


@pytest.mark.parametrize("model", [each for each in vars(schema).values() if isinstance(each, type)])
def test_examples_are_valid(model: type) -> None:
    if issubclass(model, schema.Message):
        for example in (model.model_config.get("json_schema_extra") or {}).get("examples", ()):
            model.model_validate_json(json.dumps(example))


def test_examples_are_shown() -> None:
    for model in (EmbeddingRequest, PerturbationRequest, ErrorBody):
        assert model.model_json_schema()["examples"]
