"""Pretrain a model on a token corpus."""

from cellray.train.pretrain import PretrainConfig, pretrain
from jobs._run import run_job


def main(config: PretrainConfig) -> str:
    """Pretrain and say where the model and its run are."""
    result = pretrain(config)
    return (
        f"{result.steps:,} steps, validation loss {result.validation_loss:.4f}; {result.tracked}\n"
        f"{config.output}: model directory"
    )


if __name__ == "__main__":
    run_job("pretrain", PretrainConfig, main)
