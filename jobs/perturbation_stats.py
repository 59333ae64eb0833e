"""Gene tables with tests from an in silico perturbation screen; optionally pictures."""

from cellray.infer.perturbation_pictures import draw_statistics
from cellray.infer.perturbation_stats import PerturbationStatsConfig, few_detections, perturbation_stats
from cellray.statistics.donors import NO_DONOR
from jobs._run import run_job


def main(config: PerturbationStatsConfig) -> str:
    """Compute, then draw if asked to."""
    manifest = perturbation_stats(config)
    made = [f"{config.output}: {manifest.mode}, {manifest.genes:,} rows from {manifest.rows_read:,} shifts"]
    made.extend(f"left out: {found:,} {reason}" for reason, found in manifest.dropped.items())
    donors = manifest.notes.get("donors")
    if isinstance(donors, dict) and donors.get(NO_DONOR):
        made.append(f"over donors: {donors[NO_DONOR]:,} {NO_DONOR}")
    if (few := few_detections(config.output)) is not None:
        made.append(few)
    if config.plots is not None:
        made.extend(draw_statistics(config.output, config.plots))
    return "\n".join(made)


if __name__ == "__main__":
    run_job("perturbation_stats", PerturbationStatsConfig, main)
