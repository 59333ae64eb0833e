"""Files behind URIs (local paths, `s3://` and whatever else fsspec knows): reading, digests, atomic publishing.

Knows nothing of what the files mean. Every write here is complete or absent: a reader never sees half a file.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cellray.errors import InputError, listing
from cellray.exclusive import rename_once

_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileStamp:
    """What tells one version of a file from another: size in bytes and ETag (object stores) or mtime (disks)."""

    size: int
    version: str


def absolute(uri: str) -> str:
    """Return the one name of a place: local paths absolute, since Ray workers run in other directories."""
    for alias, name in (("file://", ""), ("s3a://", "s3://")):
        uri = name + uri.removeprefix(alias) if uri.startswith(alias) else uri
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def resolve(directory: str, path: str) -> str:
    """Return an absolute path or URI as it is, and any other path below a directory."""
    return path if "://" in path or Path(path).is_absolute() else join(directory, path)


def filesystem(uri: str, **options: Any) -> tuple[Any, str]:  # noqa: ANN401  # fsspec's
    """Return the fsspec file system of a URI and the path within it; for S3, the one that retries (`cellray.s3`)."""
    if uri.startswith(("s3://", "s3a://")):
        from cellray.s3 import PatientS3FileSystem

        return PatientS3FileSystem(**options), str(PatientS3FileSystem._strip_protocol(uri))
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise InputError(
            uri, "a URI must name a known kind of storage", str(error), "Use a path, s3:// or another fsspec URI."
        ) from None
    return fs, path


def is_local(uri: str) -> bool:
    """Tell whether a URI lies on this machine's disks."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def exists(uri: str) -> bool:
    """Tell whether a file or folder is there, asking the storage itself rather than a cached listing."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def is_directory(uri: str) -> bool:
    """Tell whether a URI names a folder."""
    fs, path = filesystem(uri)
    return bool(fs.isdir(path))


def glob(pattern: str) -> list[str]:
    """Return the URIs that match a pattern, sorted."""
    fs, path = filesystem(pattern)
    return sorted(str(fs.unstrip_protocol(name)) if "://" in pattern else str(name) for name in fs.glob(path))


def walk(uri: str) -> list[str]:
    """Return the URIs of all files below a folder, sorted; a Zarr store counts as one file."""
    fs, path = filesystem(uri)
    names = {_store(str(name)) for name in fs.find(path)}
    return sorted(str(fs.unstrip_protocol(name)) if "://" in uri else name for name in names)


def _store(name: str) -> str:
    """Cut the name of a file within a Zarr store after the store's own."""
    head, mark, _ = name.partition(".zarr/")
    return head + mark.rstrip("/")


_OUTAGES = {
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT),
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EREMOTEIO),
}
_ERRNO = re.compile(r"errno = (\d+)")  # how HDF5 puts it


def is_outage(error: BaseException) -> bool:
    """Tell whether the machine or a disk failed, rather than that a file is damaged."""
    if not isinstance(error, OSError):
        return False
    named = _ERRNO.search(str(error))
    return (int(named[1]) if named else error.errno) in _OUTAGES


def stamp(uri: str) -> FileStamp:
    """Return size and version of a file, or of all files of a folder together.

    Raises
    ------
    InputError
        There is no such file.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # object stores' file systems remember listings
    try:
        info = fs.info(path)
    except (FileNotFoundError, PermissionError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else "no permission to read it"
        raise InputError(uri, "the file must exist and be readable", found, "Check the path.") from None
    if info.get("type") == "directory":
        found = fs.find(path, detail=True)
        parts = [[name.removeprefix(path), each["size"], _version(each)] for name, each in sorted(found.items())]
        return FileStamp(sum(int(part[1]) for part in parts), sha256_json(parts))
    return FileStamp(int(info["size"]), _version(info))


def _version(info: dict[str, Any]) -> str:
    """Return what an object store or a disk says of a file's version."""
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return str(version).strip('"')


def read_bytes(uri: str) -> bytes:
    """Read a whole file."""
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


def read_json(uri: str) -> Any:  # noqa: ANN401  # JSON is what it is
    """Read a JSON file.

    Raises
    ------
    InputError
        The file is missing or is not JSON.
    """
    return read_json_bytes(uri)[0]


def read_json_bytes(uri: str) -> tuple[Any, bytes]:
    """Read a JSON file; return its value and its bytes. See `read_json`."""
    try:
        data = read_bytes(uri)
        return json.loads(data), data
    except FileNotFoundError:
        raise InputError(uri, "the file must exist", "no such file", "Check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        found = f"something else ({error})"
        raise InputError(uri, "the file must be JSON", found, "Check that this is the right file.") from None


def sha256_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:  # noqa: ANN401
    """Return the SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def sha256_file(uri: str) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open_scattered(uri) as file:  # blocks fetched ahead, in bounded memory
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def atomic_file(uri: str, *, durable: bool = True) -> Iterator[Path]:
    """Yield a local path to write to; on leaving without an error its content appears at the URI in one step.

    Local targets are renamed into place after an fsync, others are uploaded as one object. Without `durable` the fsync
    is left out: after a power failure the file may be empty, so its reader must be able to tell.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        try:
            yield temporary
            _rename(temporary, target, durable=durable)
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        temporary = Path(folder) / Path(path).name
        yield temporary
        fs.put_file(str(temporary), path)


def write_bytes(uri: str, data: bytes, *, durable: bool = True) -> None:
    """Write a file atomically, replacing what was there; see `atomic_file`."""
    with atomic_file(uri, durable=durable) as path:
        path.write_bytes(data)


def publish_once(uri: str, data: bytes) -> None:
    """Write a file atomically, only if there is none yet.

    Raises
    ------
    FileExistsError
        Another writer was first. (On S3 one that wrote the very same bytes is taken for this one: after a lost answer
        the two cannot be told apart.)
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, data, mode="create")
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.write_bytes(data)
        _flush(temporary)
        _link(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def require_vacant(uri: str) -> None:
    """Check that nothing would be overwritten by a directory at a URI.

    Raises
    ------
    InputError
        There is a file, or a folder that is not empty.
    """
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if not fs.exists(path):
        return
    held = [str(name).rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)] if fs.isdir(path) else ["a file"]
    if held:
        raise InputError(uri, "the output must be new or empty", listing(held), "Choose another --output.")


def publish_directory(local: Path, uri: str, last: str) -> None:
    """Put a finished local directory of files at a vacant URI; `last` names the file that makes it whole.

    On a disk this is one rename. An object store has no directories: `last` is uploaded last, so a reader that needs it
    never takes a half-written directory for a whole one.
    """
    require_vacant(uri)
    fs, path = filesystem(uri)
    files = sorted((p for p in local.iterdir() if p.is_file()), key=lambda p: (p.name == last, p.name))
    if not isinstance(fs, LocalFileSystem):
        for file in files:
            fs.put_file(str(file), join(path, file.name))
        return
    target = Path(path)
    staged = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    staged.mkdir(parents=True)
    try:
        for file in files:
            shutil.copyfile(file, staged / file.name)
            _flush(staged / file.name)
        staged.replace(target)  # replaces an empty directory only
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def new_directory(uri: str) -> Iterator[str]:
    """Yield the URI of a folder to fill; on leaving without an error it lies, whole, at its place.

    On a disk it appears by one rename at a vacant URI, and an error leaves nothing. An object store has no folders:
    there the yielded URI is the final one. Whoever fills it must have claimed it (`cellray.data.publishing.claim`) and
    must write the file that readers need first last. Nothing is removed there after an error: another run of the same
    request may have written these very objects, and a rerun goes on with them.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        yield uri
        return
    require_vacant(uri)
    staged = Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(6)}.tmp")
    staged.mkdir(parents=True)
    try:
        yield str(staged)
        staged.replace(path)  # replaces an empty directory only
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def open_scattered(uri: str) -> Any:  # noqa: ANN401  # a binary stream
    """Open a file for reading here and there, as HDF5 and parquet do; a remote one by blocks, the next ones ahead.

    Memory of a remote file: `read_ahead.KEEP` blocks of `read_ahead.BLOCK` bytes, whatever its size.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return fs.open(path, "rb")
    from cellray.read_ahead import BLOCK, ReadAheadBlocks

    return fs.open(path, "rb", block_size=BLOCK, cache_type=ReadAheadBlocks.name)


def open_store(uri: str) -> Any:  # noqa: ANN401  # zarr has a type for it, too heavy to import here
    """Return what `zarr.open_group` takes: a path, or a store that reads objects with this module's retries."""
    if is_local(uri):
        return uri
    from zarr.storage import FsspecStore

    fs, path = filesystem(uri, asynchronous=True)
    return FsspecStore(fs, path=path, read_only=True) if fs.async_impl else FsspecStore.from_url(uri, read_only=True)


def remove_directory(uri: str) -> None:
    """Delete a folder of this library's own making, and the folder it lies in if nothing else does."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)
    if isinstance(fs, LocalFileSystem):
        with suppress(OSError):
            Path(path).parent.rmdir()


@contextmanager
def local_directory(uri: str) -> Iterator[Path]:
    """Yield a local directory with the files directly below a URI: the directory itself, or a temporary copy."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        for name in fs.ls(path, detail=False):
            if fs.isfile(name):
                fs.get_file(name, str(Path(folder) / Path(name).name))
        yield Path(folder)


def sweep(uri: str) -> None:
    """Delete what killed writers left beside the finished files of a local folder; stores keep no such leavings."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        for temporary in Path(path).glob(".*.tmp"):
            target = temporary.name[1:].rsplit(".", 2)[0]
            if (Path(path) / target).exists():
                temporary.unlink(missing_ok=True)


def _rename(temporary: Path, target: Path, *, durable: bool) -> None:
    """Give a whole file its name, replacing what bears it."""
    try:
        if durable:
            _flush(temporary)
        temporary.replace(target)
    except FileNotFoundError:
        if not target.exists():  # else another run, which had made this very file first, swept ours away
            raise


def _link(temporary: Path, target: Path) -> None:
    """Give a whole file its name, failing where the name is taken."""
    try:
        os.link(temporary, target)  # a hard link, unlike a rename, never replaces
    except FileExistsError:
        raise
    except OSError:  # some network and container mounts know no hard links
        rename_once(temporary, target)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
