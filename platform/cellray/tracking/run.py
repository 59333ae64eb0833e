"""One MLflow run, written to: each method is one exchange with the store and raises if that fails.

Knows neither retries nor resuming. What it writes is masked here, so nothing reaches a store in another way.
"""

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cellray.tracking.contract import Status
from cellray.tracking.masking import is_secret_name, mask, mask_document, mask_text
from cellray.tracking.names import MAX_PARAM, MAX_TAG, OLD_MAX_PARAM, metric_name, tag_name
from cellray.tracking.server import mlflow, mlflow_client

_BATCH = 100  # MLflow's limit of parameters or tags a request
_POINTS = 1000
_TEXT = {".txt", ".log", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".env", ".md", ".csv", ".tsv"}
_TEXT |= {".sh", ".py", ".html", ".xml", ""}


@dataclass(frozen=True)
class MlflowRun:
    """An MLflow run.

    Attributes
    ----------
    uri
        MLflow tracking URI, with an absolute path where it is a file.
    run_id
        The run.
    experiment_id
        The experiment it is listed in.
    """

    uri: str
    run_id: str
    experiment_id: str

    @cached_property
    def client(self) -> Any:  # noqa: ANN401  # an mlflow.MlflowClient
        """The client of the run's store."""
        return mlflow_client(self.uri)

    def __reduce__(self) -> tuple[Any, ...]:  # a client stays in its process
        return MlflowRun, (self.uri, self.run_id, self.experiment_id)

    def point(self, name: str, value: float, step: int, time_ms: int) -> Any:  # noqa: ANN401
        """Return a `mlflow.entities.Metric`."""
        return mlflow().entities.Metric(name, value, time_ms, step)

    def recorded_steps(self) -> dict[str, set[int]]:
        """Return the steps that each metric has."""
        names = self.client.get_run(self.run_id).data.metrics
        return {name: {point.step for point in self.client.get_metric_history(self.run_id, name)} for name in names}

    def log_points(self, points: Sequence[Any]) -> None:
        """Write `mlflow.entities.Metric` points. Points that were written before are not written again."""
        for start in range(0, len(points), _POINTS):
            self.client.log_batch(self.run_id, metrics=points[start : start + _POINTS])

    def log_params(self, params: Mapping[str, str]) -> None:
        """Write parameters, as `param_text` gives them; an old server gets what it can take."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        items = list(params.items())
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            try:
                self.client.log_batch(self.run_id, params=[Param(k, v) for k, v in batch])
            except MlflowException as error:
                if "length" not in str(error) or all(len(v) <= OLD_MAX_PARAM for _, v in batch):
                    raise
                self.client.log_batch(self.run_id, params=[Param(k, v[:OLD_MAX_PARAM]) for k, v in batch])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Write tags."""
        from mlflow.entities import RunTag

        items = [RunTag(tag_name(key), tag_text(key, value)) for key, value in tags.items()]
        for start in range(0, len(items), _BATCH):
            self.client.log_batch(self.run_id, tags=items[start : start + _BATCH])

    def log_file(self, path: Path, folder: str) -> None:
        """Upload a file; a text file without the secrets in it."""
        data = _masked_text(path)
        if data is None:
            self.client.log_artifact(self.run_id, str(path), folder or None)
            return
        with _file_named(f"{folder}/{path.name}") as (copy, place):
            copy.write_text(data)
            self.client.log_artifact(self.run_id, str(copy), place)

    def log_text(self, text: str, name: str) -> None:
        """Upload text."""
        with _file_named(name) as (path, folder):
            path.write_text(mask_document(text, name))
            self.client.log_artifact(self.run_id, str(path), folder)

    def log_table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Upload columns as CSV."""
        shown = {key: [mask(each, key) for each in column] for key, column in columns.items()}
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(shown)
        writer.writerows(zip(*shown.values(), strict=True))
        self.log_text(out.getvalue(), name)

    def log_figure(self, figure: Any, name: str) -> None:  # noqa: ANN401
        """Upload a matplotlib figure."""
        with _file_named(name) as (path, folder):
            figure.savefig(path, bbox_inches="tight")
            self.client.log_artifact(self.run_id, str(path), folder)

    def log_directory(self, directory: Path, folder: str) -> None:
        """Upload the files of a directory as they are: the caller has masked them."""
        self.client.log_artifacts(self.run_id, str(directory), folder)

    def finish(self, status: Status) -> None:
        """Set the run's status and end time."""
        self.client.set_terminated(self.run_id, status)

    def where(self) -> str:
        """Name the run and how to see it."""
        shown = mask_text(self.uri)
        if self.uri.startswith(("http:", "https:")):
            return f"MLflow run {self.run_id} at {shown}"
        return f"MLflow run {self.run_id} (mlflow ui --backend-store-uri {shown})"


def param_text(name: str, value: object) -> tuple[str, bool]:
    """Return a parameter's value as text without secrets, and whether it had to be cut."""
    shown = mask(value, name)
    text = shown if isinstance(shown, str) else str(value) if shown == value else str(shown)
    text = mask_text(text)
    return text[:MAX_PARAM], len(text) > MAX_PARAM


def tag_text(name: str, value: object) -> str:
    """Return a tag's value without secrets, as long as MLflow takes it."""
    return str(mask(str(value), name if is_secret_name(name) else ""))[:MAX_TAG]


def param_name(name: str) -> str:
    """Return a parameter's name as MLflow takes it."""
    return metric_name(mask_text(name))


@contextmanager
def _file_named(name: str) -> Iterator[tuple[Path, str | None]]:
    """Yield a temporary path whose last part is that of an artifact's name, and the artifact's folder."""
    folder, _, last = mask_text(name).strip("/").rpartition("/")
    with tempfile.TemporaryDirectory(prefix="cellray-") as temporary:
        yield Path(temporary) / last, folder or None


def _masked_text(path: Path) -> str | None:
    """Return a text file's content without secrets; None where there is nothing to mask, or it is no text."""
    if path.suffix.lower() not in _TEXT:
        return None
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return None
    shown = mask_document(text, path.name)
    return None if shown == text else shown
