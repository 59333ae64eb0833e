"""The model registry: what goes in comes back, under names and aliases; everything else is one clear error."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pydantic import ValidationError

from cellray import storage
from cellray.errors import InputError
from cellray.model.checkpoint import ModelDirectory
from cellray.models import ModelReference, open_model
from cellray.tracking import NullTracker, start_run
from cellray.tracking.options import TrackingOptions, register_published
from cellray.tracking.register import register_model
from cellray.tracking.registry import find_version, resolve_model

Make = Callable[..., str]


def contents(folder: str) -> dict[str, str]:
    return {path.name: storage.sha256_file(str(path)) for path in Path(folder).iterdir()}


def test_what_goes_in_comes_back(store: str, make_model: Make, tmp_path: Path) -> None:
    directory = make_model("model")
    tracker = start_run(store, "tests", "run", {}, {})
    made = register_model(tracker, directory, "gene former", "champion", {"corpus_digest": "c0ffee"})
    assert (made.uri, made.digest) == ("models:/gene former/1", ModelDirectory.open(directory).digest)
    for uri in ("models:/gene former@champion", "models:/gene former/1", "models:/gene former/latest"):
        local = resolve_model(uri, store)
        assert contents(local) == contents(directory)
        assert Path(local).is_relative_to(tmp_path / "cache")
        assert find_version(uri, store) == made
        model, reference = open_model(uri, store)
        assert reference == ModelReference(made.uri, made.digest, store)
        assert reference.open().digest == model.digest == made.digest
    version = MlflowClient(store).get_model_version("gene former", "1")
    assert version.tags["model_digest"] == made.digest
    assert version.tags["corpus_digest"] == "c0ffee"
    for passed in (directory, "s3://bucket/model", "relative/model"):
        assert resolve_model(passed, "http://never.asked") == passed
    assert open_model(directory)[1] == ModelReference(directory, made.digest)


def test_equal_models_share_a_version_and_the_alias_moves(store: str, make_model: Make) -> None:
    first, again, other = make_model("a", run="run 1"), make_model("b", run="run 2"), make_model("c", seed=1)
    relabelled = make_model("d", labels=["x"])
    tracker = start_run(store, "tests", "run", {}, {})

    def version(directory: str, alias: str | None = "best") -> str:
        return register_model(tracker, directory, "m", alias).version

    assert [version(first), version(first), version(again)] == ["1", "1", "1"]
    assert version(other) == "2"
    assert find_version("models:/m@best", store).version == "2"
    assert version(first) == "1"
    assert find_version("models:/m@best", store).version == "1"
    assert version(relabelled, None) == "3"  # equal weights, another meaning
    assert find_version("models:/m@best", store).version == "1"
    assert len(MlflowClient(store).search_model_versions("name='m'")) == 3
    assert register_model(tracker, first, "another name").version == "1"


def test_unknown_names_list_those_there_are(store: str, make_model: Make) -> None:
    directory = make_model("model")
    tracker = start_run(store, "tests", "run", {}, {})
    register_model(tracker, directory, "atlas", "best")
    for uri, message in {
        "models:/atlsa@best": "the name must be registered with the tracking server; found the names 'atlas'",
        "models:/atlas@beste": "must have this alias or version; found aliases 'best', versions '1'",
        "models:/atlas/2": "found aliases 'best', versions '1'",
        "models:/atlas/production": "found aliases 'best', versions '1'",
        "models:/atlas": "found aliases 'best', versions '1'",
        "models:/": "a registered model is models:/NAME@ALIAS or models:/NAME/VERSION",
        "models:/a' or 1/2": "the name must be registered",
    }.items():
        with pytest.raises(InputError, match=message):
            open_model(uri, store)
    with pytest.raises(InputError, match="a model is registered from a recorded run"):
        register_model(NullTracker(), directory, "atlas")
    with pytest.raises(InputError, match=r"no 'config.json', 'model.safetensors'"):
        register_model(tracker, "nowhere", "atlas")


def test_a_damaged_copy_is_fetched_again_and_damaged_artifacts_are_refused(
    store: str, make_model: Make, tmp_path: Path
) -> None:
    directory = make_model("model")
    register_model(start_run(store, "tests", "run", {}, {}), directory, "m")
    local = Path(resolve_model("models:/m/1", store))
    (local / "vocabulary.json").unlink()
    (local / "model.safetensors").write_bytes(b"half")
    assert resolve_model("models:/m/1", store) == str(local)
    assert contents(str(local)) == contents(directory)
    (stored,) = (tmp_path / "mlruns").rglob("model.safetensors")
    stored.write_bytes(b"other")
    assert resolve_model("models:/m/1", store) == str(local)  # the copy is sound
    (local / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"must be those that were registered; found other content in model.safetens"):
        resolve_model("models:/m/1", store)
    stored.unlink()
    with pytest.raises(InputError, match="models:/m/1: "):
        resolve_model("models:/m/1", store)
    assert list((tmp_path / "cache").rglob("*.tmp")) == []


def test_several_processes_ask_at_once(store: str, make_model: Make) -> None:
    directory = make_model("model")
    register_model(start_run(store, "tests", "run", {}, {}), directory, "m")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(resolve_model("models:/m/1", store))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert contents(found[0]) == contents(directory)


def test_a_model_that_others_registered(store: str, make_model: Make) -> None:
    directory = make_model("model")
    client = MlflowClient(store)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", f"file://{directory}")
    model, reference = open_model("models:/theirs/1", store)
    assert reference == ModelReference("models:/theirs/1", ModelDirectory.open(directory).digest, store)
    assert model.digest == reference.digest


def test_secrets_of_a_model_stay_out_of_the_registry(store: str, make_model: Make, tmp_path: Path) -> None:
    directory = make_model("model", corpus="http://u:hunter2@h/corpus")
    register_model(start_run(store, "tests", "run", {}, {}), directory, "m", tags={"corpus": "http://u:hunter2@h"})
    provenance = open_model("models:/m/1", store)[0].provenance
    assert provenance["corpus"] == "http://***@h/corpus"
    assert b"hunter2" not in (tmp_path / "mlflow.db").read_bytes()
    assert not [path for path in (tmp_path / "mlruns").rglob("*.json") if "hunter2" in path.read_text()]


def test_registering_is_done_once_however_often_the_job_runs(store: str, make_model: Make) -> None:
    directory, key = make_model("model"), "ab" * 32
    options = TrackingOptions(tracking_uri=store, experiment="tests", register_as="m@best")
    assert register_published(options.model_copy(update={"register_as": None}), directory) is None
    tracker = start_run(store, "tests", "pretrain", {}, {}, key=key)  # killed between publication and registration
    made = register_published(options, directory, key=key)
    assert made is not None
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "FINISHED"
    assert tracker.where().startswith(f"MLflow run {run.info.run_id}")
    assert register_published(options, directory, key=key) == made
    other = start_run(store, "tests", "pretrain", {}, {})
    assert register_published(options, directory, other) == made
    assert len(client.search_model_versions("name='m'")) == 1
    for name in ("a/b", "a@b@c", "models:/m", "m@", "m@latest", "m@v1", "m@a b"):
        with pytest.raises(ValidationError, match="give NAME or NAME@ALIAS"):
            TrackingOptions(register_as=name)
    with pytest.raises(ValidationError, match="--register-as needs a tracking server"):
        TrackingOptions(register_as="m", tracking_uri="none")


def test_a_real_server_keeps_runs_and_models(
    server: str, make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELLRAY_CACHE", str(tmp_path / "cache"))
    directory = make_model("model")
    tracker = start_run(server, "over http", "run", {"a": 1}, {"t": "x"}, key="77")
    tracker.log_metrics({"loss": 1.0}, 1)
    again = start_run(server, "over http", "run", {"a": 1}, {"t": "x"}, key="77")
    again.log_metrics({"loss": 1.0}, 1)
    again.log_metrics({"loss": 0.5}, 2)
    again.log_text("hello", "notes/a.txt")
    made = register_model(again, directory, "m", "best")
    assert register_model(again, directory, "m", "best") == made
    again.finish("FINISHED")
    assert tracker.where() == again.where()
    assert again.where().endswith(f" at {server}")
    client = MlflowClient(server)
    (run,) = client.search_runs([client.get_experiment_by_name("over http").experiment_id])
    assert (run.info.status, run.data.params, again.lost) == ("FINISHED", {"a": "1"}, 0)
    assert [p.step for p in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    model, reference = open_model("models:/m@best", server)
    assert contents(model.uri) == contents(directory)
    assert reference.uri == "models:/m/1"
    with pytest.raises(InputError, match="found aliases 'best', versions '1'"):
        open_model("models:/m@worst", server)
    with pytest.raises(InputError, match=r"the names .*'m'"):
        open_model("models:/n@worst", server)
    assert json.loads(Path(model.uri, "provenance.json").read_text())["corpus_digest"] == "c0ffee"
