"""What the pictures of training share: a figure that is written to a file, colours that everyone can tell apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's, without yellow, which is too light for lines."""
DASHES = ("-", "--", "-.", ":")
GREY = "#b0b0b0"
_LONGEST_NAME = 32
_STYLE: Any = {
    "backend": "agg",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "legend.frameon": False,
    "legend.fontsize": "small",
}


@contextmanager
def canvas(path: Path, width: float, height: float, *, dpi: int = 150) -> Iterator[Any]:
    """Yield a matplotlib figure of a size in inches, and write it as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        yield figure
        figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.12)


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Cut a name in the middle, where it is too long to be drawn; nothing in it is read as a formula."""
    if len(name) > longest:
        half = (longest - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    return name.replace("$", r"\$")


def few_digits(n: float) -> str:
    """Return a count in at most four characters: 950, 1.2k, 34k, 5.6M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= 0.9995 * size:
            return f"{n / size:.1f}{letter}" if n < 9.95 * size else f"{n / size:.0f}{letter}"
    return f"{n:.0f}"
