"""From what a user names to files of counts: a file, a folder, a glob or a list file, on any storage."""

import re
from collections.abc import Sequence

from cellray import storage
from cellray.data.sources.contract import FORMATS
from cellray.errors import InputError, listing

LIST_ENDINGS = (".txt", ".list")
_GLOB = "*?["
_NO_COUNTS = "molecule_info.h5"  # Cell Ranger's table of molecules, which lies beside its matrices
_CELL_RANGER = re.compile(r"(?:sample_)?(?:raw|filtered)_(?:feature|gene)_bc_matri(?:x|ces)")


def expand_sources(names: Sequence[str]) -> list[str]:
    """Return the URIs of all files named, in the order given; what a folder or a glob holds is sorted.

    Parameters
    ----------
    names
        Each a file of counts, a folder (searched through for known endings), a glob, or a text file (`.txt`, `.list`)
        with one of these a line (`#` begins a comment).

    Raises
    ------
    InputError
        Something named holds no file of counts, or a file is named twice.
    """
    uris = [uri for name in names for uri in _expand(storage.absolute(name))]
    repeated = {uri for uri in uris if uris.count(uri) > 1} if len(set(uris)) < len(uris) else set()
    if repeated:
        raise InputError("--source", "a file may be named once", listing(repeated), "Remove the repetition.")
    return uris


def _expand(uri: str) -> list[str]:
    """Expand one name."""
    if uri.lower().endswith(LIST_ENDINGS):
        lines = storage.read_bytes(uri).decode().splitlines() if storage.exists(uri) else _missing(uri)
        names = [line.split("#", 1)[0].strip() for line in lines]
        return [found for name in names if name for found in _expand(storage.absolute(name))]
    if any(mark in uri for mark in _GLOB) and not storage.exists(uri):  # a file may bear such a name
        return _known(uri, storage.glob(uri))
    if _is_source(uri):
        return [uri]
    if storage.is_directory(uri):
        return _known(uri, storage.walk(uri))
    return [uri]  # the reader says what is wrong with it


def _known(uri: str, found: list[str]) -> list[str]:
    """Keep what some reader opens; refuse to find nothing."""
    sources = sorted(name for name in found if _is_source(name) and not name.endswith(_NO_COUNTS))
    if not sources:
        raise InputError(uri, f"there must be files ending in one of {listing(FORMATS)}", "none", "Check the path.")
    _require_once(uri, sources)
    return sources


def _require_once(uri: str, sources: Sequence[str]) -> None:
    """Refuse to count an experiment of Cell Ranger twice: it leaves a raw and a filtered matrix, as file and folder."""
    seen: dict[str, str] = {}
    for name in sources:
        if found := _CELL_RANGER.search(name):
            first = seen.setdefault(name[: found.start()], name)
            if first != name:
                rule = "cells may be counted once"
                fix = "Name the ones you want, as DIR/*/filtered_feature_bc_matrix.h5."
                raise InputError(uri, rule, f"{first} beside {name}, of one experiment", fix)


def _is_source(uri: str) -> bool:
    return uri.lower().rstrip("/").endswith(tuple(FORMATS))


def _missing(uri: str) -> list[str]:
    raise InputError(uri, "the list file must exist", "no such file", "Check the path.")
