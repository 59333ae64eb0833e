"""The model registry's names: which version `models:/name@alias` means, and a local copy of its files."""

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cellray import storage
from cellray.errors import InputError, listing
from cellray.tracking.cache import cache_folder, cached
from cellray.tracking.server import in_short, mlflow, mlflow_client, must_answer, tracking_uri

logger = logging.getLogger(__name__)

SCHEME = "models:/"
WEIGHTS = "model.safetensors"
MODEL_DIGEST, CONTENT, FILES = "model_digest", "cellray.content", "cellray.files"
_NAME = re.compile(r"(?P<name>[^/@:]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))?")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model.

    Attributes
    ----------
    name, version
        Under which it is registered.
    digest
        SHA-256 of its weights' file: `ModelDirectory.digest`. None if it was registered by other means than this
        module's.
    tracking_uri
        The registry.
    """

    name: str
    version: str
    digest: str | None
    tracking_uri: str

    @property
    def uri(self) -> str:
        """The name that will always mean this version."""
        return f"{SCHEME}{self.name}/{self.version}"


def is_registered_name(uri: str) -> bool:
    """Tell whether a model is named by the registry: `models:/name@alias`, `models:/name/3`, `models:/name/latest`."""
    return uri.startswith(SCHEME)


def check_name(text: str) -> tuple[str, str | None]:
    """Split `NAME` or `NAME@ALIAS`.

    Raises
    ------
    ValueError
        It is neither.
    """
    match = _NAME.fullmatch(text)
    alias = match["alias"] if match else None
    reserved = alias is not None and (alias.lower() == "latest" or re.fullmatch(r"v\d+", alias.lower()))
    if match is None or match["version"] or reserved or not re.fullmatch(r"[\w.\-]+", alias or "a"):
        raise ValueError(
            f"{text!r}: give NAME or NAME@ALIAS, without / and :, and not the aliases latest and v1, v2, ..."
        )
    return match["name"], alias


def find_version(uri: str, registry: str | None) -> RegisteredVersion:
    """Return the version that `models:/name@alias`, `models:/name/3` or `models:/name/latest` means now.

    Raises
    ------
    InputError
        There is none of this name, alias or number; the error lists those there are.
    """
    return _look_up(uri, registry)[0]


def resolve_model(uri: str, registry: str | None = None) -> str:
    """Return where a model's files are: for a registered name a local copy, for anything else what was given.

    Parameters
    ----------
    uri
        A directory, an s3:// URI or `models:/name@alias`, `models:/name/3`, `models:/name/latest`.
    registry
        MLflow tracking URI, None for the usual one (see `cellray.tracking.start_run`).

    Raises
    ------
    InputError
        The registry does not answer, knows no such model, or gives other files than were registered.
    """
    if not is_registered_name(uri):
        return uri
    version, known = _look_up(uri, registry)
    files = json.loads(known.tags.get(FILES, "{}"))
    if not files:
        logger.warning("%s was registered without digests: it is taken as it is", version.uri)
        files = {}
    key = f"{version.version}-{(version.digest or storage.sha256_bytes(known.source.encode()))[:16]}"
    place = cache_folder() / quote(version.name, safe=" ") / key
    return str(cached(place, files, lambda folder: _download(version, known.source, folder), version.uri))


def _look_up(uri: str, registry: str | None) -> tuple[RegisteredVersion, Any]:
    """Return a version and MLflow's own record of it."""
    match = _NAME.fullmatch(uri.removeprefix(SCHEME))
    if match is None:
        raise InputError(
            uri, "a registered model is models:/NAME@ALIAS or models:/NAME/VERSION", "neither", "Correct it."
        )
    registry = tracking_uri(registry)
    with must_answer(registry):
        client = mlflow_client(registry)
        name, aliases = match["name"], _aliases(client, uri, match["name"], registry)
        versions = {str(each.version): each for each in client.search_model_versions(f"name='{name}'")}
    wanted = aliases.get(match["alias"]) if match["alias"] else match["version"]
    if wanted == "latest":
        wanted = max(versions, key=int, default=None)
    if wanted is None or str(wanted) not in versions:
        found = f"aliases {listing(aliases)}, versions {listing(versions)}"
        raise InputError(uri, f"{name} must have this alias or version", found, "Name one of these.")
    known = versions[str(wanted)]
    return RegisteredVersion(name, str(wanted), known.tags.get(MODEL_DIGEST), registry), known


def _aliases(client: Any, uri: str, name: str, registry: str) -> dict[str, str]:  # noqa: ANN401
    """Return a registered model's aliases."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [each.name for each in client.search_registered_models()]
        rule = "the name must be registered with the tracking server"
        found = f"the names {listing(names)}" if names else "an empty registry"
        raise InputError(uri, rule, found, "Name one of its models, or set --tracking-uri.") from None


def _download(version: RegisteredVersion, source: str, folder: Path) -> None:
    """Fetch a version's files."""
    try:
        fetched = Path(
            mlflow().artifacts.download_artifacts(
                artifact_uri=source, dst_path=str(folder / "download"), tracking_uri=version.tracking_uri
            )
        )
        for path in [path for path in fetched.iterdir() if path.is_file()]:
            path.replace(folder / path.name)
        shutil.rmtree(folder / "download")
    except Exception as error:  # MLflow's, boto's and requests' share no base
        found = f"{type(error).__name__}: {in_short(error)}"
        raise InputError(
            version.uri, "its files must be in the registry", found, "Register the model again."
        ) from error
