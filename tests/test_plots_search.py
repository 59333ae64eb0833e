"""Pictures of a search are drawn from few and many trials, failed ones among them, without warnings."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cellray import plots
from cellray.plots import search
from cellray.plots.canvas import canvas


@pytest.mark.parametrize("trials", [1, 2, 200])
def test_pictures_of_a_search(trials: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"trial": range(trials), "f$1": rng.random(trials), "ece": rng.random(trials)})
    table["state"] = rng.choice(["complete", "stopped early", "failed"], trials) if trials > 1 else "failed"
    table.loc[table["state"] == "failed", ["f$1", "ece"]] = np.nan
    plots.history_png(table, "f$1", tmp_path / "history.png", "Cell types", lower_is_better=False)
    plots.history_png(table, "ece", tmp_path / "history_ece.png", "Cell types", lower_is_better=True)
    both, better = ("f$1", "ece"), (False, True)
    plots.pareto_png(table, both, [0], tmp_path / "pareto.png", "Cell types", lower_is_better=better)
    shares = {f"option_{i}": 1 / trials for i in range(min(trials, 20))}
    plots.importance_png(shares, tmp_path / "importance.png", "Cell types", "f$1", trials=trials)
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 4


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Axes of the pictures that are drawn."""
    found: list[Any] = []

    @contextmanager
    def seen(path: Path, width: float, height: float) -> Iterator[Any]:
        with canvas(path, width, height) as figure:
            yield figure
            found.extend(figure.axes)

    monkeypatch.setattr(search, "canvas", seen)
    return found


def drawn(axes: Any, label: str) -> list[tuple[float, float]]:  # noqa: ANN401
    """Return the points of the dots that bear a label."""
    (dots,) = [each for each in axes.collections if each.get_label() == label]
    return [(float(x), float(y)) for x, y in dots.get_offsets()]


def at_edge(axes: Any, marker: str) -> list[tuple[float, float]]:  # noqa: ANN401
    """Return the number of each trial that is marked at the edge, and the height of its mark as a share."""
    lines = [each for each in axes.lines if each.get_marker() == marker and len(each.get_xdata())]
    return [(float(x), float(y)) for each in lines for x, y in zip(*each.get_data(), strict=True)]


def test_every_trial_has_its_place(tmp_path: Path, axes: list[Any]) -> None:
    """Three come to their end, two are stopped, one before anything is known of it; two are lost, the last one too."""
    table = pd.DataFrame({"trial": range(8), "accuracy": [0.34, np.nan, 0.35, 0.36, 0.1, 0.06, np.nan, np.nan]})
    stopped = "stopped early"
    table["state"] = ["complete", "interrupted", "complete", "complete", stopped, stopped, stopped, "failed"]
    plots.history_png(table, "accuracy", tmp_path / "history.png", "Cell types", lower_is_better=False)
    (shown,) = axes
    low, high = shown.get_xlim()
    assert low < 0
    assert high > 7
    low, high = shown.get_ylim()
    assert low < 0.06
    assert high > 0.36
    assert drawn(shown, "complete") == [(0, 0.34), (2, 0.35), (3, 0.36)]
    assert drawn(shown, stopped) == [(4, 0.1), (5, 0.06)]
    assert at_edge(shown, "v") == [(6, 0.03)]
    assert at_edge(shown, "x") == [(1, 0.03), (7, 0.03)]
    (line,) = [each for each in shown.lines if each.get_label() == "best so far"]
    assert list(line.get_xdata()) == [0, 2, 3, 7]
    assert list(line.get_ydata()) == [0.34, 0.35, 0.36, 0.36]


def test_what_would_stretch_the_axis_is_marked_at_its_edge(tmp_path: Path, axes: list[Any]) -> None:
    table = pd.DataFrame(
        {"trial": range(9), "loss": [1.0, 1.1, 90.0, 1.2, 1.3, 1.4, 1.5, 1.6, 50.0], "state": "complete"}
    )
    table.loc[8, "state"] = "stopped early"
    plots.history_png(table, "loss", tmp_path / "history.png", "Cell types", lower_is_better=True)
    (shown,) = axes
    assert shown.get_ylim()[1] < 2
    assert drawn(shown, "complete") == [(0, 1.0), (1, 1.1), *((number, 0.9 + number / 10) for number in range(3, 8))]
    assert at_edge(shown, "o") == [(2, 0.97)]
    assert at_edge(shown, "v") == [(8, 0.97)]
    assert "above the scale: 2" in [each.get_label() for each in shown.lines]
