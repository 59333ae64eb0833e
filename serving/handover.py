"""What a reader of an uploaded file hands to the server: safetensors, which are checked like a stranger's.

The reader may have been taken over by the file, so nothing is believed but that these are bytes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json
from safetensors.numpy import save

from cellray.api.wire import CellTable, check_rows, load_vectors
from cellray.data.isolated import CRASHED, FIX
from cellray.errors import InputError
from serving.answers import TooMuchError

_ARRAYS: dict[str, np.dtype[Any]] = {
    "indptr": np.dtype(np.int64),
    "columns": np.dtype(np.int32),
    "counts": np.dtype(np.float64),
}
_TOLD = "told"


@dataclass(frozen=True)
class Sample:
    """Cells and what is told of them.

    Attributes
    ----------
    cells
        Their counts.
    obs
        Columns with a value a cell: text, whole numbers or finite numbers; None where there is none.
    symbols
        Names of the genes for people, if the file has a column of them.
    left_out
        Obs columns beyond the most that are told.
    of
        Cells of the file; 0: not told.
    about
        Where the cells come from; empty for a file of the caller's.
    """

    cells: CellTable
    obs: dict[str, list[Any]] = field(default_factory=dict)
    symbols: list[str] | None = None
    left_out: int = 0
    of: int = 0
    about: str = ""


class _Told(BaseModel):
    """What is no array."""

    model_config = ConfigDict(strict=True, extra="forbid")

    too_much: tuple[str, float, str, str] | None = Field(None, strict=False)
    ids: list[str] = []
    genes: list[str] = []
    obs: dict[str, list[str | int | float | None]] = {}
    symbols: list[str] | None = None
    left_out: int = Field(0, ge=0)
    of: int = Field(0, ge=0)


def pack(found: Sample | TooMuchError) -> bytes:
    """Return what a reader found as bytes; `about` is not among it."""
    if isinstance(found, TooMuchError):
        told, arrays = _Told(too_much=found.args), {name: np.zeros(0, kind) for name, kind in _ARRAYS.items()}
    else:
        cells = found.cells
        told = _Told.model_construct(
            ids=list(cells.ids),
            genes=list(cells.genes),
            obs=found.obs,
            symbols=None if found.symbols is None else list(found.symbols),
            left_out=found.left_out,
            of=found.of,
        )
        arrays = {name: np.ascontiguousarray(getattr(cells, name), kind) for name, kind in _ARRAYS.items()}
    return save(arrays | {_TOLD: np.frombuffer(to_json(told), np.uint8)})


def unpack(data: bytes, subject: str) -> Sample | TooMuchError:
    """Return what a reader found.

    Parameters
    ----------
    data
        From `pack`, or from a file that took its reader over.
    subject
        The file to name.

    Raises
    ------
    InputError
        This is nothing that `pack` makes.
    """
    try:
        found = load_vectors(data, _ARRAYS | {_TOLD: np.dtype(np.uint8)})
        told = _Told.model_validate(from_json(found[_TOLD].tobytes()))
        if told.too_much is not None:
            return TooMuchError(*told.too_much)
        cells = CellTable(told.ids, told.genes, *(found[name] for name in _ARRAYS))
        check_rows(cells)
        fits = told.symbols is None or len(told.symbols) == len(told.genes)
        if not fits or any(len(values) != len(cells) for values in told.obs.values()):
            raise ValueError("a column of another length")
    except (InputError, ValidationError, ValueError):
        raise InputError(subject, CRASHED, "its reader gave an answer that is none", FIX) from None
    return Sample(cells, told.obs, told.symbols, told.left_out, told.of)
