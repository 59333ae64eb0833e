"""What a reader of an upload hands over comes back as it was, and nothing else is believed."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from cellray.api.wire import CellTable
from cellray.data.isolated import CRASHED
from cellray.errors import InputError
from serving.answers import TooMuchError
from serving.handover import Sample, pack, unpack


def cells() -> CellTable:
    columns, counts = np.array([0, 2, 1], np.int32), np.array([3.0, 1.0, 1 / 3])
    return CellTable(["c1", "c2"], ["G1", "G2", "G2"], np.array([0, 2, 3]), columns, counts)


def test_cells_come_back_to_the_last_bit() -> None:
    sent = Sample(cells(), {"type": ["a", None], "age": [1.5, 2.0], "n": [1, 2]}, ["X", "", "Y"], 3)
    found = unpack(pack(sent), "the file")
    assert isinstance(found, Sample)
    assert (found.obs, found.symbols, found.left_out) == (sent.obs, sent.symbols, sent.left_out)
    assert (found.cells.ids, found.cells.genes) == (["c1", "c2"], ["G1", "G2", "G2"])
    for name in ("indptr", "columns", "counts"):
        np.testing.assert_array_equal(getattr(found.cells, name), getattr(sent.cells, name), strict=True)


def test_a_broken_limit_comes_back() -> None:
    found = unpack(pack(TooMuchError("cells_per_request", 5, "6 cells", "Send fewer.")), "the file")
    assert isinstance(found, TooMuchError)
    assert str(found) == "cells_per_request is 5; found 6 cells. Send fewer."


def packed(told: object = None, **arrays: Any) -> bytes:  # noqa: ANN401  # what a stranger may say
    base = cells()
    sound = {"indptr": base.indptr, "columns": base.columns, "counts": base.counts}
    text = json.dumps({"ids": ["c1", "c2"], "genes": ["G1", "G2", "G3"]} if told is None else told)
    return save(sound | arrays | {"told": np.frombuffer(text.encode(), np.uint8)})


def test_the_frame_of_the_refusals_is_sound() -> None:
    assert isinstance(unpack(packed(), "the file"), Sample)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 100,
        packed([]),
        packed({"ids": ["c1"], "genes": ["G1", "G2", "G3"]}),
        packed({"ids": ["c1", 2], "genes": ["G1", "G2", "G3"]}),
        packed({"ids": ["c1", "c2"], "genes": ["G1"]}),
        packed({"ids": ["c1", "c2"], "genes": ["G1", "G2", "G3"], "obs": {"a": [1]}}),
        packed({"ids": ["c1", "c2"], "genes": ["G1", "G2", "G3"], "obs": {"a": [[], {}]}}),
        packed({"ids": ["c1", "c2"], "genes": ["G1", "G2", "G3"], "symbols": ["X"]}),
        packed({"ids": ["c1", "c2"], "genes": ["G1", "G2", "G3"], "path": "/"}),
        packed({"too_much": ["a"]}),
        packed(indptr=np.array([0, 9, 3])),
        packed(columns=np.array([0, -1, 1], np.int32)),
        packed(counts=np.array([1.0, 2.0])),
        packed(counts=np.array([1, 2, 3], np.float32)),
        packed(more=np.zeros(3)),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InputError) as raised:
        unpack(data, "the file")
    assert (raised.value.subject, raised.value.rule) == ("the file", CRASHED)
