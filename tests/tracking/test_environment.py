"""What a run says of its code, environment and origin."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

import cellray
from cellray.infer.embed import EmbedConfig
from cellray.tracking import start_run
from cellray.tracking.environment import code_version, device_names, environment_text
from cellray.tracking.patient import PatientTracker
from cellray.tracking.record import Lineage, flatten, record_origin


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.check_output(["git", *who, *arguments], cwd=folder, text=True).strip()


def test_the_commit_is_named_where_git_keeps_the_package(tmp_path: Path) -> None:
    package = tmp_path / "platform" / "cellray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    only_version = {"code.version": cellray.__version__}
    assert code_version(package) == only_version  # no checkout
    git(tmp_path, "init", "-q")
    assert code_version(package) == only_version  # installed below another project's checkout
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    clean = only_version | {"code.commit": commit, "code.dirty": "false", "mlflow.source.git.commit": commit}
    assert code_version(package) == clean
    (tmp_path / "notes.txt").write_text("beside the package")
    assert code_version(package) == clean
    (package / "__init__.py").write_text("x = 1")
    assert code_version(package) == clean | {"code.dirty": "true"}
    git(tmp_path, "checkout", "-q", ".")
    (package / "new.py").write_text("")
    assert code_version(package) == clean | {"code.dirty": "true"}


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert code_version() == {"code.version": cellray.__version__}
    monkeypatch.undo()
    assert code_version(Path("/nowhere")) == {"code.version": cellray.__version__}


def test_the_environment_lists_every_package() -> None:
    lines = environment_text().splitlines()
    assert {f"{name}=={version(name)}" for name in ("torch", "ray", "numpy", "cellray")} <= set(lines)
    assert lines[1:] == [f"# {name}" for name in device_names()] + sorted(
        (line for line in lines if not line.startswith("#")), key=lambda line: line.split("==")[0].lower()
    )


def test_nested_options_get_dotted_names() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}, "f": None}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [1, 2], "e": {}, "f": None}


def test_a_run_records_its_origin(store: str, tmp_path: Path) -> None:
    tracker = start_run(store, "tests", "run", {}, {})
    assert isinstance(tracker, PatientTracker)
    config = EmbedConfig(corpus="s3://bucket/corpus", model="models:/m@best", output="out", actors=(1, 3))
    lineage = Lineage("s3://bucket/corpus", "c" * 64, "d" * 64, "models:/m/3", "e" * 64)
    record_origin(tracker, config, lineage)
    run = MlflowClient(store).get_run(tracker.run.run_id)
    tags = run.data.tags
    assert [tags[key] for key in ("corpus", "corpus_digest", "vocabulary_digest", "parent_model", "parent_digest")] == [
        "s3://bucket/corpus",
        "c" * 64,
        "d" * 64,
        "models:/m/3",
        "e" * 64,
    ]
    assert tags["version.torch"] == version("torch")
    assert tags["code.version"] == cellray.__version__
    assert "cores" in tags["devices"]
    assert run.data.params["actors"] == "[1, 3]"
    assert set(run.data.params) == set(EmbedConfig.model_fields)
    kept = Path(download_artifacts(run_id=tracker.run.run_id, tracking_uri=store, dst_path=str(tmp_path / "kept")))
    assert EmbedConfig.model_validate_json((kept / "config.json").read_text()) == config
    assert f"torch=={version('torch')}" in (kept / "environment.txt").read_text()
