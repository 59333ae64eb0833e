"""Which step of a training is kept, and which step another metric would have kept: a line for a person."""

import math
from collections.abc import Mapping, Sequence

from cellray.train.loop import LoopConfig, Progress
from cellray.train.planning import LOWER_IS_BETTER

_OTHERS = ("validation_loss", "accuracy", "macro_f1", "r2", "mae")
"""Metrics that people watch; with several heads their names end so."""


def kept_line(progress: Progress, reports: Sequence[Mapping[str, float]], config: LoopConfig) -> str:
    """Return `kept: step 120 (validation_loss 1.744; accuracy was best at step 40: --monitor accuracy)`.

    Parameters
    ----------
    progress
        Of a training that is over.
    reports
        Its reports, each with `step`; the last ones, at least.
    config
        Says which metric was watched.
    """
    if not progress.best_step or progress.best is None:
        return f"kept: step {progress.step:,}, the last one"
    others = {name: step for name in _watchable(reports, config.monitor) if (step := _better(name, reports, progress))}
    line = f"kept: step {progress.best_step:,} ({config.monitor} {progress.best:.4g}"
    if not others:
        return f"{line})"
    told = ", ".join(f"{name} was best at step {step:,}" for name, step in others.items())
    return f"{line}; {told}: --monitor {next(iter(others))})"


def _watchable(reports: Sequence[Mapping[str, float]], monitor: str) -> list[str]:
    """Return the names of other metrics, in the order in which they are reported."""
    names = dict.fromkeys(name for report in reports for name in report)
    return [n for n in names if n != monitor and n.rsplit("/", 1)[-1] in _OTHERS and not n.startswith("token/")]


def _better(name: str, reports: Sequence[Mapping[str, float]], progress: Progress) -> int | None:
    """Return the first step at which a metric was best, None where it was so at the kept step, too."""
    sign = -1 if name.endswith(LOWER_IS_BETTER) else 1
    values = {
        int(report["step"]): sign * report[name] for report in reports if math.isfinite(report.get(name, math.nan))
    }
    best = max(values, key=lambda step: (values[step], -step), default=None)
    if best is None or progress.best_step not in values or values[best] <= values[progress.best_step]:
        return None
    return best
