"""Refuses files that reach out of themselves, lack parts or claim sizes they cannot hold, before they are read.

HDF5 files may name other files (external links, external storage, virtual datasets) and tiny ones may declare arrays
that fill any memory; Zarr stores may name codecs that run code. What was never written, or was lost, reads as zeros in
both. Nothing here reads an array. What crashes the HDF5 library itself is the business of `cellray.data.isolated`.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from cellray import storage
from cellray.errors import InputError, listing

MAX_OBJECTS = 100_000
"""Most groups and arrays of a file."""
MAX_WHOLE_BYTES = 1 << 30
"""Most bytes of an array that is read whole: pointers, categories, columns of var."""
MAX_CHUNK_BYTES = 1 << 29
"""Most bytes of a chunk, which is inflated whole."""
SMALL_BYTES = 64 << 20
MAX_RATIO = 2000
"""Bytes an array above `SMALL_BYTES` may declare for each byte stored; deflate reaches 1,032."""

CODECS = frozenset(
    {
        *("blosc", "zstd", "gzip", "zlib", "bz2", "lzma", "lz4", "lz4hc", "shuffle", "bitshuffle"),
        *("bytes", "endian", "transpose", "sharding_indexed", "vlen-utf8", "vlen-bytes"),
        *("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"),
        *("delta", "fixedscaleoffset", "scale_offset", "packbits", "bitround", "quantize", "astype", "cast_value"),
    }
)
"""Codecs of Zarr that turn bytes into numbers or text and do nothing else; `pickle` runs what the bytes say."""

_WHOLE = ("indptr", "categories", "codes", "mask", "values")
_SPARSE = ("data", "indices", "indptr")
_TABLES = ("/X/", "/raw/", "/layers/", "/obs/", "/var/", "/matrix/", "/row_attrs/", "/col_attrs/")
_WHOLE_BELOW = ("/var/", "/raw/var/", "/row_attrs/", "/matrix/features/", "/matrix/barcodes/", "/matrix/shape/")
_FIX = "Leave it out, or write it again from its source with anndata."

_passed: set[tuple[str, str]] = set()  # (uri, version) of files this process has looked at


def check_hdf5(uri: str, version: str, file: h5py.File) -> None:
    """Check an open HDF5 file; once a process for each version of a file.

    Raises
    ------
    InputError
        It breaks a rule of this module.
    """
    if (uri, version) in _passed:
        return
    for path, array, parent in _datasets(uri, file):
        _check_dataset(uri, path, array, parent)
    _passed.add((uri, version))


def _datasets(uri: str, file: h5py.File) -> Iterator[tuple[str, h5py.Dataset, h5py.Group]]:
    """Yield all datasets by the paths that decide what is allowed, and the groups they are in.

    Follows no link out of the file and no circle within it. What a group holds is looked at once, and once more if it
    is also found where all is read whole. Soft links come last: then no link out of the file is left that they could
    lead through.
    """
    seen: set[tuple[int, bool]] = set()
    waiting: list[tuple[str, Any, h5py.Group]] = [("", file["/"], file["/"])]
    soft: list[tuple[str, str, h5py.Group]] = []
    links = 0
    while waiting or soft:
        path, node, parent = waiting.pop() if waiting else _follow(*soft.pop())
        if isinstance(node, h5py.Dataset):
            yield path, node, parent
        key = h5py.h5o.get_info(node.id).addr if isinstance(node, h5py.Group) else -1, _is_read_whole(f"{path}/x")
        if not isinstance(node, h5py.Group) or key in seen:
            continue
        seen.add(key)
        for name in node:
            links += 1
            if links > MAX_OBJECTS:
                raise InputError(uri, f"a file may hold {MAX_OBJECTS:,} objects", "more", _FIX)
            link = node.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                found = f"{path}/{name} leads to {link.filename!r}"
                raise InputError(uri, "a file may not lead into other files (external link)", found, _FIX)
            if isinstance(link, h5py.SoftLink):
                soft.append((path, name, node))
            else:
                waiting.append((f"{path}/{name}", node[name], node))


def _follow(path: str, name: str, group: h5py.Group) -> tuple[str, Any, h5py.Group]:
    """Return what a soft link leads to, None if it leads nowhere."""
    return f"{path}/{name}", group.get(name), group


def _check_dataset(uri: str, path: str, array: h5py.Dataset, parent: h5py.Group) -> None:
    """Check one dataset's sources, declared sizes and wholeness."""
    if array.external or array.is_virtual:
        found = f"{path} is stored in {array.external[0][0] if array.external else 'other datasets'!r}"
        raise InputError(uri, "a file may not lead into other files (external storage)", found, _FIX)
    if array.shape is None:
        return
    _check_sizes(uri, path, array, array.id.get_storage_size())
    old_categories = array.attrs.get("categories")  # of anndata before 0.8: a reference, which may lead anywhere
    if isinstance(old_categories, h5py.Reference) and isinstance(node := array.file[old_categories], h5py.Dataset):
        _check_sizes(uri, f"{path}/categories", node, node.id.get_storage_size())
    name = path.rsplit("/", 1)[-1]
    sparse = name in _SPARSE and "indptr" in parent
    needed = sparse or name == "codes" or old_categories is not None
    if needed or f"{path}/".startswith(_TABLES):
        what = "a sparse matrix" if sparse else "a column of categories" if needed else "a matrix or column"
        _check_whole(uri, path, array, what, or_nothing=not needed)


def _check_whole(uri: str, path: str, array: h5py.Dataset, what: str, *, or_nothing: bool) -> None:
    """Check that all of a dataset was written: unlike Zarr, HDF5 leaves nothing out because it is zero.

    One that may stand for `or_nothing` may be left unwritten as a whole, to hold a place.
    """
    if not array.size:
        return
    sides = zip(array.shape, array.chunks or array.shape, strict=True)
    wanted = math.prod(-(-length // side) for length, side in sides)
    written = array.id.get_num_chunks() if array.chunks else int(array.id.get_storage_size() > 0)
    if written < wanted and (written or not or_nothing):
        found = f"{wanted - written} of {wanted} chunks of {path} are missing"
        fix = "Copy it again; if it came so, write it again from its source."
        raise InputError(uri, f"{what} must be whole", found, fix)


def _check_sizes(uri: str, path: str, array: Any, stored: int) -> None:  # noqa: ANN401  # of h5py or zarr
    """Check the bytes an array declares: against what is stored, against memory if it is read whole."""
    declared = int(array.nbytes)
    if declared > max(SMALL_BYTES, MAX_RATIO * stored):
        found = f"{path} declares {declared:,} bytes, {stored:,} are stored"
        raise InputError(uri, "an array may not claim much more than its file holds", found, _FIX)
    name = path.rsplit("/", 1)[-1]
    if (name in _WHOLE or _is_read_whole(path)) and declared > MAX_WHOLE_BYTES:
        rule = f"an array that is read whole may have {MAX_WHOLE_BYTES:,} bytes"
        raise InputError(uri, rule, f"{path} has {declared:,}", _FIX)
    chunk = array.dtype.itemsize
    for side in array.chunks or ():
        chunk *= side
    if array.chunks and chunk > MAX_CHUNK_BYTES:
        rule = f"a chunk may have {MAX_CHUNK_BYTES:,} bytes"
        raise InputError(uri, rule, f"chunks of {path} have {chunk:,}", "Write the file again with smaller chunks.")


def _is_read_whole(path: str) -> bool:
    """Tell whether readers take all that lies at or below a path into memory."""
    return f"{path}/".startswith(_WHOLE_BELOW)


def check_zarr(uri: str, version: str, root: Any) -> None:  # noqa: ANN401
    """Check an open Zarr group; once a process for each version of a store.

    A chunk that is not there reads as zeros. Where values are stored sparsely none can be left out, so one that lacks
    was lost. Of other arrays nothing can be told: a chunk of nothing but zeros is not written, and zeros are what the
    codes of a column's first category are, and the pointers of empty cells.

    Raises
    ------
    InputError
        It breaks a rule of this module, or chunks are missing.
    """
    if (uri, version) in _passed:
        return
    if storage.is_local(uri):
        _check_symlinks(uri)
    for name, array in root.members(max_depth=None):
        if hasattr(array, "dtype"):
            path = f"/{name}"
            _check_codecs(uri, path, array.metadata)
            _check_sizes(uri, path, array, array.nbytes_stored() if array.nbytes > SMALL_BYTES else 0)
            if name.rsplit("/", 1)[-1] in ("data", "indices") and array.nchunks_initialized < array.nchunks:
                found = f"{array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks of {path} are missing"
                raise InputError(uri, "a sparse matrix must be whole", found, "Copy the whole folder again.")
    _passed.add((uri, version))


def _check_codecs(uri: str, path: str, metadata: Any) -> None:  # noqa: ANN401  # of Zarr version 2 or 3
    """Refuse codecs that are not known to be harmless."""
    unknown = set(_codecs(metadata)) - CODECS
    if unknown:
        rule = f"an array may be encoded by {listing(CODECS, limit=len(CODECS))}"
        raise InputError(uri, rule, f"{listing(unknown)} at {path}", _FIX)


def _codecs(metadata: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield the names of an array's codecs, those within shards included."""
    if metadata.zarr_format == 2:
        yield from (codec.codec_id for codec in (*(metadata.filters or ()), metadata.compressor) if codec is not None)
        return
    waiting = list(metadata.codecs)
    while waiting:
        codec = waiting.pop()
        yield str(codec.to_dict()["name"]).removeprefix("numcodecs.")
        waiting.extend((*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())))


def _check_symlinks(uri: str) -> None:
    """Refuse links out of a local store."""
    root = Path(storage.filesystem(uri)[1]).resolve()
    for path in root.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            found = f"{path.relative_to(root)} leads to {str(path.readlink())!r}"
            raise InputError(uri, "a file may not lead into other files (symbolic link)", found, _FIX)
