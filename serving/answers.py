"""What a replica gives back, as arrays and tables; the HTTP side turns it into JSON or the binary form. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.api.schema import CellNote, ModelStamp, PerturbationRequest
from cellray.api.wire import CellTable
from cellray.data.collate import TokenRows

_NOTE_BYTES, _PIECE_BYTES, _TEXT_BYTES = 600, 150, 80
"""Of a note, of a piece of a plan and of a name in memory, about."""


@dataclass(frozen=True)
class Embedded:
    """Embeddings of cells.

    Attributes
    ----------
    stamp, notes
        Who answered, and what became of each cell.
    embedding_nd
        A row for each cell, or for `gene` each gene token; NaN for cells without a known gene.
    cell_t, gene_t
        For `gene`: which cell each row is of, and its gene.
    """

    stamp: ModelStamp
    notes: list[CellNote]
    embedding_nd: NDArray[np.float32]
    cell_t: NDArray[np.int64] | None = None
    gene_t: Sequence[str] = ()

    @property
    def tokens(self) -> int:
        """Tokens that were computed."""
        return sum(note.tokens for note in self.notes)


@dataclass(frozen=True)
class Tabled:
    """A table about cells: predictions, or effects of perturbations."""

    stamp: ModelStamp
    notes: list[CellNote]
    table: pa.Table
    counts: dict[str, int] = field(default_factory=dict)
    tokens: int = 0

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        return int(self.table.nbytes) + _NOTE_BYTES * len(self.notes)


@dataclass(frozen=True)
class Piece:
    """Some perturbations of one cell: `first` to before `stop`, by ranks or as listed; `copies` of the cell at most."""

    cell: int
    first: int
    stop: int
    copies: int


@dataclass(frozen=True)
class Origin:
    """What a plan was made from: another version of the model makes another plan of it.

    Attributes
    ----------
    cells, request
        That were asked.
    most
        Tokens that a plan may have.
    """

    cells: CellTable
    request: PerturbationRequest
    most: int

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        cells = self.cells
        arrays = cells.indptr.nbytes + cells.columns.nbytes + cells.counts.nbytes
        return int(arrays) + _TEXT_BYTES * (len(cells.genes) + len(cells.ids))


@dataclass(frozen=True)
class ScreenPlan:
    """A screen that is ready to be computed, on any replica that holds the same model.

    Attributes
    ----------
    stamp, notes
        Of the model that encoded the cells, and what became of each cell.
    ask
        Fields of `PerturbationRequest` besides cells and genes.
    ids, rows
        Cells with a known gene, and their token rows.
    pieces
        All perturbations, in pieces of about a second's work.
    perturbations, tokens
        Of all pieces at most.
    origin
        What it was made from, if it may have to be made again.
    """

    stamp: ModelStamp
    notes: list[CellNote]
    ask: dict[str, Any]
    ids: Sequence[str]
    rows: TokenRows
    pieces: Sequence[Piece]
    perturbations: int
    tokens: int
    origin: Origin | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        arrays = self.rows.input_ids.nbytes + self.rows.offsets.nbytes
        made = _PIECE_BYTES * len(self.pieces) + _NOTE_BYTES * len(self.notes)
        return int(arrays) + made + (0 if self.origin is None else self.origin.nbytes)

    def part(self, start: int, stop: int) -> "ScreenPlan":
        """Return a plan of some of the pieces, with the cells they need and no notes."""
        pieces = self.pieces[start:stop]
        first, last = pieces[0].cell, pieces[-1].cell + 1
        offsets = self.rows.offsets[first : last + 1]
        rows = TokenRows(self.rows.input_ids[offsets[0] : offsets[-1]], offsets - offsets[0])
        own = [replace(piece, cell=piece.cell - first) for piece in pieces]
        done = sum(piece.copies for piece in pieces)
        return ScreenPlan(self.stamp, [], self.ask, self.ids[first:last], rows, own, done, 0)


class ModelChangedError(RuntimeError):
    """A plan was made for another version of the model than this replica holds now."""


class TooMuchError(ValueError):
    """A request asks for more than a limit lets.

    Parameters
    ----------
    limit, value
        Name of the limit in the configuration, and what it is.
    found
        What was asked.
    fix
        What to do about it.
    """

    def __init__(self, limit: str, value: float, found: str, fix: str) -> None:
        super().__init__(limit, value, found, fix)
        self.limit, self.value, self.found, self.fix = limit, value, found, fix

    def __str__(self) -> str:
        return f"{self.limit} is {self.value:,.10g}; found {self.found}. {self.fix}"
