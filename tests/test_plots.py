"""Pictures of training: drawn for 2 and for 40 classes, without warnings, from the numbers they are given."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.image as mpl_image
import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from cellray import plots
from cellray.plots.canvas import few_digits, short
from cellray.plots.curves import _wilson

Draw = Callable[[np.ndarray, np.ndarray, list[str], Path], None]


def draw_confusion(p_nc: np.ndarray, code_n: np.ndarray, classes: list[str], path: Path) -> None:
    confusion_cc = np.zeros((len(classes),) * 2, np.int64)
    np.add.at(confusion_cc, (code_n, p_nc.argmax(axis=1)), 1)
    plots.confusion_png(confusion_cc, classes, path, "Cell types")


def draw_support(p_nc: np.ndarray, code_n: np.ndarray, classes: list[str], path: Path) -> None:
    counts = np.bincount(code_n, minlength=len(classes))
    plots.support_png({"train": counts, "validation": counts * 0, "test": counts // 4}, classes, path, "Cell types")


PICTURES: list[Draw] = [
    draw_confusion,
    draw_support,
    lambda p, code, classes, path: plots.roc_png(p, code, classes, path, "Cell types"),
    lambda p, code, classes, path: plots.precision_recall_png(p, code, classes, path, "Cell types"),
]


@pytest.mark.parametrize("draw", PICTURES, ids=["confusion", "support", "roc", "precision_recall"])
@pytest.mark.parametrize("classes", [2, 40])
def test_pictures_of_classes(draw: Draw, classes: int, tmp_path: Path) -> None:
    """The last class has no cells, names may look like formulas, and the picture grows with the classes."""
    rng = np.random.default_rng(0)
    code_n = rng.integers(0, max(2, classes - 1), 500)
    p_nc = rng.dirichlet(np.ones(classes), 500)
    names = [f"T cell $_{i}$ {'of a very long name ' * (i % 3)}" for i in range(classes)]
    draw(p_nc, code_n, names, tmp_path / "picture.png")
    height, width, _ = mpl_image.imread(tmp_path / "picture.png").shape
    assert 200 < height < 4000
    assert 400 < width < 4000


def test_a_picture_without_any_curve(tmp_path: Path) -> None:
    """All cells of one class: nothing is defined, but the picture says so."""
    for draw in PICTURES:
        draw(np.full((5, 2), 0.5), np.zeros(5, int), ["a", "b"], tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 1000


def test_calibration_and_training_are_drawn(tmp_path: Path) -> None:
    nan = np.nan
    share, sure = np.array([nan, 0.5, 1.0]), np.array([nan, 0.6, 0.9])
    plots.calibration_png(sure, share, np.array([0, 2, 900]), tmp_path / "a.png", "Cell types", error=0.1)
    losses = {"training": ([1, 2, 3], [2.0, 1.0, 0.5]), "validation": ([3], [0.7])}
    plots.training_png(losses, {"accuracy": ([3], [0.9]), "r2": ([3], [nan])}, tmp_path / "b.png", "x", best_step=3)
    plots.training_png({"training": ([], [])}, {}, tmp_path / "c.png", "Nothing yet")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png", "c.png"))


def test_intervals_are_those_of_statsmodels() -> None:
    right, n = np.array([0, 3, 7, 90, 5]), np.array([4, 3, 10, 100, 5])
    low, high = proportion_confint(right, n, method="wilson")
    np.testing.assert_allclose(_wilson(right / n, n), np.stack([right / n - low, high - right / n]), atol=1e-4)


def test_short_forms() -> None:
    assert [few_digits(n) for n in (0, 950, 999, 1200, 9949, 34_400, 999_499, 5_600_000)] == [
        "0",
        "950",
        "999",
        "1.2k",
        "9.9k",
        "34k",
        "999k",
        "5.6M",
    ]
    assert short("a" * 20 + "b" * 20, 9) == "aaaa…bbbb"
    assert short("cost $5") == r"cost \$5"


@pytest.mark.parametrize("cells", [0, 1, 50, 5000])
def test_numbers_are_drawn(cells: int, tmp_path: Path) -> None:
    """Few cells as points, many as a density; a missing number is left out."""
    rng = np.random.default_rng(0)
    truth = rng.normal(1000, 300, cells)
    truth[:1] = np.nan if cells > 1 else 5.0
    plots.regression_png(
        np.nan_to_num(truth) + rng.normal(0, 100, cells), truth, tmp_path / "picture.png", "n_genes", note="r2 0.9"
    )
    height, width, _ = mpl_image.imread(tmp_path / "picture.png").shape
    assert 400 < height < 1200
    assert 400 < width < 1200


def test_pictures_of_screens_without_anything_to_show(tmp_path: Path) -> None:
    """One perturbation, none significant, none tested, equal effects; and twenty thousand."""
    rng = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    for n in (1, 2, 30, 20_000):
        names = [f"GENE-{i}" for i in range(n)]
        effects = np.zeros(n) if n == 2 else rng.normal(0, 0.01, n)
        rates = np.full(n, np.nan) if n == 1 else rng.uniform(0, 1, n) ** 4
        rates[n // 2 : n // 2 + 2] = [0] * len(rates[n // 2 : n // 2 + 2])
        intervals = np.stack([effects - 0.01, effects + 0.01], axis=1)
        intervals[::2] = np.nan
        plots.ranked_shifts_png(effects, names, rates < 0.05, path, "x", label="shift", interval_g2=intervals)
        plots.volcano_png(effects, rates, names, path, "x", label="shift")
        plots.volcano_png(effects, np.full(n, np.nan), names, path, "x", label="shift")
        plots.pairs_png(effects, effects + (rates < 0.01), names, rates < 0.01, path, "x", label="shift")
        plots.pairs_png(effects, effects, names, np.zeros(n, bool), path, "x", label="shift", interval_p2=intervals)
        height, width, _ = mpl_image.imread(path).shape
        assert 200 < height < 3000
        assert 400 < width < 3000
    for similarity_pa in (np.ones((1, 1)), np.full((1, 3), np.nan), rng.uniform(0.5, 1, (30, 40))):
        rows, columns = ([f"g{i}" for i in range(n)] for n in similarity_pa.shape)
        plots.gene_effects_png(similarity_pa, rows, columns, path, "x")
        assert path.stat().st_size > 1000
