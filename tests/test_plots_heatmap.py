"""The heatmap of embeddings: its order by hand, its pixels where they must be."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellray.plots.heatmap import heatmap_order, heatmap_png

# cells 0, 2, 5 of b lie at 0, 9, 1; cells 1, 4 of a anywhere; cell 3 has no label. Dimensions 0 and 2 go together.
X = np.array([[0, 0, 0], [4, 7, 4], [9, 0, 9], [3, 3, 3], [5, 8, 5], [1, 0, 1]], np.float32)
LABELS = pd.Series(["b", "a", "b", None, "a", "b"], name="kind")


def test_cells_come_by_label_and_alike_ones_are_neighbours() -> None:
    cells, dimensions = heatmap_order(X, LABELS)
    assert sorted(cells[:2]) == [1, 4]
    assert sorted(cells[2:5]) == [0, 2, 5]
    assert cells[3] != 2  # cell 2 is the odd one, so it stands at an end
    assert cells[5] == 3
    assert list(dimensions) in ([1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1])


def test_numbers_are_ordered_by_value() -> None:
    cells, _ = heatmap_order(X, pd.Series([3, 1, np.nan, 2, 9, 1]))
    assert cells.tolist() == [1, 5, 3, 0, 4, 2]


@pytest.mark.parametrize("labels", [LABELS, pd.Series([True, False] * 3), pd.Series(range(6)), pd.Series([np.nan] * 6)])
def test_the_picture_shows_what_differs(tmp_path: Path, labels: pd.Series) -> None:
    from matplotlib.image import imread

    heatmap_png(X, labels, tmp_path / "a.png", "cells")
    pixels = imread(tmp_path / "a.png")[..., :3]
    heatmap_png(np.zeros_like(X), labels, tmp_path / "b.png", "cells")
    same = imread(tmp_path / "b.png")[..., :3]

    def reds(image: np.ndarray) -> float:
        return float(((image[..., 0] > 0.5) & (image[..., 2] < 0.35) & (image[..., 1] < 0.35)).mean())

    assert reds(pixels) > reds(same) + 0.02
