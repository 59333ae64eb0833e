"""Options of jobs whose runs are recorded, and what becomes of `--register-as` when the model is published."""

import logging
from collections.abc import Mapping

from pydantic import Field, field_validator, model_validator

from cellray.config import JobConfig
from cellray.tracking.contract import Tracker
from cellray.tracking.ending import closing
from cellray.tracking.register import find_registered, register_model
from cellray.tracking.registry import RegisteredVersion, check_name
from cellray.tracking.server import OFF
from cellray.tracking.start import start_run

logger = logging.getLogger(__name__)


class TrackingOptions(JobConfig):
    """Where a run is recorded and under which name its model is registered."""

    tracking_uri: str | None = Field(
        None, description="MLflow tracking URI, or none; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment: str = Field("cellray", description="MLflow experiment")
    register_as: str | None = Field(
        None, description="register the model in MLflow as NAME or NAME@ALIAS; models:/NAME@ALIAS then names it"
    )

    @field_validator("register_as")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None:
            check_name(value)
        return value

    @model_validator(mode="after")
    def _registered_where(self) -> "TrackingOptions":
        if self.register_as is not None and self.tracking_uri == OFF:
            raise ValueError("--register-as needs a tracking server: --tracking-uri may not be none")
        return self


def register_published(
    options: TrackingOptions,
    model: str,
    tracker: Tracker | None = None,
    *,
    key: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> RegisteredVersion | None:
    """Register a published model directory as `--register-as` says; do nothing without it.

    Called again for the same model it finds the version made before, so a job that was killed after it published its
    model registers it when it is run again.

    Parameters
    ----------
    options
        The job's options.
    model
        The model directory.
    tracker
        The run that made the model, before its `finish`. None if there is none at hand: the job found its work done.
        Then an unfinished run of `key` is continued, or one is made that holds the model only.
    key
        Digest of the job's request.
    tags
        Of the version, as the corpus' digest.

    Raises
    ------
    InputError
        The registry does not answer or does not take it. The model itself is complete.
    """
    if options.register_as is None:
        return None
    name, alias = check_name(options.register_as)
    if (made := find_registered(options.tracking_uri, model, name, alias)) is None:
        run = tracker or start_run(options.tracking_uri, options.experiment, f"register {name}", {}, {}, key=key)
        with closing([] if tracker else [run]):
            made = register_model(run, model, name, alias, tags)
    logger.info("registered as %s%s", made.uri, f" ({alias})" if alias else "")
    return made
