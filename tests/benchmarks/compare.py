"""Times two ways of doing the same in turns, so that a noisy machine hits both."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Median seconds of each way, the median of the pairwise ratios baseline / ours, the lowest and highest of them."""

    ours: float
    baseline: float
    ratio: float
    lowest: float
    highest: float


def in_turns(ours: Callable[[], object], baseline: Callable[[], object], rounds: int) -> Timing:
    """Run both once to warm up, then `rounds` times in turns."""
    ours()
    baseline()
    pairs = [(_seconds(ours), _seconds(baseline)) for _ in range(rounds)]
    return Timing(
        ours=statistics.median(a for a, _ in pairs),
        baseline=statistics.median(b for _, b in pairs),
        ratio=statistics.median(b / a for a, b in pairs),
        lowest=min(b / a for a, b in pairs),
        highest=max(b / a for a, b in pairs),
    )


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def report(name: str, cells: int, timing: Timing, target: float) -> None:
    """Print one line: cells/s of both ways, their ratio and the ratio aimed at."""
    print(
        f"{name}: {cells / timing.ours:,.0f} cells/s against {cells / timing.baseline:,.0f} cells/s: "
        f"{timing.ratio:.2f} x (target {target} x) on {platform.machine()}, Python {platform.python_version()}"
    )
