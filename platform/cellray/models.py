"""Opens the model that a job was told to use: a directory, an s3:// URI, or a name in the model registry.

Joins the registry and the model directory, which know nothing of each other.
"""

from dataclasses import dataclass

from cellray.errors import InputError
from cellray.model.checkpoint import ModelDirectory
from cellray.tracking.registry import find_version, is_registered_name, resolve_model
from cellray.tracking.server import tracking_uri


@dataclass(frozen=True)
class ModelReference:
    """A model as it can be named for good and sent to workers on other machines.

    Attributes
    ----------
    uri
        A directory, or `models:/name/3` with its version: an alias may move while a job runs.
    digest
        `ModelDirectory.digest`.
    registry
        MLflow tracking URI of a registered model; None for a directory.
    """

    uri: str
    digest: str
    registry: str | None = None

    def open(self) -> ModelDirectory:
        """Open the model where it is needed: a registered one is copied to this machine once.

        Raises
        ------
        InputError
            It has other weights than when the job began, or cannot be had.
        """
        model = ModelDirectory.open(resolve_model(self.uri, self.registry))
        if model.digest != self.digest:
            raise InputError(self.uri, "a model may not change while it is used", "other weights", "Run again.")
        return model


def open_model(uri: str, registry: str | None = None) -> tuple[ModelDirectory, ModelReference]:
    """Open a model by any name that jobs take.

    Parameters
    ----------
    uri
        A model directory (local or s3://), or `models:/name@alias`, `models:/name/3`, `models:/name/latest`.
    registry
        MLflow tracking URI in which `models:/` names are looked up; None for the usual one.

    Returns
    -------
    tuple[ModelDirectory, ModelReference]
        The model, and what to record and to send to workers.

    Raises
    ------
    InputError
        There is no such model, or its files are not those that were registered.
    """
    if not is_registered_name(uri):
        model = ModelDirectory.open(uri)
        return model, ModelReference(model.uri, model.digest)
    registry = tracking_uri(registry)
    version = find_version(uri, registry)
    model = ModelDirectory.open(resolve_model(version.uri, registry))
    if version.digest not in (None, model.digest):
        raise InputError(version.uri, "the weights must be those registered", "other weights", "Register them again.")
    return model, ModelReference(version.uri, model.digest, registry)
