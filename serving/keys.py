"""API keys: made here, kept as hashes only. `python -m serving.keys new --name NAME --scopes embed,perturb`.

A file of keys is TOML with a line for each: `NAME = { sha256 = "...", scopes = ["embed"] }`. A key is 256 random bits,
so that a plain SHA-256 cannot be guessed back; slow hashes are for what people think up. Knows no HTTP.
"""

import argparse
import hashlib
import hmac
import re
import secrets
import sys
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cellray.errors import InputError, listing, nearest, said
from serving.access import Scope

PREFIX = "cellray_"
"""What every key begins with, so that scanners of repositories and logs can find lost ones."""
SCOPES: tuple[str, ...] = get_args(Scope)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECRET_BYTES = 32
_FIX = "Make lines for it with: python -m serving.keys new --name NAME --scopes embed,perturb"


class Key(BaseModel):
    """What is known of a key; never the key itself.

    Attributes
    ----------
    sha256
        Hex digest of the key.
    scopes
        What it may do.
    created, expires
        Dates in UTC; from `expires` on it is refused.
    requests_per_minute
        None: the server's own number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Scope] = Field(min_length=1)
    created: date | None = None
    expires: date | None = None
    requests_per_minute: int | None = Field(None, ge=1)

    def is_expired(self, today: date) -> bool:
        """Tell whether the key is no longer good."""
        return self.expires is not None and today >= self.expires


def digest_of(key: str) -> str:
    """Return the hash that a key is kept as."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """Return a new random key."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def parse_keys(text: str, subject: str) -> dict[str, Key]:
    """Read keys by their names.

    Raises
    ------
    InputError
        It is no TOML of this form, or two names have one key.
    """
    try:
        found = {name: Key.model_validate(value) for name, value in tomllib.loads(text).items()}
    except tomllib.TOMLDecodeError as error:
        raise InputError(subject, "keys are a TOML file", str(error), _FIX) from None
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'a line'}: {each['msg']}" for each in error.errors())
        raise InputError(subject, "each line is NAME = { sha256, scopes, ... }", told, _FIX) from None
    wrong = [name for name in found if not _NAME.fullmatch(name)]
    if wrong:
        raise InputError(subject, "a name has letters, digits, - and _", listing(wrong), "Rename the key.")
    if len({key.sha256 for key in found.values()}) < len(found):
        raise InputError(subject, "each name has a key of its own", "one key under two names", "Make a new key.")
    return found


def find_key(keys: Mapping[str, Key], key: str) -> str | None:
    """Return the name of a key, None if it is unknown; takes as long whether and wherever it is found."""
    digest, found = digest_of(key), None
    for name, known in keys.items():
        if hmac.compare_digest(known.sha256, digest):
            found = name
    return found


def line_of(name: str, key: Key) -> str:
    """Return a key's line for the file."""
    scopes = ", ".join(f'"{scope}"' for scope in SCOPES if scope in key.scopes)
    parts = [f'sha256 = "{key.sha256}"', f"scopes = [{scopes}]"]
    more = key.model_dump(include={"created", "expires", "requests_per_minute"}, exclude_none=True)
    return f"{name} = {{ {', '.join([*parts, *(f'{field} = {value}' for field, value in more.items())])} }}"


def append_key(path: Path, name: str, key: Key) -> None:
    """Add a key to a file, which is made if there is none.

    Raises
    ------
    InputError
        The name is taken, or the file is damaged.
    """
    before = path.read_text() if path.exists() else ""
    if name in parse_keys(before, str(path)):
        raise InputError(str(path), "a name is given once", repr(name), "Choose another name.")
    text = before + ("\n" if before and not before.endswith("\n") else "") + line_of(name, key) + "\n"
    parse_keys(text, str(path))
    path.write_text(text)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.keys", description="Make API keys.")
    new = parser.add_subparsers(dest="command", required=True).add_parser("new", help="make a key, show it once")
    new.add_argument("--name", required=True, help="whose it is; stands in the audit log")
    new.add_argument("--scopes", required=True, help=f"some of {','.join(SCOPES)}")
    new.add_argument("--file", type=Path, help="add the line to this file; without, it is printed")
    new.add_argument("--expires", type=date.fromisoformat, help="YYYY-MM-DD from which on it is refused")
    new.add_argument("--requests-per-minute", type=int, help="default: the server's access.requests_per_minute")
    return parser.parse_args(arguments)


def _check_scopes(scopes: Sequence[str]) -> None:
    """Check what a key may do, as it is typed.

    Raises
    ------
    InputError
        There is no scope, or one of them is unknown.
    """
    wrong = [scope for scope in scopes if scope not in SCOPES]
    if wrong or not scopes:
        meant = nearest(wrong[0], SCOPES) if wrong else None
        fix = f"Did you mean {meant}?" if meant else "Name those that the key shall have."
        raise InputError("--scopes", f"lists some of {', '.join(SCOPES)}", listing(wrong), fix)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a key: print it, and its line for the file. Ends with 2 if what it was told makes no sense."""
    options = _options(arguments)
    secret = new_key()
    values: dict[str, Any] = {
        "sha256": digest_of(secret),
        "scopes": [scope.strip() for scope in options.scopes.split(",") if scope.strip()],
        "created": datetime.now(UTC).date(),
        "expires": options.expires,
        "requests_per_minute": options.requests_per_minute,
    }
    try:
        if not _NAME.fullmatch(options.name):
            fix = "Choose another name."
            raise InputError("--name", "a name has up to 64 letters, digits, - and _", repr(options.name), fix)
        _check_scopes(values["scopes"])
        key = Key.model_validate(values)
        if options.file is not None:
            append_key(options.file, options.name, key)
    except ValidationError as error:
        told = "; ".join(f"--{str(each['loc'][0]).replace('_', '-')}: {said(each)}" for each in error.errors())
        print(f"error: {told}", file=sys.stderr)
        return 2
    except (InputError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"key, shown this once: {secret}")
    print(f"added to {options.file}" if options.file else f"line for the file of keys: {line_of(options.name, key)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
