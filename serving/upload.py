"""An uploaded .h5ad, read by the code that reads files for tokenization, in a process of its own with limits.

Whatever the file does to its reader is an error that says so. Which genes a model knows is none of its business.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.api.wire import CellTable
from cellray.data import gene_ids
from cellray.data.sources.contract import CountBlock, CountSource, open_source
from cellray.data.untrusted import call_untrusted
from cellray.errors import InputError
from serving.admission import Room
from serving.answers import TooMuchError
from serving.config import Limits
from serving.handover import Sample, pack, unpack

SUBJECT = "the uploaded file"
Reader = Callable[["Upload"], Sample | TooMuchError]
"""Reads a file; runs in the child."""
_FILE = "upload.h5ad"
_BLOCK = 1024
_DAMAGED = "The file is damaged: write it again from its source."
_BYTES_A_COUNT = 12
_MOST_TEXT = 64 << 20
"""Of names and obs columns in what a reader hands over [bytes]."""


@dataclass(frozen=True)
class Upload:
    """A file to read.

    Attributes
    ----------
    path
        Where it was put.
    matrix
        `X`, `raw` or `layers/NAME`.
    gene_ids
        Var column with the gene ids, or `index`; None: `ensembl_id` if there is one, else the index.
    cells, genes, counts, names
        Most cells, most counts of a cell, most counts of all, and most columns.
    draw
        Draw so many cells at random from a file that has more; 0: such a file is refused.
    """

    path: str
    matrix: str
    gene_ids: str | None
    cells: int
    genes: int
    counts: int
    names: int
    draw: int = 0


def read_upload(upload: Upload) -> Sample | TooMuchError:
    """Read all cells of a file, and nothing else of it; runs in the child.

    Raises
    ------
    InputError
        It is no sound .h5ad, or lacks the matrix or the column.
    """
    with open_source(upload.path, upload.matrix) as source:
        found = checked_size(source, upload) or read_cells(source, upload, drawn(source, upload))
    return Sample(found) if isinstance(found, CellTable) else found


def checked_size(source: CountSource, upload: Upload) -> TooMuchError | None:
    """Return what is wrong with the number of cells or columns of an open file.

    Raises
    ------
    InputError
        There is none.
    """
    if source.n_cells > upload.cells and not upload.draw:
        return TooMuchError("cells_per_request", upload.cells, f"{source.n_cells:,} cells", "Send fewer at a time.")
    if source.n_columns > upload.names:
        found = f"{source.n_columns:,} columns"
        return TooMuchError("genes_per_request", upload.names, found, "Leave genes out that no cell expresses.")
    if not source.n_cells:
        raise InputError(SUBJECT, "there must be a cell", "none", "Choose another file.")
    return None


def drawn(source: CountSource, upload: Upload) -> NDArray[np.int64]:
    """Return the rows of an open file that are read, in order: the same ones whenever it is sent."""
    if not upload.draw or source.n_cells <= upload.draw:
        return np.arange(source.n_cells)
    return np.sort(np.random.default_rng(0).choice(source.n_cells, upload.draw, replace=False))


def read_cells(source: CountSource, upload: Upload, row_n: NDArray[np.int64]) -> CellTable | TooMuchError:
    """Read rows of an open file.

    Raises
    ------
    InputError
        It is damaged.
    """
    names, _ = gene_ids.column_names(source, upload.gene_ids)
    blocks, found = [], 0
    for block in source.blocks(0, source.n_cells, _BLOCK):
        blocks.append(_chosen(block, row_n))
        found += len(blocks[-1].counts)
        if found > upload.counts:
            return TooMuchError("counts_per_request", upload.counts, "more counts", "Send fewer cells at a time.")
    lengths = np.concatenate([np.diff(block.indptr) for block in blocks])
    if int(lengths.max()) > upload.genes:
        return TooMuchError("genes_per_cell", upload.genes, f"{int(lengths.max()):,} in a cell", "Leave genes out.")
    columns = np.concatenate([block.columns for block in blocks])
    counts = np.concatenate([block.counts for block in blocks])
    fits = len(columns) == 0 or (columns.min() >= 0 and columns.max() < len(names))
    if lengths.min() < 0 or not fits or counts.dtype.kind not in "fiu":
        raise InputError(SUBJECT, "indices and pointers must fit the matrix", "otherwise", _DAMAGED)
    return CellTable(
        source.cell_names(0, source.n_cells).take(pa.array(row_n)).to_pylist(),
        names,
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        columns.astype(np.int32),
        counts.astype(np.float64),
    )


def _chosen(block: CountBlock, row_n: NDArray[np.int64]) -> CountBlock:
    """Return the rows of a block that are among those wanted."""
    own = row_n[(row_n >= block.start) & (row_n < block.start + block.n_cells)] - block.start
    if len(own) == block.n_cells:
        return block
    starts, lengths = block.indptr[own].astype(np.int64), np.diff(block.indptr)[own].astype(np.int64)
    if lengths.min(initial=0) < 0 or (starts + lengths).max(initial=0) > len(block.counts):
        raise InputError(SUBJECT, "indices and pointers must fit the matrix", "otherwise", _DAMAGED)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    place_t = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
    return CountBlock(block.counts[place_t], block.columns[place_t], indptr, block.n_columns, block.start)


class Uploads:
    """Reads uploaded files, so many at a time, each in a child process and a thread that waits for it.

    Parameters
    ----------
    limits
        Of files, their readers and how many are read at a time.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._room = limits, Room("uploads_at_once", limits.uploads_at_once)
        self._threads = ThreadPoolExecutor(limits.uploads_at_once, "upload")

    async def read(self, body: bytes, matrix: str, column: str | None, read: Reader, draw: int = 0) -> Sample:
        """Return what a reader, as `read_upload`, finds in an uploaded file; see `Upload` for the parameters.

        Raises
        ------
        InputError, TooMuchError
            See `read_upload`; or the file crashed its reader, took it over, or kept it busy for too long.
        HttpError
            429: too many are read now.
        """
        self._room.enter()
        reading = asyncio.get_running_loop().run_in_executor(
            self._threads, _received, body, matrix, column, self._limits, read, draw
        )
        reading.add_done_callback(self._left)  # a reader goes on for a while after its asker is gone
        found = await asyncio.shield(reading)
        if isinstance(found, Exception):
            raise found
        return found

    def _left(self, reading: "asyncio.Future[Sample | TooMuchError | InputError]") -> None:
        self._room.leave()
        if not reading.cancelled():
            reading.exception()  # the asker may be gone, and nobody else looks


def _received(
    body: bytes, matrix: str, column: str | None, limits: Limits, read: Reader, draw: int
) -> Sample | TooMuchError | InputError:
    """Put a file where a child can read it, and let it; believe nothing of the answer that is not checked."""
    with TemporaryDirectory(prefix="cellray-upload-") as folder:
        path = Path(folder) / _FILE
        path.write_bytes(body)
        cells, draw = limits.cells_per_request, min(draw, limits.cells_per_request)
        most = (cells, limits.genes_per_cell, limits.counts_per_request, limits.genes_per_request)
        upload = Upload(str(path), matrix, column, *most, draw)
        memory = int(limits.upload_memory_mb * 1e6)
        size = _BYTES_A_COUNT * limits.counts_per_request + _MOST_TEXT
        answer = call_untrusted(partial(_packed, read), upload, SUBJECT, limits.upload_s, memory, size)
        if isinstance(answer, InputError):
            return InputError(*(str(part).replace(str(path), SUBJECT) for part in answer.args))
        return unpack(answer, SUBJECT)


def _packed(read: Reader, upload: Upload) -> bytes:
    return pack(read(upload))
