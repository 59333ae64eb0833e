"""Which options of a screen go with a prefilter, and what such a screen will cost at most."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cellray.infer.prefilter.estimate import ESTIMATED
from cellray.infer.prefilter.workers import EstimateSettings
from cellray.infer.screen_plan import Cost

if TYPE_CHECKING:
    from cellray.infer.screen import ScreenConfig
    from cellray.infer.screen_plan import ScreenPlan

logger = logging.getLogger(__name__)

ESTIMATES = "estimates"


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
    """Return a plan with the estimates of a prefiltered screen and the exact evaluations that are expected.

    It logs a warning if the whole screen would cost less.
    """
    each_n = np.minimum(config.evaluate + config.sample, length_n) * plan.chosen_n
    estimates = EstimateSettings(config.goal).passes(config.kind)
    few = replace(
        plan,
        copies=int(each_n.sum()),
        tokens=int((each_n * length_n).sum()),
        other={
            ESTIMATES: Cost(estimates * int(plan.chosen_n.sum()), estimates * int(length_n[plan.chosen_n].sum())),
            **plan.other,
        },
    )
    if few.whole.tokens > plan.whole.tokens:
        logger.warning(
            "--no-exact costs more here than all perturbations: %s against %s tokens to compute; leave it out",
            f"{few.whole.tokens:,}",
            f"{plan.whole.tokens:,}",
        )
    return few
