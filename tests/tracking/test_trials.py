"""A search's trials in MLflow bear the numbers and ends that its table has, those that were cut off among them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cellray.tracking import Tracker, start_run
from cellray.train.search.ledger import Ledger
from cellray.train.search.space import Range, Space
from cellray.train.search.study import StudyPlace, open_study, retry_interrupted, trial_table

KEY = "5eed" * 16
SPACE = Space({"dropout": Range(kind="uniform", low=0, high=0.5)})


def report(validation: int, value: float) -> dict[str, object]:
    metrics = [("train_loss", 2 * value), ("accuracy", value)]
    return {"value_0": value, "step": 10 * validation, "validation": validation, "metrics": metrics}


def test_trials_are_found_by_their_numbers(store: str, tmp_path: Path) -> None:
    """Trial 0 ends well, 1 is stopped at its first report, 2 is cut off and goes on as 3, which fails."""
    parent = start_run(store, "tests", "search", {}, {}, key=KEY)

    def start(name: str, folder: str, values: Mapping[str, object]) -> Tracker:
        return start_run(None, "", name, values, {}, key=f"{KEY}trial{folder}", parent=parent, retry=True)

    place = StudyPlace("s", f"sqlite:///{tmp_path}/study.db")
    study = open_study(place, ["accuracy"], "request")
    ledger = Ledger(study, SPACE, ("accuracy",), 9, start)
    for key in "012":
        ledger.started(key, study.ask(SPACE.distributions()))
    for key in "02":
        ledger.reported(key, report(1, 0.25))
    ledger.finished("1", report(1, 0.125))
    ledger.finished("0", report(2, 0.25) | {"ended": True, "error": ""})
    client = MlflowClient(store)
    assert states(client) == {"trial 0": "complete", "trial 1": "stopped early", "trial 2": "running"}
    ledger.close()
    assert states(client)["trial 2"] == "interrupted"
    assert {run.info.status for run in runs(client).values()} == {"RUNNING", "FINISHED", "KILLED"}

    study = open_study(place, ["accuracy"], "request")
    retry_interrupted(study)
    ledger = Ledger(study, SPACE, ("accuracy",), 9, start)
    ledger.started("3", study.ask(SPACE.distributions()))
    ledger.reported("3", report(2, 0.5))
    ledger.failed("3", "the loss became nan")
    found = runs(client)
    again = found["trial 3 (retry of 2)"]
    assert found.keys() == {"search", "trial 0", "trial 1", "trial 3 (retry of 2)"}
    assert (again.data.tags["cellray.trial_retry_of"], again.info.status) == ("2", "FAILED")
    assert history(client, again.info.run_id, "accuracy") == [(10, 0.25), (20, 0.5)]
    stopped = found["trial 1"]
    assert history(client, stopped.info.run_id, "accuracy") == [(10, 0.125)]
    assert stopped.data.metrics == {"train_loss": 0.25, "accuracy": 0.125, "best/accuracy": 0.125}

    table = trial_table(study, ["accuracy"], SPACE.decode).set_index("trial")
    recorded = {run.data.tags.get("cellray.trial_number"): run for run in found.values()}
    assert recorded.keys() == {None, "0", "1", "3"}
    assert table.loc[3, "retry_of"] == 2
    for number in (0, 1, 3):
        assert recorded[str(number)].data.tags["cellray.trial_state"] == table.loc[number, "state"]

    start_run(store, "tests", "another name", {}, {}, key=KEY)
    assert "search" in runs(client)  # only trials are renamed


def test_a_trial_killed_after_its_run_was_closed_is_recorded_once(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is closed, then the study is told: who dies in between repeats the trial and goes on with its run."""
    parent = start_run(store, "tests", "search", {}, {}, key=KEY)

    def start(name: str, folder: str, values: Mapping[str, object]) -> Tracker:
        return start_run(None, "", name, values, {}, key=f"{KEY}trial{folder}", parent=parent, retry=True)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    place = StudyPlace("s", f"sqlite:///{tmp_path}/study.db")
    study = open_study(place, ["accuracy"], "request")
    ledger = Ledger(study, SPACE, ("accuracy",), 9, start)
    ledger.started("0", study.ask(SPACE.distributions()))
    ledger.reported("0", report(1, 0.25))
    monkeypatch.setattr(study, "tell", die)
    with pytest.raises(KeyboardInterrupt):
        ledger.finished("0", report(1, 0.25) | {"ended": True, "error": ""})
    client = MlflowClient(store)
    assert runs(client)["trial 0"].info.status == "FINISHED"

    study = open_study(place, ["accuracy"], "request")
    retry_interrupted(study)
    ledger = Ledger(study, SPACE, ("accuracy",), 9, start)
    ledger.started("1", study.ask(SPACE.distributions()))
    ledger.reported("1", report(1, 0.25))
    ledger.finished("1", report(1, 0.25) | {"ended": True, "error": ""})
    found = runs(client)
    assert found.keys() == {"search", "trial 1 (retry of 0)"}
    again = found["trial 1 (retry of 0)"]
    assert again.info.status == "FINISHED"
    assert history(client, again.info.run_id, "accuracy") == [(10, 0.25)]
    assert list(trial_table(study, ["accuracy"], SPACE.decode)["state"]) == ["interrupted", "complete"]


def runs(client: MlflowClient) -> dict[str, Any]:
    found = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    return {run.info.run_name: run for run in found}


def states(client: MlflowClient) -> dict[str, str]:
    return {name: run.data.tags["cellray.trial_state"] for name, run in runs(client).items() if name != "search"}


def history(client: MlflowClient, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]
