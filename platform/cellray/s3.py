"""S3 as fsspec sees it, with one retry policy around every request, its answer's body included.

s3fs and botocore each retry some failures, multiply each other's attempts, and leave gaps: a conditional write whose
answer was lost comes back as somebody else's file, a 500 inside a listing as an empty folder. Here both are told to try
once, and all requests go through `PatientS3FileSystem._call_s3`. Knows nothing of what the objects hold.
"""

import asyncio
import builtins
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import ClientError as AiohttpError
from botocore.exceptions import (
    ChecksumError,
    ConnectionError,  # noqa: A004  # what botocore calls it
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from cellray.errors import StorageError
from cellray.retries import RetryPolicy

logger = logging.getLogger(__name__)

PIECE = 16 << 20
"""Bytes of a download that are fetched by one request."""
_PIECES_AT_ONCE = 4
_NOT_IMPLEMENTED = 501
_TRANSIENT_STATUS = {408, 429}
_TRANSIENT_CODES = {
    *("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"),
    *("InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict"),
    *("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"),  # an upload damaged or cut short on its way
}
_CREDENTIALS = {
    *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("RequestTimeTooSkewed", "ExpiredTokenException", "UnrecognizedClientException"),
}
_CONDITION_FAILED = {"PreconditionFailed", "412"}


class ShortReadError(Exception):
    """An answer that holds fewer or other bytes than were asked for."""


_TRANSIENT_ERRORS = (
    *(HTTPClientError, ConnectionError, IncompleteReadError, ResponseParserError, ChecksumError, FlexibleChecksumError),
    *(AiohttpError, builtins.ConnectionError, TimeoutError, ShortReadError),
)


def is_transient(error: BaseException) -> bool:
    """Tell whether a failure may pass by itself: a broken connection, a timeout, a cut body, throttling, a 5xx."""
    if isinstance(error, _TRANSIENT_ERRORS):
        return True
    code, status = _code(error), _status(error)
    return code in _TRANSIENT_CODES or status in _TRANSIENT_STATUS or 500 <= status != _NOT_IMPLEMENTED


def _response(error: BaseException) -> Mapping[str, Any]:
    """Return the store's own words for an error that s3fs translated."""
    return getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


class _Body:
    """A body that has been received."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, amount: int | None = None) -> bytes:
        size = len(self._data) if amount is None or amount < 0 else amount
        data, self._data = self._data[:size], self._data[size:]
        return data

    def close(self) -> None:
        """Do nothing: the connection went back to the pool long ago."""


class PatientS3FileSystem(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """`s3fs.S3FileSystem` whose requests are tried until the policy is exhausted.

    Failures that stay (404, 403, a failed condition) come out at once, as s3fs translates them; transient ones, in the
    end, as `StorageError`. Bodies are received within the retry and their length is checked against the range asked
    for; objects are read in bounded ranges by everything in this library, so a body is a block, not a file.
    """

    retries = 1  # s3fs's own: they would multiply with the policy's

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # those of s3fs
        super().__init__(*args, **kwargs)
        self.policy = RetryPolicy.from_environment()

    def _prepare_config_kwargs(self) -> dict[str, Any]:
        config: dict[str, Any] = super()._prepare_config_kwargs()
        return {**config, "retries": {"mode": "standard", "total_max_attempts": 1}}

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Do a request until it is done, has failed for good, or has failed too often."""
        for attempt in range(1, self.policy.attempts + 1):
            try:
                answer = await super()._call_s3(method, *akwarglist, **kwargs)
                return await _complete(method, answer, _asked(akwarglist, kwargs))
            except (NoCredentialsError, PartialCredentialsError) as error:
                raise PermissionError(str(error)) from error
            except Exception as error:
                if await self._done_before(method, kwargs, error):
                    return {}
                where = f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}"
                if _code(error) in _CREDENTIALS:  # true of every file, so no file is to blame
                    raise StorageError(where, method, attempt, _words(error)) from error
                if not is_transient(error):
                    raise _translated(method, kwargs, error) from error.__cause__
                if attempt == self.policy.attempts:
                    raise StorageError(where, method, attempt, _words(error)) from error
                level = logging.WARNING if attempt >= 3 else logging.DEBUG
                logger.log(level, "%s of %s failed, attempt %d: %s", method, where, attempt, _words(error))
            await asyncio.sleep(self.policy.pause_s(attempt))
        raise AssertionError("the policy allows no attempt")

    call_s3 = sync_wrapper(_call_s3)

    async def _done_before(self, method: str, kwargs: Mapping[str, Any], error: Exception) -> bool:
        """Tell whether a request failed because it was carried out before, though its answer was lost.

        Attempts cannot be counted on here: aiohttp repeats a PUT by itself where a kept connection turns out broken.
        """
        where = {"Bucket": kwargs.get("Bucket"), "Key": kwargs.get("Key")}
        if method == "put_object" and "IfNoneMatch" in kwargs and _exists_already(error):
            answer = await self._call_s3("get_object", **where)
            return bool(await answer["Body"].read() == bytes(kwargs["Body"]))
        if method == "complete_multipart_upload" and isinstance(error, FileNotFoundError):
            head = await self._call_s3("head_object", **where)
            return str(head["ETag"]).strip('"') == _etag_of_parts(kwargs["MultipartUpload"]["Parts"])
        return method == "abort_multipart_upload" and isinstance(error, FileNotFoundError)

    async def _cat_file(
        self,
        path: str,
        version_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        **_: Any,  # noqa: ANN401
    ) -> bytes:
        """Read an object, or a range of it, by one request (s3fs asks for the size first).

        The whole is asked for as a range, since the answer to that names the object's true size.
        """
        try:
            return bytes(await super()._cat_file(path, version_id=version_id, start=start or 0, end=end))
        except OSError as error:
            if start is None and _code(error) == "InvalidRange":
                return b""  # what an empty object answers
            raise

    async def _get_file(self, rpath: str, lpath: str, **_: Any) -> None:  # noqa: ANN401
        """Download an object by ranges of one and the same version."""
        info = await self._info(rpath, refresh=True)
        if info["type"] == "directory":
            raise IsADirectoryError(rpath)
        bucket, key, _version = self.split_path(rpath)

        async def piece(start: int) -> bytes:
            asked = f"bytes={start}-{min(start + PIECE, info['size']) - 1}"
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key, Range=asked, IfMatch=info["ETag"])
            return bytes(await answer["Body"].read())

        with Path(lpath).open("wb") as file:
            for first in range(0, info["size"], PIECE * _PIECES_AT_ONCE):
                stop = min(first + PIECE * _PIECES_AT_ONCE, info["size"])
                file.writelines(await asyncio.gather(*map(piece, range(first, stop, PIECE))))

    async def _exists(self, path: str) -> bool:
        """Tell whether an object, a folder or a bucket is there; s3fs takes any failure for a bucket that is not."""
        bucket, key, _version = self.split_path(self._strip_protocol(path))
        if key or not bucket:
            return bool(await super()._exists(path))
        try:
            await self._call_s3("head_bucket", Bucket=bucket)
        except FileNotFoundError:
            return False
        except PermissionError:  # somebody's bucket
            pass
        return True

    exists = sync_wrapper(_exists)


def _asked(akwarglist: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return the `Range` of a request."""
    return next((str(given["Range"]) for given in (kwargs, *akwarglist) if "Range" in given), None)


async def _complete(method: str, answer: Any, asked: str | None) -> Any:  # noqa: ANN401
    """Receive and check what a successful answer still owes.

    Raises
    ------
    ShortReadError
        The body is not the range asked for.
    OSError
        Some of the objects to delete were not deleted.
    """
    if method == "get_object":
        body = answer["Body"]
        try:
            data = await body.read()
        finally:
            body.close()
        owed = _owed(asked, answer)
        if len(data) != owed:
            raise ShortReadError(f"{len(data):,} bytes received where {owed:,} were asked for")
        return {**answer, "Body": _Body(data)}
    if method == "delete_objects" and answer.get("Errors"):
        raise ShortReadError(f"{len(answer['Errors'])} objects not deleted: {answer['Errors'][0].get('Code')}")
    return answer


def _owed(asked: str | None, answer: Mapping[str, Any]) -> int:
    """Return how many bytes the answer to a GET must hold."""
    if asked is None:
        return int(answer["ContentLength"])
    given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.get("ContentRange") or "")
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if given is None or wanted is None:
        raise ShortReadError(f"the store answered {asked} with {answer.get('ContentRange') or 'no range'}")
    total = int(given[3])
    start = int(wanted[1]) if wanted[1] else max(0, total - int(wanted[2]))
    stop = min(int(wanted[2]) + 1, total) if wanted[1] and wanted[2] else total
    if int(given[1]) != start:
        raise ShortReadError(f"the store answered {asked} with {given[0]}")
    return stop - start


def _exists_already(error: BaseException) -> bool:
    return isinstance(error, FileExistsError) or _code(error) in _CONDITION_FAILED


def _translated(method: str, kwargs: Mapping[str, Any], error: Exception) -> Exception:
    """Return the error of a failed "only if there is none" as the one it is, whatever words the store has for it."""
    if method == "put_object" and "IfNoneMatch" in kwargs and _exists_already(error):
        return FileExistsError(f"{kwargs['Bucket']}/{kwargs['Key']}")
    return error


def _etag_of_parts(parts: list[Mapping[str, Any]]) -> str:
    """Return the ETag that an object assembled of parts gets: the MD5 of their MD5s, and their number."""
    try:
        digests = b"".join(bytes.fromhex(str(part["ETag"]).strip('"')) for part in parts)
    except ValueError:  # an encrypting store has other ETags
        return ""
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"


def _words(error: BaseException) -> str:
    """Return what went wrong, in one line."""
    said = _response(error).get("Error", {}).get("Message") or str(error) or "no details"
    return f"{_code(error) or type(error).__name__}: {said.splitlines()[0]}"
