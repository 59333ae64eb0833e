"""The binary form: what is packed comes back, and what is damaged or made to do harm is refused."""

import json
import typing

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def stream(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def cell_table(
    gene: list[list[int] | None], count: list[list[float] | None], ids: list[str | None], genes: object = ("A", "B")
) -> pa.Table:
    metadata = {"genes": json.dumps(genes), "parameters": "{}"}
    kinds = pa.schema(
        [("id", pa.string()), ("gene", pa.list_(pa.int32())), ("count", pa.list_(pa.float32()))], metadata
    )
    return pa.table({"id": ids, "gene": gene, "count": count}, schema=kinds)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (cell_table([[0, 2]], [[1, 1]], ["a"]), "places in the 2 `genes`"),
        (cell_table([[-1]], [[1]], ["a"]), "places in the 2 `genes`"),
        (cell_table([[0, 1]], [[1]], ["a"]), "as many genes as counts"),
        (cell_table([[0]], [[None]], ["a"]), "none of them null"),
        (cell_table([None], [None], ["a"]), "none of them null"),
        (cell_table([[0]], [[1]], [None]), "none of them null"),
        (cell_table([[0]], [[1]], ["a"], {"A": 1}), "JSON list of names"),
        (cell_table([[0]], [[1]], ["a"], ["A", "A"]), "stands there once"),
        (cell_table([[0]], [[1]], ["a" * 513]), "512 characters"),
        (pa.table({"id": ["a"]}), "it has the columns"),
        (pa.table({"id": pa.array(["a"]).dictionary_encode()}), "without dictionaries"),
    ],
)
def test_tables_without_sense_are_refused(table: pa.Table, said: str) -> None:
    with pytest.raises(InputError, match=said):
        wire.unpack_cells(stream(table))


def test_a_bomb_of_compressed_buffers_is_not_opened() -> None:
    zeros = pa.ListArray.from_arrays(pa.array([0, 10_000_000], pa.int32()), pa.array(np.zeros(10_000_000, np.int32)))
    counts = pa.ListArray.from_arrays(zeros.offsets, pa.array(np.zeros(10_000_000, np.float32)))
    table = pa.table([pa.array(["a"]), zeros, counts], schema=cell_table([[0]], [[1]], ["a"]).schema)
    bomb = stream(table, compression="lz4")
    assert len(bomb) < 1_000_000
    before = pa.total_allocated_bytes()
    with pytest.raises(InputError, match="compressed buffers"):
        wire.unpack_cells(bomb)
    assert pa.total_allocated_bytes() - before < 10_000_000


@settings(max_examples=300, deadline=None, derandomize=True)
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


def test_streams_with_pieces_cut_out_or_twice() -> None:
    """Messages of another kind than expected must not reach Arrow, which crashes on them."""
    rng, body = np.random.default_rng(0), wire.pack_cells(small(), {"layer": 0})
    read = 0
    for _ in range(4000):
        damaged = bytearray(body)
        for _ in range(int(rng.integers(1, 5))):
            place, length = int(rng.integers(len(damaged))), int(rng.integers(1, 50))
            match int(rng.integers(3)):
                case 0:
                    damaged[place] = int(rng.integers(256))
                case 1:
                    del damaged[place : place + length]
                case _:
                    damaged[place:place] = damaged[place : place + length]
        try:
            cells, _ = wire.unpack_cells(bytes(damaged))
            read += 1
        except InputError:
            continue
        assert cells.indptr[-1] == len(cells.columns) == len(cells.counts)
    assert 0 < read < 2000


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
