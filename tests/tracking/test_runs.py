"""Runs: made once, continued after a kill without double records, nested, within MLflow's limits."""

import logging
import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow.utils.validation
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from cellray.tracking import NullTracker, start_run
from cellray.tracking.ending import closing
from cellray.tracking.patient import PatientTracker
from tests.conftest import REPOSITORY

KEY = "5eed" * 16


def runs_of(store: str, experiment: str = "tests") -> list[Any]:
    client = MlflowClient(store)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def points(store: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(store).get_metric_history(run_id, key)]


def begin(store: str, params: dict[str, object] | None = None, **options: Any) -> PatientTracker:  # noqa: ANN401
    tracker = start_run(store, "tests", "a run", params or {}, options.pop("tags", {}), **options)
    assert isinstance(tracker, PatientTracker)
    return tracker


TRAINING = """
import sys
from cellray.tracking import start_run
tracker = start_run(sys.argv[1], "tests", "a run", {"learning_rate": 0.1}, {}, key=sys.argv[2])
for step in range(1, 1000):
    tracker.log_metrics({"loss": 1 / step, "tokens/s": 5.0}, step)
    if step == 12:
        print("twelve", flush=True)
        sys.stdin.read()
"""


def test_a_killed_run_is_continued_without_double_points(store: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "platform")}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, store, KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "twelve\n"
        os.kill(process.pid, signal.SIGKILL)
    (broken,) = runs_of(store)
    assert broken.info.status == "RUNNING"
    assert len(points(store, broken.info.run_id, "loss")) == 12

    tracker = begin(store, {"learning_rate": 0.1}, key=KEY)
    for step in range(5, 40):  # from the last checkpoint, step 4
        tracker.log_metrics({"loss": 1 / step, "tokens/s": 4.0}, step)
    tracker.finish("FINISHED")
    (run,) = runs_of(store)
    assert (run.info.run_id, run.info.status) == (broken.info.run_id, "FINISHED")
    assert points(store, run.info.run_id, "loss") == [(step, 1 / step) for step in range(1, 40)]
    assert tracker.repeated == 2 * (12 - 4)
    assert tracker.lost == 0
    assert run.data.tags["cellray.starts"] == "2"


def test_a_failed_run_is_running_again_and_a_finished_one_is_left_alone(store: str) -> None:
    begin(store, key=KEY).finish("FAILED")
    again = begin(store, key=KEY)
    assert [run.info.status for run in runs_of(store)] == ["RUNNING"]
    again.finish("FINISHED")
    other = begin(store, key=KEY)
    assert other.run.run_id != again.run.run_id
    assert {begin(store, key="0" * 64).run.run_id, begin(store).run.run_id}.isdisjoint(
        {other.run.run_id, again.run.run_id}
    )
    with pytest.raises(ValueError, match="a key is a digest"):
        begin(store, key="x' or 1=1")


def test_a_run_ends_as_its_work_does(store: str) -> None:
    """A run that a person interrupted is no failure, and goes on like one that failed."""
    errors = {"FINISHED": None, "FAILED": ValueError(), "KILLED": KeyboardInterrupt()}
    for i, (status, error) in enumerate(errors.items()):
        tracker = begin(store, key=f"{i}" * 64)
        with suppress(ValueError, KeyboardInterrupt), closing([tracker]):
            if error is not None:
                raise error
        run = MlflowClient(store).get_run(tracker.run.run_id)
        assert run.info.status == status
        assert (begin(store, key=f"{i}" * 64).run.run_id == tracker.run.run_id) == (error is not None)


def test_parameters_keep_their_first_value(store: str, caplog: pytest.LogCaptureFixture) -> None:
    begin(store, {"workers": 1, "rate": 0.1}, key=KEY)
    again = begin(store, {"workers": 2, "rate": 0.1, "new": "x"}, key=KEY)
    assert runs_of(store)[0].data.params == {"workers": "1", "rate": "0.1", "new": "x"}
    assert "parameter workers was recorded as '1' and stays so; it is now '2'" in caplog.text
    assert again.lost == 0


def test_long_values_are_cut_and_counted(
    store: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {f"p{i}": "x" * (7000 if i == 7 else 10) for i in range(230)}  # more than fit one request
    tracker = begin(store, values, key=KEY, tags={"long": "y" * 9000})
    run = runs_of(store)[0]
    assert {len(value) for value in run.data.params.values()} == {10, 6000}
    assert (len(run.data.params), len(run.data.tags["long"]), tracker.cut) == (230, 5000, 1)
    assert "1 parameters were too long for MLflow and are recorded cut" in caplog.text
    caplog.clear()
    begin(store, values, key=KEY)
    assert "stays so" not in caplog.text

    monkeypatch.setattr(mlflow.utils.validation, "MAX_PARAM_VAL_LENGTH", 500)  # as servers before MLflow 2.8
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    old = begin(store, {"a": "z" * 800, "b": "short"}, key="0" * 64)
    assert old.lost == 0
    assert {k: len(v) for k, v in MlflowClient(store).get_run(old.run.run_id).data.params.items()} == {"a": 500, "b": 5}
    caplog.clear()
    begin(store, {"a": "z" * 800, "b": "short"}, key="0" * 64)
    assert "stays so" not in caplog.text


def test_names_that_mlflow_refuses_are_spelt_otherwise(store: str) -> None:
    tracker = begin(store, {"space[0]": 1})
    tracker.log_metrics({"f1/CD4+ T": 0.5, "../up": 1.0, "share < 5 %": 2.0}, 3)
    run = MlflowClient(store).get_run(tracker.run.run_id)
    assert run.data.metrics == {"f1/CD4plus T": 0.5, "up": 1.0, "share _ 5 percent": 2.0}
    assert run.data.params == {"space_0_": "1"}


def test_trials_and_folds_are_nested(store: str) -> None:
    parent = begin(store, key=KEY)
    sent: PatientTracker = pickle.loads(pickle.dumps(parent))  # trials run in other processes
    child = start_run(None, "ignored", "trial 1", {"x": 1}, {}, key="1", parent=sent)
    assert isinstance(child, PatientTracker)
    child.log_metrics({"loss": 1.0}, 1)
    child.finish("FAILED")
    again = start_run(None, "ignored", "trial 1", {"x": 1}, {}, key="1", parent=parent)
    assert isinstance(again, PatientTracker)
    assert again.run == child.run
    assert begin(store, key="1").run.run_id != child.run.run_id  # the same request by itself is another run
    client = MlflowClient(store)
    run = client.get_run(child.run.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run.run_id
    assert run.info.experiment_id == client.get_experiment_by_name("tests").experiment_id
    assert isinstance(start_run(store, "tests", "fold", {}, {}, parent=NullTracker()), NullTracker)
    assert isinstance(start_run("none", "tests", "fold", {}, {}), NullTracker)


def test_artifacts_lie_in_their_folders(store: str, tmp_path: Path) -> None:
    import matplotlib.figure

    tracker = begin(store)
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([1, 2])
    (tmp_path / "made.bin").write_bytes(b"\x00\x01")
    tracker.log_figure(figure, "figures/confusion.png")
    tracker.log_file(tmp_path / "made.bin", "files")
    tracker.log_text("two\nlines", "notes.txt")
    tracker.log_table({"class": ["B", "T, CD4"], "f1": [0.5, 1.0]}, "tables/classes.csv")
    with pytest.raises(ValueError, match="must have one length"):
        tracker.log_table({"a": [1], "b": []}, "t.csv")
    kept = Path(download_artifacts(run_id=tracker.run.run_id, tracking_uri=store, dst_path=str(tmp_path / "kept")))
    assert (kept / "figures" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (kept / "files" / "made.bin").read_bytes() == b"\x00\x01"
    assert (kept / "notes.txt").read_text() == "two\nlines"
    assert (kept / "tables" / "classes.csv").read_text().splitlines() == ["class,f1", "B,0.5", '"T, CD4",1.0']
    assert tracker.lost == 0


def test_what_cannot_be_recorded_is_counted(store: str, caplog: pytest.LogCaptureFixture) -> None:
    tracker = begin(store)
    tracker.log_metrics({"loss": 1.0, "table": [1, 2]}, 1)  # type: ignore[dict-item]
    tracker.log_file(Path("nowhere.txt"))
    with caplog.at_level(logging.WARNING):
        tracker.finish("FINISHED")
    assert tracker.lost == 2
    assert "2 record(s) of MLflow run" in caplog.text
    assert runs_of(store)[0].data.metrics == {"loss": 1.0}


def test_what_a_long_run_holds_is_known_when_it_is_continued(store: str, caplog: pytest.LogCaptureFixture) -> None:
    tracker = begin(store, key=KEY)
    tracker.run.log_points([tracker.run.point("loss", 1.0, step, 0) for step in range(3000)])  # several requests
    again = begin(store, key=KEY)
    for step in range(2990, 3010):
        again.log_metrics({"loss": 2.0}, step)
    with caplog.at_level("INFO", "cellray"):
        again.finish("FINISHED")
    assert "MLflow has 10 of the measurements from before the interruption" in caplog.text
    assert len(points(store, again.run.run_id, "loss")) == 3010


def test_what_the_job_before_still_records_is_not_recorded_again(store: str) -> None:
    """A job that is taken over goes on for a moment after the next one has opened its run."""
    before = begin(store, key=KEY)
    before.log_metrics({"loss": 3.0}, 1)
    after = pickle.loads(pickle.dumps(begin(store, key=KEY)))
    before.log_metrics({"loss": 2.0}, 2)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.0)):
        after.log_metrics({"loss": loss}, step)
    after.finish("FINISHED")
    assert isinstance(after, PatientTracker)
    found = points(store, after.run.run_id, "loss")
    assert found == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert after.repeated == 2
