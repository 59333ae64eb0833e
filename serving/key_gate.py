"""Lets callers with API keys in: finds the key, then its scope, then whether it asks too often.

Reads the file of keys again once it changed, so that adding and revoking keys needs no restart.
"""

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cellray.config import API_KEYS
from cellray.errors import InputError
from serving.access import AccessError, Asked, Caller, Scope
from serving.audit import AuditLog
from serving.keys import Key, find_key, parse_keys
from serving.rate import RateLimiter

logger = logging.getLogger("ray.serve")

_LOOKED_EVERY_S = 2.0
_SCHEME = "bearer"
_LONGEST = 256


class KeyFile:
    """Keys of a file, as it stands now; or of an environment variable, which is a secret of the cluster.

    Parameters
    ----------
    path
        Of the file; None: the environment variable `CELLRAY_API_KEYS` holds its text.
    clock
        Returns seconds that never go back.

    Raises
    ------
    InputError
        There are no keys, or they are damaged.
    """

    def __init__(self, path: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock, self._looked_at = path, clock, clock()
        self._stamp = self._stamped()
        self._keys = self._read()

    def keys(self) -> Mapping[str, Key]:
        """Return the keys; those of before if the file is damaged now, which the server's log then says.

        A file that is gone or has no keys left lets nobody in.
        """
        if self._path is not None and self._clock() - self._looked_at >= _LOOKED_EVERY_S:
            self._looked_at = self._clock()
            stamp = self._stamped()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._keys = self._read(started=True) if stamp else {}
                    logger.info("%d keys were read from %s", len(self._keys), self._path)
                except InputError as error:
                    logger.error("keys stay as they were: %s", error)
        return self._keys

    def _stamped(self) -> tuple[int, ...]:
        if self._path is None:
            return ()
        try:
            found = Path(self._path).stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self, *, started: bool = False) -> dict[str, Key]:
        fix = "Make a key with: python -m serving.keys new --name NAME --scopes embed,perturb --file FILE"
        if self._path is None:
            subject, text = API_KEYS, os.environ.get(API_KEYS, "")
        else:
            subject = self._path
            try:
                text = Path(self._path).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError("access.keys_file", "it names a file of keys", str(error), fix) from None
        keys = parse_keys(text, subject)
        if not keys and not started:
            raise InputError(subject, "there must be a key", "none", fix)
        return keys


class KeyGate:
    """Lets callers in by their keys.

    Parameters
    ----------
    keys
        Those there are.
    requests_per_minute
        Of a key that names no number of its own.
    audit
        Where answers are written; None: nowhere.
    limiter
        Says whether a key asks too often.
    """

    def __init__(
        self, keys: KeyFile, requests_per_minute: int, audit: AuditLog | None, limiter: RateLimiter | None = None
    ) -> None:
        self._keys, self._per_minute, self._audit = keys, requests_per_minute, audit
        self._limiter = limiter or RateLimiter()

    def admit(self, headers: Mapping[str, str], scopes: Collection[Scope], client: str) -> Caller:  # any address
        """Return the caller.

        Raises
        ------
        AccessError
            401: no key, an unknown or an expired one; 403: it lacks the scope; 429: it asks too often.
        """
        keys = self._keys.keys()
        name = find_key(keys, _key_of(headers))
        if name is None:
            raise AccessError(401, "invalid_key", "this key is not known here")
        key = keys[name]
        caller = Caller(name, frozenset(key.scopes))
        if key.is_expired(datetime.now(UTC).date()):
            raise AccessError(401, "expired_key", f"the key {name!r} was good until {key.expires}", caller=caller)
        per_minute = key.requests_per_minute or self._per_minute
        wait_s = self._limiter.take(name, per_minute)
        if wait_s > 0:
            message = f"the key {name!r} may ask {per_minute:,} times a minute"
            raise AccessError(429, "rate_limited", message, wait_s, caller)
        if scopes and not key.scopes.intersection(scopes):
            needed = " or ".join(map(repr, scopes))
            message = f"this needs the scope {needed}; the key {name!r} has {', '.join(sorted(key.scopes))}"
            raise AccessError(403, "scope_missing", message, caller=caller)
        return caller

    def record(self, caller: Caller | None, asked: Asked) -> None:
        """Write a line to the audit log."""
        if self._audit is not None:
            self._audit.write(caller, asked)

    def close(self) -> None:
        """Close the audit log."""
        if self._audit is not None:
            self._audit.close()


def _key_of(headers: Mapping[str, str]) -> str:
    """Return what `Authorization: Bearer KEY` holds."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != _SCHEME or not key.strip() or len(key) > _LONGEST:
        raise AccessError(401, "no_key", "send a key: Authorization: Bearer KEY")
    return key.strip()
