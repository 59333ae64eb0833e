"""From what a user names to files of counts: a file, a folder, a glob or a list file, on any storage."""

from collections.abc import Sequence

from cellray import storage
from cellray.data.sources.contract import FORMATS
from cellray.errors import InputError, listing

LIST_ENDINGS = (".txt", ".list")
_GLOB = "*?["


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
    if any(mark in uri for mark in _GLOB):
        return _known(uri, storage.glob(uri))
    if _is_source(uri):
        return [uri]
    if storage.is_directory(uri):
        return _known(uri, storage.walk(uri))
    return [uri]  # the reader says what is wrong with it


def _known(uri: str, found: list[str]) -> list[str]:
    """Keep what some reader opens; refuse to find nothing."""
    sources = sorted(name for name in found if _is_source(name))
    if not sources:
        raise InputError(uri, f"there must be files ending in one of {listing(FORMATS)}", "none", "Check the path.")
    return sources


def _is_source(uri: str) -> bool:
    return uri.lower().rstrip("/").endswith(tuple(FORMATS))


def _missing(uri: str) -> list[str]:
    raise InputError(uri, "the list file must exist", "no such file", "Check the path.")
