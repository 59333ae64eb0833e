"""Which options of a screen go with a prefilter, and what such a screen will cost at most."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cellray.infer.prefilter.estimate import ESTIMATED

if TYPE_CHECKING:
    from cellray.infer.screen import ScreenConfig
    from cellray.infer.screen_plan import ScreenPlan


def check_prefilter(config: "ScreenConfig") -> None:
    """Check that there are estimates of what is asked for.

    Raises
    ------
    ValueError
        There are none; the message says which option to change.
    """
    rules = {
        f"--kind must be one of {', '.join(ESTIMATED)}, not {config.kind}": config.kind in ESTIMATED,
        "it needs --genes all, without --anchor and --perturbations": config.genes == ("all",)
        and not config.anchor
        and config.perturbations is None,
        "it goes without --effects, --probabilities and --max-perturbations": not config.effects
        and not config.probabilities
        and config.max_perturbations is None,
        "--kind overexpress needs a goal state (--goal) or --pooling cls: a gene's own move outweighs all others in the"
        " estimated similarity of --pooling cell, which leaves it out": config.kind == "delete"
        or config.goal is not None
        or config.pooling == "cls",
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(f"--no-exact: {rule}; or leave out --no-exact")


def prefiltered_plan(config: "ScreenConfig", plan: "ScreenPlan", length_n: NDArray[np.int64]) -> "ScreenPlan":
    """Return a plan with the exact evaluations of a prefiltered screen: what is expected of them, not more."""
    each_n = np.minimum(config.evaluate + config.sample, length_n) * plan.chosen_n
    return replace(plan, copies=int(each_n.sum()), tokens=int((each_n * length_n).sum()))
