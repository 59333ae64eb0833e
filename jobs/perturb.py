"""Perturb genes of cells in silico."""

from cellray.infer.partial import told_counts
from cellray.infer.prefilter.report import summary
from cellray.infer.screen import ScreenConfig, screen
from cellray.infer.screen_plan import ScreenPlan
from cellray.prefilter_schema import PrefilterManifest
from jobs._run import run_job


def main(config: ScreenConfig) -> str:
    """Run the screen and say what was measured."""
    made = screen(config)
    if isinstance(made, ScreenPlan):
        cells = int(made.chosen_n.sum())
        besides = ", ".join(f"{cost.rows:,} for {name}" for name, cost in made.other.items())
        return (
            f"{cells:,} cells, at most {made.copies:,} perturbed copies in {len(made.units):,} units;"
            f" forward passes besides: {besides}; {made.whole.tokens:,} tokens to compute; nothing was done"
        )
    few = summary(made.report) if isinstance(made, PrefilterManifest) else []
    return "\n".join([f"{made.rows:,} shifts", *told_counts(made), *few, f"{config.output}: shifts"])


if __name__ == "__main__":
    run_job("perturb", ScreenConfig, main)
