"""Predict labels and numbers with a fine-tuned model; optionally write an .h5ad."""

from cellray.infer.predict import PredictConfig, predict_cells
from cellray.infer.predictions import Predictions, write_predictions_h5ad
from cellray.infer.results import check_h5ad_target
from jobs._run import run_job


def main(config: PredictConfig) -> str:
    """Predict, then make what else was asked for."""
    if config.h5ad is not None:
        check_h5ad_target(config.h5ad, config.corpus, "predictions")
    manifest = predict_cells(config)
    told = ", ".join(head["name"] for head in manifest.heads)
    made = [f"{config.output}: predictions of {manifest.rows:,} {manifest.level}s ({told})"]
    if config.h5ad is not None:
        cells, predicted = write_predictions_h5ad(Predictions.open(config.output), config.h5ad)
        made.append(f"{config.h5ad}: {cells:,} cells, {predicted:,} with predictions")
    return "\n".join(made)


if __name__ == "__main__":
    run_job("predict", PredictConfig, main)
