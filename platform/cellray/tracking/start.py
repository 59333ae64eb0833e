"""Creates a run, or finds the one that an earlier attempt at the same request left unfinished."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellray.tracking.contract import NullTracker, Tracker
from cellray.tracking.patient import PatientTracker
from cellray.tracking.run import MlflowRun, tag_text
from cellray.tracking.server import OFF, mlflow_client, must_answer, tracking_uri

logger = logging.getLogger(__name__)

REQUEST, STARTS, PARENT = "cellray.request", "cellray.starts", "mlflow.parentRunId"


def start_run(
    uri: str | None,
    experiment: str,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    *,
    key: str | None = None,
    parent: Tracker | None = None,
    retry: bool = False,
) -> Tracker:
    """Create a run, or go on with an unfinished one.

    Parameters
    ----------
    uri
        MLflow tracking URI; `none` for no tracking; None for `MLFLOW_TRACKING_URI` or, without that, SQLite in the
        working directory.
    experiment, name
        Where the run is listed.
    params, tags
        Recorded at once.
    key
        Digest of the request. An unfinished run of this key, experiment and parent is continued: its status becomes
        RUNNING again, and what it has recorded is not recorded twice. Finished runs are left alone.
    parent
        The run this one is listed under, as a trial or a fold; its store and experiment are taken instead of `uri` and
        `experiment`, and nothing is recorded if it records nothing.
    retry
        Whether what an earlier run began is done again, as a trial that was cut off: its run is continued even if it
        was closed already, and takes the name, too. Else it keeps its own, which a person may have changed.

    Raises
    ------
    InputError
        The tracking server does not answer.
    """
    if isinstance(parent, NullTracker) or (parent is None and uri == OFF):
        return NullTracker()
    above = parent.run if isinstance(parent, PatientTracker) else None
    if parent is not None and above is None:
        raise TypeError(f"a parent is a tracker from start_run, not {type(parent).__name__}")
    if key is not None and not key.isalnum():
        raise ValueError(f"a key is a digest, letters and digits only, not {key!r}")
    uri = above.uri if above else tracking_uri(uri)
    with must_answer(uri):
        client = mlflow_client(uri)
        experiment_id = above.experiment_id if above else _experiment(client, uri, experiment)
        own = {REQUEST: key} if key else {}
        own |= {PARENT: above.run_id} if above else {}
        found = _earlier(client, experiment_id, key, above.run_id if above else None, ended=retry) if key else None
        shown = {each: tag_text(each, value) for each, value in tags.items()}
        if found:
            tracker = _continued(client, uri, found, name if retry else None)
        else:
            tracker = _created(client, uri, experiment_id, name, shown | own)
    if found:
        tracker.set_tags(shown)
    tracker.log_params(params)
    return tracker


def _experiment(client: Any, uri: str, name: str) -> str:  # noqa: ANN401
    """Return an experiment's id; create it if there is none."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        local = (Path.cwd() / "mlruns").as_uri() if uri.startswith("sqlite:") else None
        try:
            return str(client.create_experiment(name, artifact_location=local))
        except MlflowException:
            if (found := client.get_experiment_by_name(name)) is None:  # else another job was first
                raise
    return str(found.experiment_id)


def _earlier(client: Any, experiment_id: str, key: str, parent: str | None, *, ended: bool) -> Any:  # noqa: ANN401
    """Return the latest run of a request that is unfinished or, if `ended`, whatever it is; None if there is none."""
    wanted = f"tags.`{REQUEST}` = '{key}'" + ("" if ended else " and attributes.status != 'FINISHED'")
    runs = client.search_runs([experiment_id], wanted, order_by=["attributes.start_time DESC"])
    return next((run for run in runs if run.data.tags.get(PARENT) == parent), None)


def _created(client: Any, uri: str, experiment_id: str, name: str, tags: Mapping[str, str]) -> PatientTracker:  # noqa: ANN401
    run = client.create_run(experiment_id, run_name=name, tags={STARTS: "1", **tags})
    return PatientTracker(MlflowRun(uri, run.info.run_id, experiment_id))


def _continued(client: Any, uri: str, run: Any, name: str | None) -> PatientTracker:  # noqa: ANN401
    """Open a run again, knowing what it has recorded."""
    run_id = run.info.run_id
    client.update_run(run_id, status="RUNNING", name=name)
    starts = int(run.data.tags.get(STARTS, "1")) + 1
    client.set_tag(run_id, STARTS, str(starts))
    logger.info("going on with MLflow run %s, started for the %s. time", run_id, starts)
    again = MlflowRun(uri, run_id, run.info.experiment_id)
    return PatientTracker(again, run.data.params, again.recorded_steps(), look_again=True)
