"""The table of official options names options of ours that there are."""

import re

import pytest

from cellray.train.tasks.cells import CellTaskConfig
from tests.docs.here import job_of
from tests.docs.pages import DOCS

_JOB = re.compile(r"jobs\.(\w+)")
SECTIONS = re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", (DOCS / "options.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title.split(":", maxsplit=1)[0] for title, _ in SECTIONS])
def test_options_of_ours_are_options_of_the_job(title: str, text: str) -> None:
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and " official " not in line]
    assert len(rows) >= 6
    for row in rows:
        jobs = _JOB.findall(title) + _JOB.findall(row[1])
        fields = {name for job in jobs for name in job_of(job)[0].model_fields}
        wanted = {option.replace("-", "_") for option in re.findall(r"--([a-z-]+)", row[1] + row[2])}
        assert wanted <= fields, row


def test_the_word_for_the_share_of_cells_is_of_the_split() -> None:
    split = CellTaskConfig.model_fields["split"].default
    named = {"test_fraction", "validation_fraction", "kind", "group", "column", "folds"}
    assert named <= set(type(split).model_fields)
    assert all(f"`{name}`" in (DOCS / "options.md").read_text() or name == "folds" for name in named)
