"""What a recorded run can do, and the run that records nothing. Knows no MLflow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended; KILLED: a person interrupted it, and the same command goes on with it."""


class Tracker(Protocol):
    """A run that is being recorded. Nothing here raises because of a tracking server: what it lost, it counts."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; a number that this step has already is not recorded again."""
        ...

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record what the run was asked to do; a parameter that is recorded already keeps its value."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record what the run was made from or what it made; the last value of a tag counts."""
        ...

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a small file with the run, in a folder of its artifacts."""
        ...

    def log_text(self, text: str, name: str) -> None:
        """Keep text under a name such as `reports/summary.txt`."""
        ...

    def log_table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Keep columns of one length as CSV under a name such as `tables/classes.csv`."""
        ...

    def log_figure(self, figure: Any, name: str) -> None:  # noqa: ANN401  # a matplotlib Figure, imported late
        """Keep a picture under a name such as `figures/confusion.png`; its ending decides the format."""
        ...

    def finish(self, status: Status) -> None:
        """Close the run, and warn of what was lost."""
        ...

    def where(self) -> str:
        """Tell a person where to look."""
        ...

    @property
    def lost(self) -> int:
        """Records (points, tags, parameters, artifacts) that could not be written, those still waiting included."""
        ...


class NullTracker:
    """Records nothing."""

    lost = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def log_text(self, text: str, name: str) -> None:
        """Do nothing."""

    def log_table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Do nothing."""

    def log_figure(self, figure: Any, name: str) -> None:  # noqa: ANN401
        """Do nothing."""

    def finish(self, status: Status) -> None:
        """Do nothing."""

    def where(self) -> str:
        """Say that nothing is recorded."""
        return "not recorded"
