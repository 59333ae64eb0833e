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

from cellray.api.wire import CellTable
from cellray.data import gene_ids
from cellray.data.sources.contract import CountSource, open_source
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
    cells, genes, counts
        Most cells, most counts of a cell, and most counts of all.
    """

    path: str
    matrix: str
    gene_ids: str | None
    cells: int
    genes: int
    counts: int


def read_upload(upload: Upload) -> Sample | TooMuchError:
    """Read all cells of a file, and nothing else of it; runs in the child.

    Raises
    ------
    InputError
        It is no sound .h5ad, or lacks the matrix or the column.
    """
    with open_source(upload.path, upload.matrix) as source:
        found = checked_size(source, upload) or read_cells(source, upload)
    return Sample(found) if isinstance(found, CellTable) else found


def checked_size(source: CountSource, upload: Upload) -> TooMuchError | None:
    """Return what is wrong with the number of cells of an open file.

    Raises
    ------
    InputError
        There is none.
    """
    if source.n_cells > upload.cells:
        return TooMuchError("cells_per_request", upload.cells, f"{source.n_cells:,} cells", "Send fewer at a time.")
    if not source.n_cells:
        raise InputError(SUBJECT, "there must be a cell", "none", "Choose another file.")
    return None


def read_cells(source: CountSource, upload: Upload) -> CellTable | TooMuchError:
    """Read all cells of an open file.

    Raises
    ------
    InputError
        It is damaged.
    """
    names, _ = gene_ids.column_names(source, upload.gene_ids)
    blocks, found = [], 0
    for block in source.blocks(0, source.n_cells, _BLOCK):
        blocks.append(block)
        found += len(block.counts)
        if found > upload.counts:
            return TooMuchError("counts_per_request", upload.counts, "more counts", "Send fewer cells at a time.")
    lengths = np.concatenate([np.diff(block.indptr) for block in blocks])
    if int(lengths.max()) > upload.genes:
        return TooMuchError("genes_per_cell", upload.genes, f"{int(lengths.max()):,} in a cell", "Leave genes out.")
    columns = np.concatenate([block.columns for block in blocks])
    counts = np.concatenate([block.counts for block in blocks])
    fits = len(columns) == 0 or (columns.min() >= 0 and columns.max() < len(names))
    if lengths.min() < 0 or not fits or counts.dtype.kind not in "fiu":
        fix = "The file is damaged: write it again from its source."
        raise InputError(SUBJECT, "indices and pointers must fit the matrix", "otherwise", fix)
    return CellTable(
        source.cell_names(0, source.n_cells).to_pylist(),
        names,
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        columns.astype(np.int32),
        counts.astype(np.float64),
    )


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

    async def read(self, body: bytes, matrix: str, column: str | None, read: Reader) -> Sample:
        """Return what a reader, as `read_upload`, finds in an uploaded file.

        Raises
        ------
        InputError, TooMuchError
            See `read_upload`; or the file crashed its reader, took it over, or kept it busy for too long.
        HttpError
            429: too many are read now.
        """
        self._room.enter()
        reading = asyncio.get_running_loop().run_in_executor(
            self._threads, _received, body, matrix, column, self._limits, read
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
    body: bytes, matrix: str, column: str | None, limits: Limits, read: Reader
) -> Sample | TooMuchError | InputError:
    """Put a file where a child can read it, and let it; believe nothing of the answer that is not checked."""
    with TemporaryDirectory(prefix="cellray-upload-") as folder:
        path = Path(folder) / _FILE
        path.write_bytes(body)
        upload = Upload(
            str(path), matrix, column, limits.cells_per_request, limits.genes_per_cell, limits.counts_per_request
        )
        memory = int(limits.upload_memory_mb * 1e6)
        most = _BYTES_A_COUNT * limits.counts_per_request + _MOST_TEXT
        answer = call_untrusted(partial(_packed, read), upload, SUBJECT, limits.upload_s, memory, most)
        if isinstance(answer, InputError):
            return InputError(*(str(part).replace(str(path), SUBJECT) for part in answer.args))
        return unpack(answer, SUBJECT)


def _packed(read: Reader, upload: Upload) -> bytes:
    return pack(read(upload))
