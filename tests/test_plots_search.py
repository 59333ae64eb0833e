"""Pictures of a search are drawn from few and many trials, failed ones among them, without warnings."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellray import plots


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
