"""Score how well embeddings of cells from several batches are integrated."""

from cellray.infer.integration import IntegrationConfig, score_integration
from cellray.infer.tables import read_made_table
from jobs._run import run_job


def main(config: IntegrationConfig) -> str:
    """Score, and show the table."""
    manifest = score_integration(config)
    table = read_made_table(config.output).pivot(index=["about", "metric"], columns="embedding", values="value")
    left_out = [f"left out: {found:,} cells {reason}" for reason, found in manifest.dropped.items() if found]
    shown = table.round(3).reset_index().to_string(index=False)
    return "\n".join(
        [shown, *left_out, f"{config.output}: {manifest.rows:,} scores of {manifest.notes['cells']:,} cells"]
    )


if __name__ == "__main__":
    run_job("score_integration", IntegrationConfig, main)
