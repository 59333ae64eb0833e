"""Every task of the method has a recipe that works with the job it names, and a line in the table; links lead on."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from cellray.config import parse_config
from cellray.data.corpora.corpus import Corpus
from cellray.train.tasks.cells import CellTaskConfig
from cellray.train.tasks.genes import GeneTaskConfig
from cellray.train.tasks.table import read_task
from tests.conftest import REPOSITORY
from tests.docs.atlas import set_up
from tests.docs.here import job_of
from tests.docs.pages import DOCS

RECIPES = REPOSITORY / "jobs" / "configs" / "tasks"
TUNED = """dosage_sensitivity chromatin_dynamics regulatory_range network_centrality factor_targets cell_type_annotation
batch_integration differentiation_states disease_classification disease_drivers treatment"""
ZERO_SHOT = """batch_integration gene_context_specificity reprogramming differentiation cell_state_impact factor_targets
cooperativity"""
NAMES = sorted([f"finetuned_{name}" for name in TUNED.split()] + [f"zeroshot_{name}" for name in ZERO_SHOT.split()])
_ROW = re.compile(r"^\| ([^|]+) \| \[`(\w+)\.toml`\]\(([^)]+)\) \|(.+)\|$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
"""Pages that come with another part of the project; a link to them is allowed before they are there."""


def commands_of(recipe: str) -> list[list[str]]:
    """Return the commands at the head of a recipe, from the job's name on."""
    head = re.sub(r"\\\n#\s*", "", (RECIPES / f"{recipe}.toml").read_text())
    lines = [line.removeprefix("# python -m ") for line in head.splitlines() if line.startswith("# python -m ")]
    return [shlex.split(line) for line in lines]


def test_every_task_has_a_recipe_and_a_row() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.toml")) == NAMES
    rows = _ROW.findall((DOCS / "tasks" / "README.md").read_text())
    assert sorted(recipe for _, recipe, _, _ in rows) == NAMES
    for _, recipe, link, rest in rows:
        assert (DOCS / "tasks" / link).resolve() == RECIPES / f"{recipe}.toml"
        cells = [cell.strip() for cell in rest.split("|")]
        assert len(cells) == 4
        assert all(cells)


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_works_with_the_jobs_it_names(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    commands, own = commands_of(recipe), f"jobs/configs/tasks/{recipe}.toml"
    for job, *words in commands:
        parse_config(job_of(job.removeprefix("jobs."))[0], words, f"python -m {job}")
    users = [words for words in commands if own in words]
    assert len(users) == 1
    assert {"--config", "--task"} & set(users[0])
    if "--task" in users[0]:
        read_task(own)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    set_up(folder)
    return folder


@pytest.mark.parametrize("recipe", [name for name in NAMES if "task = " in (RECIPES / f"{name}.toml").read_text()])
def test_a_task_opens_on_a_corpus_with_its_columns(recipe: str, made: Path) -> None:
    """Labels are found, classes are as the recipe says, and each fold has something to learn from and to test on."""
    copy = made / f"{recipe}.toml"
    copy.write_text((RECIPES / f"{recipe}.toml").read_text())
    config = read_task(str(copy))
    if isinstance(config, GeneTaskConfig):
        assert config.genes == str(made / f"{recipe.removeprefix('finetuned_')}.csv")
        lists = list(csv.reader((made / "dosage_sensitivity.csv").read_text().splitlines()))
        Path(config.genes).write_text("\n".join(",".join(row) for row in lists))
    task = config.open(Corpus.open(str(made / "corpus")))
    assert len(task.folds) == config.split.folds
    assert all(len(task.folds.rows(fold, part)) for fold in range(len(task.folds)) for part in (0, 2))
    (spec,) = task.specs(0, 0)
    if isinstance(config, CellTaskConfig) and (asked := config.heads[0].classes):
        assert spec.classes == asked


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_the_index_names_every_page() -> None:
    named = {(DOCS / link).resolve() for link in _LINK.findall((DOCS / "README.md").read_text()) if "://" not in link}
    assert {path for path in DOCS.glob("*.md") if path.name != "README.md"} <= named
    pages = {(DOCS / "tasks" / link).resolve() for link in _LINK.findall((DOCS / "tasks" / "README.md").read_text())}
    assert {path for path in (DOCS / "tasks").glob("*.md") if path.name != "README.md"} <= pages
