"""Pages of commands: what a page says is needed, and its steps in order. Knows Markdown, not what commands do.

A block marked `bash` holds commands, one a line; a line that ends in a backslash, and an open quote, go on. A block
marked `LANGUAGE title=NAME` is a file of that name. The table whose head is `you need` names the inputs.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in (DOCS / "tasks").glob("*.md") if path.name != "README.md")
PYTHON = ".venv/bin/python"

_BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NEEDED = re.compile(r"^\| you need \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", re.MULTILINE)
_INLINE = re.compile(rf"`({re.escape(PYTHON)} -m jobs\.[^`]+)`")


@dataclass(frozen=True)
class File:
    """A file that the page shows in full."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command as it is typed, and its words."""

    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def job(self) -> str | None:
        """Return the name of the job that is run, if one is."""
        words = self.words
        is_job = words[:2] == [PYTHON, "-m"] and words[2].startswith("jobs.")
        return words[2].removeprefix("jobs.") if is_job else None


Step = File | Command


def steps_of(page: Path) -> list[Step]:
    """Return files and commands in the order of the page."""
    steps: list[Step] = []
    for language, title, text in _BLOCK.findall(page.read_text()):
        if title:
            steps.append(File(title, text))
        elif language == "bash":
            steps.extend(map(Command, _commands(text)))
    return steps


def _commands(text: str) -> list[str]:
    """Return the commands of a block: a line that cannot be split into words goes on in the next."""
    found, open_ = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        open_ = f"{open_}\n{line}" if open_ else line
        try:
            words = shlex.split(open_, comments=True)
        except ValueError:  # a quote is open
            continue
        if words:
            found.append(open_)
        open_ = ""
    assert not open_, f"a quote is left open: {open_}"
    return found


def inputs_of(page: Path) -> set[str]:
    """Return the names in the first column of the table of what is needed."""
    (rows,) = _NEEDED.findall(page.read_text())
    return {name for row in rows.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def inline_commands(page: Path) -> list[Command]:
    """Return the commands that stand in running text."""
    return [Command(text) for text in _INLINE.findall(page.read_text())]
