"""Fine-tune a model on labels of cells or genes."""

from cellray.train.finetune import FinetuneConfig, finetune
from jobs._run import run_job

_SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc", "r2", "pearson", "mae")


def main(config: FinetuneConfig) -> str:
    """Fine-tune and say how well the test parts were told."""
    result = finetune(config)
    lines = []
    for name, figures in result.heads.items():
        shown = [f"{key} {_with_spread(*figures[key])}" for key in _SHOWN if key in figures]
        lines.append(f"{name}: {', '.join(shown) or 'no test part'}")
        if pooled := result.pooled.get(name):
            shown = [f"{key} {_with_spread(pooled[key], None)}" for key in _SHOWN if key in pooled]
            lines.append(f"{name}, all folds together ({result.tested[name]}): {', '.join(shown)}")
    return "\n".join([*lines, result.tracked, f"{result.report}: figures and pictures", f"{result.uri}: model"])


def _with_spread(mean: float | None, spread: float | None) -> str:
    value = "undefined" if mean is None else f"{mean:.3f}"
    return value if spread is None else f"{value} ± {spread:.3f}"


if __name__ == "__main__":
    run_job("finetune", FinetuneConfig, main)
