"""Perturb genes of cells in silico."""

from cellray.infer.prefilter.report import summary
from cellray.infer.screen import ScreenConfig, ScreenPlan, screen
from cellray.prefilter_schema import PrefilterManifest
from jobs._run import run_job


def main(config: ScreenConfig) -> str:
    """Run the screen and say what was measured."""
    made = screen(config)
    if isinstance(made, ScreenPlan):
        cells = int(made.chosen_n.sum())
        return (
            f"{cells:,} cells, at most {made.copies:,} perturbed copies, {made.tokens:,} tokens to compute"
            f" in {len(made.units):,} units; nothing was done"
        )
    rows = sum(part.rows for part in made.parts)
    counts: dict[str, int] = {}
    for part in made.parts:
        for name, number in part.counts.items():
            counts[name] = max(counts.get(name, 0), number) if "largest" in name else counts.get(name, 0) + number
    few = summary(made.report) if isinstance(made, PrefilterManifest) else []
    skipped = [f"{number:,} cells {reason}" for reason, number in made.skipped.items()]
    idle = counts.get("perturbations that do not apply to a cell", 0)
    noise = counts.get("largest noise x 1e9", 0) / 1e9
    return "\n".join(
        [
            f"{rows:,} shifts; left out: {', '.join(skipped) or 'no cell'}; {idle:,} perturbations did not apply",
            f"unperturbed copies in the same batches lie at most {noise:.1e} from no effect (rounding is not in this)",
            *few,
            f"{config.output}: shifts",
        ]
    )


if __name__ == "__main__":
    run_job("perturb", ScreenConfig, main)
