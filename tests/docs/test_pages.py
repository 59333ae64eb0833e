"""The pages of commands: each is run from its first to its last command, on tiny data."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cellray.train import finetune, pretrain
from tests.conftest import REPOSITORY
from tests.docs.atlas import place_for, set_up
from tests.docs.here import fit_here, follow, parsed
from tests.docs.pages import DOCS, PAGES, Command, File, inline_commands, inputs_of, steps_of
from tests.ports import free_port

WITH_RAY = {"tokenize", "annotate", "integrate", "classify_disease", "gene_classes"}
"""Pages of which a command needs Ray even for tiny data."""
NAMES = [page.stem for page in PAGES]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with everything that pages name as needed."""
    folder = tmp_path_factory.mktemp("atlas")
    set_up(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the current one and has the project's `jobs` in it, as a checkout has."""
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (finetune, pretrain):
        monkeypatch.setattr(module, "fit", fit_here)
        monkeypatch.setattr(module, "check_resources", lambda config: None)


def page_of(name: str) -> Path:
    return DOCS / "tasks" / f"{name}.md"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_understood_and_every_file_comes_from_somewhere(name: str, place: Path) -> None:
    page = page_of(name)
    steps = steps_of(page)
    assert sum(isinstance(step, Command) for step in steps) >= 2
    follow(steps, inputs_of(page), only_parse=True)
    for command in inline_commands(page):
        parsed(command)


def test_what_is_no_command_or_comes_from_nowhere_is_found(place: Path) -> None:
    good = Command(".venv/bin/python -m jobs.embed_cells --corpus corpus --model model --output e")
    follow([good], {"corpus", "model"}, only_parse=True)
    with pytest.raises(AssertionError, match="model comes from nowhere"):
        follow([good], {"corpus"}, only_parse=True)
    with pytest.raises(Exception, match="did you mean --layer"):
        follow([Command(f"{good.text} --layre 0")], {"corpus", "model"}, only_parse=True)


@pytest.mark.usefixtures("trained_here")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITH_RAY])
def test_a_page_from_first_to_last(name: str, place: Path, made: Path) -> None:
    page = page_of(name)
    place_for(inputs_of(page), made, place)
    follow(steps_of(page), inputs_of(page), only_parse=False)


@pytest.mark.usefixtures("trained_here", "ray_session")
@pytest.mark.parametrize("name", sorted(WITH_RAY))
def test_a_page_that_needs_ray_from_first_to_last(name: str, place: Path, made: Path) -> None:
    test_a_page_from_first_to_last(name, place, made)


@pytest.fixture
def shell(place: Path, made: Path) -> dict[str, str]:
    """Return the environment in which commands are typed: a checkout with its `.venv`."""
    (place / ".venv").symlink_to(Path(sys.prefix))
    (place / "serving").symlink_to(REPOSITORY / "serving")
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return own | {"PYTHONPATH": str(REPOSITORY / "platform"), "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db"}


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_as_it_is_typed(name: str, place: Path, made: Path, shell: dict[str, str]) -> None:
    """Every command as it stands, in a shell, each with a Ray of its own."""
    page, port = page_of(name), str(free_port())
    place_for(inputs_of(page), made, place)
    server = None
    for step in steps_of(page):
        if isinstance(step, File):
            Path(step.name).write_text(step.text.replace("8000", port))
        elif " -m serving.run " in step.text:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {step.text}"], env=shell, stdout=subprocess.PIPE, start_new_session=True
            )
            assert server.stdout is not None
            assert f":{port} serves default" in server.stdout.readline().decode()
        else:
            done = subprocess.run(
                ["bash", "-c", step.text.replace("8000", port)], env=shell, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{step.text}\n{done.stderr[-3000:]}"
            assert done.stdout or step.words[0] == "cp"
    if server is not None:
        os.killpg(server.pid, signal.SIGINT)
        server.communicate(timeout=120)
        assert server.returncode == 0
