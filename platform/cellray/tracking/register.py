"""Registers model directories: uploads the files as artifacts of a run, makes a version, sets the alias.

Knows the files of a model directory, not what they hold. A version bears the digest of each of its files, so what comes
back (`cellray.tracking.registry`) is what went in.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellray import storage
from cellray.errors import InputError, listing
from cellray.tracking.contract import Tracker
from cellray.tracking.masking import mask_document
from cellray.tracking.patient import PatientTracker
from cellray.tracking.registry import CONTENT, FILES, MODEL_DIGEST, WEIGHTS, RegisteredVersion
from cellray.tracking.run import tag_text
from cellray.tracking.server import in_short, mlflow_client, must_answer, tracking_uri

_NEEDED = ("config.json", WEIGHTS)
_OPTIONAL = ("vocabulary.json", "provenance.json", "generation_config.json")
_MASKED = ("config.json", "provenance.json")
_NOT_CONTENT = "run"  # the field of provenance.json that tells where a run was recorded
_FOLDER = "model"


def register_model(
    tracker: Tracker, model: str, name: str, alias: str | None = None, tags: Mapping[str, str] | None = None
) -> RegisteredVersion:
    """Upload a model directory as artifacts of a run and register it under a name.

    A model whose files are registered under this name already gets no second version; only the alias moves.

    Parameters
    ----------
    tracker
        The run that made the model.
    model
        Model directory, local or in object storage.
    name, alias
        Where it is found from now on: `models:/name@alias`.
    tags
        Of the version, as the corpus' digest.

    Raises
    ------
    InputError
        The run is not recorded, the directory holds no model, or the registry does not answer.
    """
    if not isinstance(tracker, PatientTracker):
        raise InputError(name, "a model is registered from a recorded run", "no record", "Set --tracking-uri.")
    run = tracker.run
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        staged = Path(folder) / _FOLDER
        files = _stage(model, staged)
        found = _find(run.uri, name, content_digest(staged, files))
        if found is None:
            with must_answer(run.uri):
                _create_name(run.client, name)
            given = {key: tag_text(key, value) for key, value in (tags or {}).items()}
            given |= {MODEL_DIGEST: files[WEIGHTS], CONTENT: content_digest(staged, files), FILES: json.dumps(files)}
            try:
                place = f"{_FOLDER}/{files[WEIGHTS][:16]}"
                run.log_directory(staged, place)
                source = f"{run.client.get_run(run.run_id).info.artifact_uri.rstrip('/')}/{place}"
                made = run.client.create_model_version(name, source, run_id=run.run_id, tags=given)
            except Exception as error:  # MLflow's, boto's and requests' share no base
                raise _not_registered(model, name, error) from error
            found = RegisteredVersion(name, str(made.version), files[WEIGHTS], run.uri)
    _point(run.uri, found, alias)
    return found


def find_registered(uri: str | None, model: str, name: str, alias: str | None = None) -> RegisteredVersion | None:
    """Return the version of a name that holds this very model directory, giving it the alias; None if there is none."""
    uri = tracking_uri(uri)
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        staged = Path(folder) / _FOLDER
        found = _find(uri, name, content_digest(staged, _stage(model, staged)))
    if found is not None:
        _point(uri, found, alias)
    return found


def _find(uri: str, name: str, content: str) -> RegisteredVersion | None:
    """Return the latest version of a name that holds these files."""
    with must_answer(uri):
        versions = mlflow_client(uri).search_model_versions(f"name='{name}'")
        same = [each for each in versions if each.tags.get(CONTENT) == content]
    if not same:
        return None
    latest = max(same, key=lambda each: int(each.version))
    return RegisteredVersion(name, str(latest.version), latest.tags.get(MODEL_DIGEST), uri)


def _create_name(client: Any, name: str) -> None:  # noqa: ANN401
    """Create a registered model if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _point(uri: str, version: RegisteredVersion, alias: str | None) -> None:
    """Give an alias to a version, taking it from another."""
    if alias is not None:
        with must_answer(uri):
            mlflow_client(uri).set_registered_model_alias(version.name, alias, version.version)


def _stage(model: str, staged: Path) -> dict[str, str]:
    """Copy a model directory's files, masking secrets in its records; return each one's SHA-256."""
    uri = storage.absolute(model)
    missing = [name for name in _NEEDED if not storage.exists(storage.join(uri, name))]
    if missing:
        raise InputError(
            uri, f"a model directory holds {listing(_NEEDED)}", f"no {listing(missing)}", "Check the path."
        )
    staged.mkdir()
    with storage.local_directory(uri) as local:
        for name in (*_NEEDED, *_OPTIONAL):
            if name in _MASKED and (local / name).exists():
                (staged / name).write_text(mask_document((local / name).read_text(), name))
            elif (local / name).exists():
                shutil.copyfile(local / name, staged / name)
    return {path.name: storage.sha256_file(str(path)) for path in sorted(staged.iterdir())}


def content_digest(folder: Path, files: Mapping[str, str]) -> str:
    """Return what tells one model from another: its files, but not where its run was recorded."""
    content: dict[str, Any] = dict(files)
    if "provenance.json" in files:
        provenance = json.loads((folder / "provenance.json").read_text())
        content["provenance.json"] = {key: value for key, value in provenance.items() if key != _NOT_CONTENT}
    return storage.sha256_json(content)


def _not_registered(model: str, name: str, error: Exception) -> InputError:
    found = f"{type(error).__name__}: {in_short(error)}"
    return InputError(
        f"registering {model} as {name}", "the registry must take it", found, "The model is complete: run again."
    )
