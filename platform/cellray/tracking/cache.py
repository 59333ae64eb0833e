"""Local copies of registered models: each lies whole in its folder or is not there, and is checked before use."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cellray import storage
from cellray.config import MODEL_CACHE
from cellray.errors import InputError

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder that holds downloaded models."""
    if chosen := os.environ.get(MODEL_CACHE):
        return Path(chosen).expanduser().resolve() / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve() / "cellray" / "models"


def cached(place: Path, files: Mapping[str, str], download: Callable[[Path], None], subject: str) -> Path:
    """Return a folder with these very files, downloading them if need be.

    Parameters
    ----------
    place
        The folder. Several processes may ask for it at once: the first that is ready fills it.
    files
        Name and SHA-256 of each file.
    download
        Fills an empty folder.
    subject
        What to call the model in an error.

    Raises
    ------
    InputError
        What was downloaded is not what was registered.
    """
    if place.is_dir():
        if not differing(place, files):
            return place
        logger.warning("%s is damaged and is downloaded again", place)
        _discard(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    try:
        download(staged)
        if wrong := differing(staged, files):
            raise InputError(
                subject, "the files must be those that were registered", wrong, "Restore them, or register them again."
            )
        try:
            staged.replace(place)
        except OSError:
            if not place.is_dir():  # else another process was first: its files are the same
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return place


def differing(folder: Path, files: Mapping[str, str]) -> str:
    """Say which files are missing or have another content; nothing if none."""
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"no {name}"
        if storage.sha256_file(str(folder / name)) != digest:
            return f"other content in {name}"
    return ""


def _discard(place: Path) -> None:
    """Move a folder out of the way in one step, then delete it: nobody sees half of it."""
    aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    with suppress(OSError):  # another process was first
        place.replace(aside)
    shutil.rmtree(aside, ignore_errors=True)
