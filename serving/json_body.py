"""Large answers as JSON, a slice of rows at a time: numbers of Python take several times the room of arrays and text.

Knows arrays, tables and the models of answers; what they mean it does not know.
"""

from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel
from pydantic_core import to_json

_NUMBERS_AT_ONCE = 1 << 16
"""Of a slice: 2 MB as numbers of Python."""


def with_field(response: BaseModel, name: str, value: Iterable[bytes]) -> bytes:
    """Return the JSON of an answer, with a field whose JSON comes in pieces."""
    sink = BytesIO()
    sink.write(to_json(response.model_dump(exclude={name}, warnings=False))[:-1])
    sink.write(b"," + to_json(name) + b":")
    sink.writelines(value)
    sink.write(b"}")
    return sink.getvalue()


def rows_json(value_nd: NDArray[np.float32]) -> Iterator[bytes]:
    """Yield the JSON of a matrix; rows with NaN are null."""
    step = max(1, _NUMBERS_AT_ONCE // max(1, value_nd.shape[1]))
    slices = (value_nd[i : i + step] for i in range(0, len(value_nd), step))
    return listed(_rows(part_nd) for part_nd in slices)


def _rows(part_nd: NDArray[np.float32]) -> list[list[float] | None]:
    missing = set(np.flatnonzero(np.isnan(part_nd).any(axis=1)).tolist())
    return [None if i in missing else row for i, row in enumerate(part_nd.tolist())]


def table_json(table: pa.Table) -> Iterator[bytes]:
    """Yield the JSON of a table by its columns; NaN is null."""
    for place, name in enumerate(table.schema.names):
        yield (b"," if place else b"{") + to_json(name) + b":"
        column = table[name]
        yield from listed(column[i : i + _NUMBERS_AT_ONCE].to_pylist() for i in range(0, len(column), _NUMBERS_AT_ONCE))
    yield b"}" if table.schema.names else b"{}"


def listed(parts: Iterable[list[Any]]) -> Iterator[bytes]:
    """Yield the JSON of one list that comes in parts, none of them empty."""
    mark = b"["
    for part in parts:
        yield mark + to_json(part, inf_nan_mode="null")[1:-1]
        mark = b","
    yield b"]" if mark == b"," else b"[]"
