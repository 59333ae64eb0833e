"""The binary forms: cells come as safetensors, tables go as an Arrow IPC stream.

A server reads what strangers send, and a damaged Arrow stream can end the process that reads it (pyarrow aborts in C++
on lengths that it cannot hold); safetensors are bytes behind a checked header. So requests are safetensors and answers,
which clients read, Arrow. Whole bodies may be compressed (HTTP's Content-Encoding): `decompress` gives no more than it
is let.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cellray.api.schema import CELL_ID_LENGTH, GENE_LENGTH, CellsRequest
from cellray.errors import InputError

CELLS = "application/vnd.cellray.cells"
"""Media type of cells in binary: safetensors `ids`, `genes` and `parameters` (JSON as uint8), `indptr`, `columns` and
`counts`."""
ARROW_STREAM = "application/vnd.apache.arrow.stream"
"""Media type of answers in binary."""
H5AD = "application/x-hdf5"
"""Media type of an uploaded .h5ad."""
JSON = "application/json"
ID, GENE, EMBEDDING = "id", "gene", "embedding"
CODECS = {"zstd": "zstd", "gzip": "gzip"}
"""Content-Encoding to Arrow's codec."""

_ARRAYS: dict[str, np.dtype[Any]] = {
    "indptr": np.dtype(np.int64),
    "columns": np.dtype(np.int32),
    "counts": np.dtype(np.float32),
}
_TEXTS = {"ids": list, "genes": list, "parameters": dict}
_RESPONSE = b"response"
_SUBJECT = "the body"


@dataclass(frozen=True)
class CellTable:
    """Counts of some cells in compressed sparse rows.

    Attributes
    ----------
    ids
        Names of the cells.
    genes
        Ids of the columns.
    indptr, columns, counts
        The CSR arrays: int64, int32, float32 or float64. Columns of a row may stand in any order, and twice.
    """

    ids: Sequence[str]
    genes: Sequence[str]
    indptr: NDArray[np.int64]
    columns: NDArray[np.int32]
    counts: NDArray[np.floating]

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Most counts of a cell."""
        return int(np.diff(self.indptr).max()) if len(self) else 0


def cells_of(request: CellsRequest) -> CellTable:
    """Return the cells of a request as arrays.

    Raises
    ------
    InputError
        An index is out of range, shared genes are missing or listed twice, or a cell of no own genes has another
        number of counts than there are shared genes.
    """
    place = {gene: i for i, gene in enumerate(request.genes or ())}
    if len(place) < len(request.genes or ()):
        raise InputError("genes", "a gene stands there once", "one twice", "Sum the counts of repeated genes.")
    shared = len(place)
    columns: list[Any] = []
    for cell in request.cells:
        if cell.genes is not None:
            columns.append([place.setdefault(gene, len(place)) for gene in cell.genes])
        elif cell.indices is not None:
            if cell.indices and not 0 <= min(cell.indices) <= max(cell.indices) < shared:
                found = f"{min(cell.indices)}..{max(cell.indices)} for {shared:,} genes"
                raise InputError(f"cell {cell.id!r}", "indices are places in the request's genes", found, "Mend them.")
            columns.append(cell.indices)
        elif len(cell.counts) != shared:
            found = f"{len(cell.counts):,} counts for {shared:,} genes"
            fix = "Give the cell `genes` or `indices`, or a count for each of the request's genes."
            raise InputError(f"cell {cell.id!r}", "each count needs a gene", found, fix)
        else:
            columns.append(range(shared))
    lengths = [len(cell.counts) for cell in request.cells]
    return CellTable(
        [cell.id for cell in request.cells],
        list(place),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        np.concatenate([np.asarray(each, np.int32) for each in columns]),
        np.concatenate([np.asarray(cell.counts, np.float64) for cell in request.cells]),
    )


def pack_cells(cells: CellTable, parameters: Mapping[str, Any]) -> bytes:
    """Return cells and the request's other fields in binary.

    Parameters
    ----------
    parameters
        Fields of the request model besides `genes` and `cells`, as `{"pooling": "cls"}`.
    """
    texts = {"ids": list(cells.ids), "genes": list(cells.genes), "parameters": dict(parameters)}
    arrays: dict[str, NDArray[Any]] = {"indptr": cells.indptr, "columns": cells.columns, "counts": cells.counts}
    packed = {name: np.frombuffer(json.dumps(value).encode(), np.uint8) for name, value in texts.items()}
    packed |= {name: np.ascontiguousarray(value, _ARRAYS[name]) for name, value in arrays.items()}
    return save(packed)


def unpack_cells(data: bytes) -> tuple[CellTable, dict[str, Any]]:
    """Return the cells of a binary request and its other fields.

    Raises
    ------
    InputError
        These are no such safetensors, or they are damaged, or indices are out of range.
    """
    found = load_vectors(data, {name: np.dtype(np.uint8) for name in _TEXTS} | _ARRAYS)
    ids, genes, parameters = (_text(found[name], kind) for name, kind in _TEXTS.items())
    _check_names(ids, genes)
    if parameters is None:
        raise _refused("`parameters` is a JSON object", "something else")
    cells = CellTable(ids, genes, *(found[name] for name in _ARRAYS))
    check_rows(cells)
    return cells, parameters


def load_vectors(data: bytes, kinds: Mapping[str, np.dtype[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a stranger's safetensors: vectors of these names and kinds, and nothing else.

    Raises
    ------
    InputError
        They are something else, or damaged.
    """
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise _refused(f"it must be safetensors ({CELLS})", " ".join(str(error).split())[:200]) from None
    if {name: each.dtype for name, each in found.items()} != kinds or any(each.ndim != 1 for each in found.values()):
        told = ", ".join(f"{name}: {each.dtype}{list(each.shape)}" for name, each in found.items())[:500]
        raise _refused(f"it has the vectors {', '.join(f'{n}: {k}' for n, k in kinds.items())}", told or "none")
    return found


def check_rows(cells: CellTable) -> None:
    """Check that the arrays of cells fit each other.

    Raises
    ------
    InputError
        They do not.
    """
    indptr, columns, counts = cells.indptr, cells.columns, cells.counts
    ends = [*indptr[:1].tolist(), *indptr[-1:].tolist()]
    if len(indptr) != len(cells) + 1 or ends != [0, len(columns)] or len(columns) != len(counts) or _falls(indptr):
        rule = "`indptr` rises from 0 to the number of counts, a step for each cell, and each count has a column"
        raise _refused(rule, f"{len(cells)} cells, {len(columns)} columns, {len(counts)} counts, indptr {ends}")
    if len(columns) and not 0 <= columns.min() <= columns.max() < len(cells.genes):
        rule = f"`columns` holds places in the {len(cells.genes):,} `genes`"
        raise _refused(rule, f"{columns.min()}..{columns.max()}")


def _text(bytes_n: NDArray[np.uint8], kind: type) -> Any:  # noqa: ANN401  # JSON
    """Return the JSON of a vector of bytes; None if it is none, or of another kind."""
    try:
        value = json.loads(bytes_n.tobytes())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def _check_names(ids: Any, genes: Any) -> None:  # noqa: ANN401  # JSON
    """Check the names of cells and genes."""
    for name, found, longest in (("ids", ids, CELL_ID_LENGTH), ("genes", genes, GENE_LENGTH)):
        if found is None or not all(isinstance(each, str) and len(each) <= longest for each in found):
            raise _refused(f"`{name}` is a JSON list of names of at most {longest} characters", "something else")
    if len(set(genes)) < len(genes):
        raise InputError("genes", "a gene stands there once", "one twice", "Sum the counts of repeated genes.")


def _falls(indptr: NDArray[np.int64]) -> bool:
    return bool((indptr[1:] < indptr[:-1]).any())


def pack_embeddings(ids: Sequence[str], embedding_nd: NDArray[np.float32], response: Mapping[str, Any]) -> bytes:
    """Return embeddings in binary; rows of NaN become null.

    Parameters
    ----------
    ids
        Of the cells.
    embedding_nd
        Shape (cells, hidden).
    response
        All fields of the answer besides the embeddings.
    """
    table = pa.table({ID: pa.array(ids, pa.string()), EMBEDDING: vectors(embedding_nd)})
    return pack_table(table, response)


def vectors(embedding_nd: NDArray[np.float32]) -> pa.Array:
    """Return rows as an Arrow column; rows of NaN become null."""
    missing = np.isnan(embedding_nd).any(axis=1)
    values = pa.array(np.ascontiguousarray(embedding_nd, np.float32).reshape(-1))
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(values, embedding_nd.shape[1], mask=mask)


def unpack_embeddings(data: bytes | pa.Buffer) -> tuple[list[str], NDArray[np.float32], dict[str, Any]]:
    """Return ids, embeddings (cells x hidden, NaN where there is none) and the answer's other fields.

    Raises
    ------
    InputError
        This is no such stream, or it is damaged.
    """
    table, response = unpack_table(data)
    kind: Any = table.schema.field(EMBEDDING).type if EMBEDDING in table.schema.names else pa.null()
    if ID not in table.schema.names or not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise _refused(f"embeddings have the columns {ID} and {EMBEDDING}", ", ".join(table.schema.names))
    column = _whole(table[EMBEDDING].combine_chunks())
    embedding_nd = np.full((len(column), kind.list_size), np.nan, np.float32)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    embedding_nd[valid] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
    return table[ID].to_pylist(), embedding_nd, response


def pack_table(table: pa.Table, response: Mapping[str, Any]) -> bytes:
    """Return a table in binary with the answer's other fields."""
    return _pack(table.replace_schema_metadata({_RESPONSE: json.dumps(dict(response))}))


def unpack_table(data: bytes | pa.Buffer) -> tuple[pa.Table, dict[str, Any]]:
    """Return a table and the answer's other fields.

    Raises
    ------
    InputError
        This is no such stream, or it is damaged.
    """
    table = _unpack(data)
    response = _json(table.schema.metadata or {}, _RESPONSE)
    if not isinstance(response, dict):
        raise _refused("metadata `response` is a JSON object", "something else")
    return table.replace_schema_metadata(), response


def compress(data: bytes, encoding: str) -> bytes:
    """Compress a whole body for `Content-Encoding`."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, CODECS[encoding]) as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def decompress(data: bytes, encoding: str, most: int) -> bytes | None:
    """Return a body without its `Content-Encoding`; None if that gives more than `most` bytes.

    Raises
    ------
    InputError
        The encoding is unknown or the body is damaged.
    """
    if encoding not in CODECS:
        raise InputError("Content-Encoding", f"must be one of {', '.join(CODECS)}", repr(encoding), "Leave it out.")
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), CODECS[encoding]) as stream:
            plain: bytes = stream.read(most + 1)
    except (OSError, pa.ArrowException) as error:
        raise _refused(f"it must be {encoding}, as Content-Encoding says", str(error)[:200]) from None
    return None if len(plain) > most else plain


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _unpack(data: bytes | pa.Buffer) -> pa.Table:
    """Read a stream that a server sent."""
    try:
        with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowException, EOFError, UnicodeDecodeError) as error:
        raise _refused(f"it must be an Arrow IPC stream ({ARROW_STREAM})", " ".join(str(error).split())[:200]) from None
    return table


def _json(metadata: Mapping[bytes, bytes], key: bytes) -> Any:  # noqa: ANN401  # JSON
    try:
        return json.loads(metadata.get(key, b"null"))
    except (ValueError, RecursionError):
        return None


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; an older `combine_chunks` may leave it in chunks."""
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _refused(rule: str, found: str) -> InputError:
    return InputError(_SUBJECT, rule, found, "Write it with cellray.client, or see docs/serving.md.")
