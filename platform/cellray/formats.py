"""Which version a file of ours has, and that a newer one than this library knows is refused in plain words.

A version is one whole number. It grows when files that older libraries would read wrongly are written; what may change
without it is in `docs/formats.md`. Knows no artefact.
"""

from importlib.metadata import version

from cellray.errors import InputError

FORMAT_VERSION = "format_version"
"""The field that bears it."""


def require_known_version(uri: str, kind: str, found: object, known: int, software: object = None) -> None:
    """Refuse a file of a newer version than this library reads; whatever else is wrong with it is others' business.

    Parameters
    ----------
    uri, kind
        The file, and what it is called.
    found
        The version it tells.
    known
        The newest one that is read.
    software
        Versions it was written with, where it tells them.

    Raises
    ------
    InputError
        The version is newer.
    """
    if not isinstance(found, int) or found <= known:
        return
    writer = software.get("cellray") if isinstance(software, dict) else None
    told = f"format version {found}" + (f", written by cellray {writer}" if writer else "")
    rule = f"the {kind} must be of format version {known} or earlier, which cellray {version('cellray')} reads"
    raise InputError(uri, rule, told, "Upgrade cellray, or make it again with this one.")
