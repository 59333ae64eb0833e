"""Records runs: parameters, metrics over steps, tags, files. The only importer of MLflow.

`start_run` returns a tracker that writes to MLflow, or one that writes nothing, so callers never ask which.
A tracker is small and can be sent to another process, which then writes to the same run.
"""

import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

logger = logging.getLogger(__name__)

OFF = "none"
_MAX_PARAM_LENGTH = 6000


class Tracker(Protocol):
    """A run that is being recorded."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record what the run was made from or what it made."""
        ...

    def log_file(self, path: Path) -> None:
        """Keep a small file with the run."""
        ...

    def finish(self, status: Literal["FINISHED", "FAILED"]) -> None:
        """Close the run."""
        ...

    def where(self) -> str:
        """Tell a person where to look."""
        ...


class NullTracker:
    """Records nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def log_file(self, path: Path) -> None:
        """Do nothing."""

    def finish(self, status: Literal["FINISHED", "FAILED"]) -> None:
        """Do nothing."""

    def where(self) -> str:
        """Say that nothing is recorded."""
        return "not recorded"


@dataclass(frozen=True)
class MlflowTracker:
    """Writes to one MLflow run.

    Attributes
    ----------
    uri
        MLflow tracking URI, with an absolute path where it is a file.
    run_id
        The run, created by `start_run`.
    """

    uri: str
    run_id: str

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step, in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client().log_batch(self.run_id, metrics=[Metric(k, float(v), now, step) for k, v in metrics.items()])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        for key, value in tags.items():
            self._client().set_tag(self.run_id, key, value)

    def log_file(self, path: Path) -> None:
        """Upload a file to the run's artifacts."""
        self._client().log_artifact(self.run_id, str(path))

    def finish(self, status: Literal["FINISHED", "FAILED"]) -> None:
        """Set the run's status and end time."""
        self._client().set_terminated(self.run_id, status)

    def where(self) -> str:
        """Name the run and how to see it."""
        shown = _without_password(self.uri)
        if self.uri.startswith(("http:", "https:")):
            return f"MLflow run {self.run_id} at {shown}"
        return f"MLflow run {self.run_id} (mlflow ui --backend-store-uri {shown})"

    def _client(self) -> Any:  # noqa: ANN401  # an mlflow.MlflowClient; MLflow is imported late
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)


def start_run(
    uri: str | None, experiment: str, name: str, params: Mapping[str, object], tags: Mapping[str, str]
) -> Tracker:
    """Create a run.

    Parameters
    ----------
    uri
        MLflow tracking URI; `none` for no tracking; None for `MLFLOW_TRACKING_URI` or, without that, SQLite in the
        working directory.
    experiment, name
        Where the run is listed.
    params, tags
        Recorded at once.
    """
    if uri == OFF:
        return NullTracker()
    uri = _absolute(uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
    from mlflow import MlflowClient
    from mlflow.entities import Param

    logging.getLogger("alembic").setLevel(logging.WARNING)  # creating the SQLite tables logs each migration
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        local = (Path.cwd() / "mlruns").as_uri() if uri.startswith("sqlite:") else None
        experiment_id = client.create_experiment(experiment, artifact_location=local)
    else:
        experiment_id = found.experiment_id
    run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    client.log_batch(run_id, params=[Param(k, str(v)[:_MAX_PARAM_LENGTH]) for k, v in params.items()])
    return MlflowTracker(uri, run_id)


def _absolute(uri: str) -> str:
    """Make a local path absolute: other processes run in other directories."""
    prefix = "sqlite:///"
    if uri.startswith(prefix):
        return prefix + str(Path(uri.removeprefix(prefix)).resolve())
    return uri if ":" in uri else str(Path(uri).resolve())


def _without_password(uri: str) -> str:
    """Hide what stands between `://` and `@`."""
    return re.sub(r"://[^/@]*@", "://***@", uri)
