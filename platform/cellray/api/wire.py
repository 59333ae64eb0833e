"""The binary form of requests and answers: an Arrow IPC stream with one JSON document in its schema's metadata.

Cells go as the columns id, gene (places in the metadata's list `genes`) and count; tables come back as they are. What
comes from outside is checked before memory is taken: buffers lie in the message itself, since compressed ones are
refused. To compress, wrap the whole body (HTTP's Content-Encoding): `decompress` gives no more than it is let.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.api.schema import CELL_ID_LENGTH, GENE_LENGTH, CellsRequest
from cellray.errors import InputError

ARROW_STREAM = "application/vnd.apache.arrow.stream"
"""Media type of the binary form."""
H5AD = "application/x-hdf5"
"""Media type of an uploaded .h5ad."""
JSON = "application/json"
ID, GENE, COUNT, EMBEDDING = "id", "gene", "count", "embedding"
CODECS = {"zstd": "zstd", "gzip": "gzip"}
"""Content-Encoding to Arrow's codec."""

_CELL_TYPES = {ID: pa.string(), GENE: pa.list_(pa.int32()), COUNT: pa.list_(pa.float32())}
_PARAMETERS, _GENES, _RESPONSE = b"parameters", b"genes", b"response"
_MOST_BATCHES = 1024
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
    offsets = pa.array(cells.indptr.astype(np.int32))
    columns = [
        pa.array(cells.ids, pa.string()),
        pa.ListArray.from_arrays(offsets, pa.array(cells.columns.astype(np.int32))),
        pa.ListArray.from_arrays(offsets, pa.array(cells.counts.astype(np.float32))),
    ]
    metadata = {_GENES: json.dumps(list(cells.genes)), _PARAMETERS: json.dumps(dict(parameters))}
    return _pack(pa.table(columns, schema=pa.schema(list(_CELL_TYPES.items()), metadata=metadata)))


def unpack_cells(data: bytes | pa.Buffer) -> tuple[CellTable, dict[str, Any]]:
    """Return the cells of a binary request and its other fields.

    Raises
    ------
    InputError
        This is no such stream, or it is damaged or compressed, or indices are out of range.
    """
    table = _unpack(data, wanted=_CELL_TYPES)
    metadata = table.schema.metadata or {}
    genes, parameters = _json(metadata, _GENES), _json(metadata, _PARAMETERS)
    named = isinstance(genes, list) and all(isinstance(gene, str) and len(gene) <= GENE_LENGTH for gene in genes)
    if not named or not isinstance(parameters, dict):
        raise _refused("metadata `genes` is a JSON list of names, `parameters` a JSON object", "something else")
    if len(set(genes)) < len(genes):
        raise InputError("genes", "a gene stands there once", "one twice", "Sum the counts of repeated genes.")
    ids, gene, count = (table[name].combine_chunks() for name in _CELL_TYPES)
    ids, gene, count = (_whole(each) for each in (ids, gene, count))
    nulls = sum(each.null_count for each in (ids, gene, count, gene.flatten(), count.flatten()))
    if nulls or not gene.value_lengths().equals(count.value_lengths()):
        raise _refused("each cell has an id and as many genes as counts, none of them null", "otherwise")
    indptr = np.concatenate([[0], np.cumsum(gene.value_lengths().to_numpy(), dtype=np.int64)])
    columns = gene.flatten().to_numpy()
    if len(columns) and not 0 <= columns.min() <= columns.max() < len(genes):
        raise _refused(f"`gene` holds places in the {len(genes):,} `genes`", f"{columns.min()}..{columns.max()}")
    names = ids.to_pylist()
    if any(len(name) > CELL_ID_LENGTH for name in names):
        raise _refused(f"an id may have {CELL_ID_LENGTH} characters", "a longer one")
    return CellTable(names, genes, indptr, columns, count.flatten().to_numpy()), parameters


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


def _unpack(data: bytes | pa.Buffer, wanted: Mapping[str, pa.DataType] | None = None) -> pa.Table:
    """Read a stream whose buffers all lie in `data`; columns other than those wanted are refused unread."""
    try:
        _check_messages(data)
        with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
            found = {field.name: field.type for field in reader.schema}
            if wanted is not None and (found != dict(wanted) or len(reader.schema) != len(wanted)):
                raise _refused(f"it has the columns {_told(wanted)}", _told(found))
            table = reader.read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowException, EOFError, StopIteration, struct.error, UnicodeDecodeError) as error:
        raise _refused(f"it must be an Arrow IPC stream ({ARROW_STREAM})", " ".join(str(error).split())[:200]) from None
    return table


def _check_messages(data: bytes | pa.Buffer) -> None:
    """Refuse a stream of other messages than one schema and plain record batches, without reading any buffer.

    Which kind a message is must be known before Arrow is given it: it takes a schema for granted where one belongs.
    """
    number = 0
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(pa.BufferReader(data))):
        if message.type != ("record batch" if number else "schema"):
            raise _refused("a stream holds a schema, then record batches without dictionaries", message.type)
        if number and _is_compressed(bytes(message.metadata)):
            raise _refused("the buffers of a stream are plain", "compressed buffers")
        if number > _MOST_BATCHES:
            raise _refused(f"a stream may have {_MOST_BATCHES} record batches", "more")


def _is_compressed(metadata: bytes) -> bool:
    """Tell from a record batch's header (a flatbuffer) whether its buffers are compressed, without reading them.

    Message: field 2 is the header; RecordBatch: field 3 is the compression.
    https://arrow.apache.org/docs/format/Columnar.html#recordbatch-message
    """
    message = struct.unpack_from("<I", metadata, 0)[0]
    header = _field(metadata, message, 2)
    if header is None:
        raise struct.error("no header")
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, batch, 3) is not None


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Return where a field of a flatbuffer's table lies; None if it is absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if vtable < 0:
        raise struct.error("a table outside of the message")
    size = struct.unpack_from("<H", metadata, vtable)[0]
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", metadata, vtable + place)[0] if place + 2 <= size else 0
    return table + offset if offset else None


def _json(metadata: Mapping[bytes, bytes], key: bytes) -> Any:  # noqa: ANN401  # JSON
    try:
        return json.loads(metadata.get(key, b"null"))
    except (ValueError, RecursionError):
        return None


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; an older `combine_chunks` may leave it in chunks."""
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def _told(types: Mapping[str, pa.DataType]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in types.items())[:500]


def _refused(rule: str, found: str) -> InputError:
    return InputError(_SUBJECT, rule, found, "Write it with cellray.client, or see docs/serving.md.")
