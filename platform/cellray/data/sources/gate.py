"""Refuses files that reach out of themselves or claim sizes that their bytes cannot hold, before their content is read.

HDF5 files may name other files (external links, external storage, virtual datasets) and tiny ones may declare arrays
that fill any memory. Nothing here reads an array. What crashes the HDF5 library itself is the business of
`cellray.data.guarded`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from cellray import storage
from cellray.errors import InputError

MAX_OBJECTS = 100_000
"""Most groups and arrays of a file."""
MAX_WHOLE_BYTES = 1 << 30
"""Most bytes of an array that is read whole: pointers, categories, columns of var."""
MAX_CHUNK_BYTES = 1 << 29
"""Most bytes of a chunk, which is inflated whole."""
SMALL_BYTES = 64 << 20
MAX_RATIO = 2000
"""Bytes an array above `SMALL_BYTES` may declare for each byte stored; deflate reaches 1,032."""

_WHOLE = ("indptr", "categories", "codes", "mask", "values")
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
    for path, array in _datasets(uri, file):
        _check_dataset(uri, path, array)
    _passed.add((uri, version))


def _datasets(uri: str, file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield all datasets, following no link out of the file and no circle within it."""
    seen, waiting = set(), [("", file["/"])]
    while waiting:
        path, node = waiting.pop()
        address = h5py.h5o.get_info(node.id).addr
        if address in seen:
            continue
        seen.add(address)
        if len(seen) > MAX_OBJECTS:
            raise InputError(uri, f"a file may hold {MAX_OBJECTS:,} objects", "more", _FIX)
        if isinstance(node, h5py.Dataset):
            yield path, node
            continue
        for name in node if isinstance(node, h5py.Group) else ():
            link = node.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                found = f"{path}/{name} leads to {link.filename!r}"
                raise InputError(uri, "a file may not lead into other files (external link)", found, _FIX)
            child = (
                node.get(name) if isinstance(link, h5py.HardLink) else None
            )  # soft links lead to what is seen anyway
            if child is not None:
                waiting.append((f"{path}/{name}", child))


def _check_dataset(uri: str, path: str, array: h5py.Dataset) -> None:
    """Check one dataset's sources and declared sizes."""
    if array.external or array.is_virtual:
        found = f"{path} is stored in {array.external[0][0] if array.external else 'other datasets'!r}"
        raise InputError(uri, "a file may not lead into other files (external storage)", found, _FIX)
    if array.shape is None:
        return
    _check_sizes(uri, path, array, array.id.get_storage_size())


def _check_sizes(uri: str, path: str, array: Any, stored: int) -> None:  # noqa: ANN401  # of h5py or zarr
    """Check the bytes an array declares: against what is stored, against memory if it is read whole."""
    declared = int(array.nbytes)
    if declared > max(SMALL_BYTES, MAX_RATIO * stored):
        found = f"{path} declares {declared:,} bytes, {stored:,} are stored"
        raise InputError(uri, "an array may not claim much more than its file holds", found, _FIX)
    name = path.rsplit("/", 1)[-1]
    whole = name in _WHOLE or path.startswith(("/var/", "/raw/var/", "/row_attrs/", "/matrix/features/"))
    if whole and declared > MAX_WHOLE_BYTES:
        rule = f"an array that is read whole may have {MAX_WHOLE_BYTES:,} bytes"
        raise InputError(uri, rule, f"{path} has {declared:,}", _FIX)
    chunk = array.dtype.itemsize
    for side in array.chunks or ():
        chunk *= side
    if array.chunks and chunk > MAX_CHUNK_BYTES:
        rule = f"a chunk may have {MAX_CHUNK_BYTES:,} bytes"
        raise InputError(uri, rule, f"chunks of {path} have {chunk:,}", "Write the file again with smaller chunks.")


def check_zarr(uri: str, version: str, root: Any) -> None:  # noqa: ANN401
    """Check an open Zarr group; once a process for each version of a store.

    A chunk that is not there reads as zeros. Where values are stored sparsely none can be left out, so one that lacks
    was lost.

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
            _check_sizes(uri, path, array, array.nbytes_stored() if array.nbytes > SMALL_BYTES else 0)
            if name.rsplit("/", 1)[-1] in ("data", "indices") and array.nchunks_initialized < array.nchunks:
                found = f"{array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks of {path} are missing"
                raise InputError(uri, "a sparse matrix must be whole", found, "Copy the whole folder again.")
    _passed.add((uri, version))


def _check_symlinks(uri: str) -> None:
    """Refuse links out of a local store."""
    root = Path(uri).resolve()
    for path in root.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            found = f"{path.relative_to(root)} leads to {str(path.readlink())!r}"
            raise InputError(uri, "a file may not lead into other files (symbolic link)", found, _FIX)
