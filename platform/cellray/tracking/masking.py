"""Takes secrets out of what is recorded: values of options named like secrets, passwords and queries of URIs, tokens.

Rather masks too much than too little. Knows nothing of who records what. A secret that neither bears a telling name nor
has a known shape nor stands in a URI is not recognised.
"""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

MASK = "***"

_ALWAYS = {"password", "passwd", "passphrase", "pwd", "pass", "secret", "secrets", "credential", "credentials"}
_ALWAYS |= {"apikey", "accesskey", "secretkey", "authtoken", "authorization", "auth", "bearer", "cookie", "signature"}
_KEYS = {"api", "access", "secret", "private", "account", "encryption", "signing", "ssh", "master", "license"}
_TOKENS_OF_A_VOCABULARY = {"cls", "eos", "bos", "pad", "mask", "unk", "sep", "special", "gene", "per", "max", "min"}
_OPEN_QUERY = {"sslmode", "versionid", "region", "format", "timeout", "sv", "se"}
"""Names in a URI's query that say nothing secret; the values of all others are masked."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_URI = re.compile(r"(?P<scheme>:/{2,3})(?P<rest>[^\s\"'<>]*)")  # from `://` on: time is linear in the text's length
_PAIR = re.compile(r"([?&#;]|^)([^=&#;?]+)=([^&#;]*)")
_NAMED = re.compile(
    r"(?i)(?P<name>(?:password|passwd|passphrase|pwd|secret|credentials?|api[_-]?key|access[_-]?key"
    r"|account[_-]?key|private[_-]?key|signature|authorization|(?<![a-z])(?:auth|access|api|bearer|hf|session|security)"
    r"[_-]?token|(?<![\w])token|(?<![\w])sig)[\"']?\s*[=:]\s*)(?P<value>\"[^\"]*\"|'[^']*'|(?:(?:bearer|basic|token)\s+)?[^\s,;&\"')\]}]+)"
)
_OPTION = re.compile(
    r"(?i)(--[\w\-]{0,40}?(?:password|passwd|passphrase|secret|api[_-]key|access[_-]key|private[_-]key|token)\s+)"
    r"(?!-)(\"[^\"]*\"|'[^']*'|\S+)"
)
_SHAPES = re.compile(
    r"(?i:\b(?:bearer\s+|basic\s+(?=\S*[0-9+/=]))[A-Za-z0-9+/=_.\-]{8,})"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bhf_[A-Za-z0-9]{20,}"
    r"|\bglpat-[\w\-]{16,}|\bxox[abprs]-[\w\-]{10,}|\bsk-[\w\-]{20,}|\bdapi[0-9a-f]{32}\b|\bAIza[\w\-]{35}"
    r"|\beyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)


def is_secret_name(name: str) -> bool:
    """Tell whether an option of this name holds a secret: `hf_token` does, `token_budget` and `pad_token` do not."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    if _ALWAYS & set(words) or "sas" in words[-2:]:
        return True
    pairs = {before for before, word in pairwise(words) if word in ("key", "keys")}
    if pairs & _KEYS or ("access" in words and "id" in words):
        return True
    return words[-1] == "token" and not _TOKENS_OF_A_VOCABULARY & set(words)


def mask_text(text: str) -> str:
    """Return text without passwords and query values of URIs, without `password=...`, without tokens of known shape."""
    text = _URI.sub(lambda match: match["scheme"] + _mask_rest(match["rest"]), text)
    text = _SHAPES.sub(MASK, text)
    text = _NAMED.sub(lambda match: match["name"] + _mask_value(match["value"]), text)
    return _OPTION.sub(lambda match: match[1] + _mask_value(match[2]), text)


def mask(value: Any, name: str = "") -> Any:  # noqa: ANN401  # JSON is what it is
    """Return a JSON-like value without secrets; `name` is what it is called where it stands."""
    if value is None or isinstance(value, bool):
        return value
    if name and is_secret_name(name) and value not in ("", (), [], {}):
        return MASK
    if isinstance(value, Mapping):
        return {mask_text(key) if isinstance(key, str) else key: mask(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [mask(each) for each in value]
    return mask_text(value) if isinstance(value, str) else value


def mask_document(text: str, name: str) -> str:
    """Return a text file's content without secrets; JSON stays JSON, and unchanged where it holds none."""
    if name.lower().endswith(".json"):
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            return mask_text(text)
        shown = mask(value)
        return text if shown == value else json.dumps(shown, indent=1) + "\n"
    return mask_text(text)


def _mask_value(value: str) -> str:
    """Mask within the quotes, where there are any."""
    quote = value[0] if value[0] in "\"'" else ""
    return f"{quote}{MASK}{quote}"


def _mask_rest(rest: str) -> str:
    """Mask what follows `scheme://`.

    A password may hold `/`, `?`, `#` and `@` though it should not. So after `name:` whatever comes before the last `@`
    is taken for a password, even where it may be a port and a path.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    end = rest.rfind("@") if ":" in authority else authority.rfind("@")
    if end >= 0:
        return f"{MASK}@{_mask_queries(rest[end + 1 :])}"
    return _mask_queries(rest)


def _mask_queries(rest: str) -> str:
    """Mask the values of a query and a fragment, save those of names known to be harmless."""
    path, mark, query = _split_query(rest)
    if not mark:
        return rest
    if "=" not in query:
        return path + mark + (MASK if query else "")
    shown = _PAIR.sub(lambda m: f"{m[1]}{m[2]}={m[3] if m[2].lower() in _OPEN_QUERY else MASK}", query)
    return path + mark + shown


def _split_query(rest: str) -> tuple[str, str, str]:
    """Cut at the first `?` or `#`; a fragment that holds no `=` is part of a name, as in `s3://bucket/sample#3`."""
    found = re.search(r"\?|#(?=[^?]*=)", rest)
    return (rest, "", "") if found is None else (rest[: found.start()], found[0], rest[found.end() :])
