"""Search hyperparameters of a fine-tuning and publish the best trial's model."""

from cellray.train.search.job import search
from cellray.train.search.options import SearchConfig, plain
from cellray.train.search.report import BEST, TRIALS
from jobs._run import run_job

_SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc", "r2", "pearson", "mae")


def main(config: SearchConfig) -> str:
    """Search, and say which trial was best and how well its model tested."""
    result = search(config)
    winner, states = result.winner, ", ".join(f"{number:,} {state}" for state, number in result.counts.items())
    lines = [f"study {result.study}: {states}"]
    if len(winner["front"]) > 1:
        lines.append(f"Pareto front: trials {', '.join(map(str, winner['front']))}")
    lines.append(f"trial {winner['trial']} ({winner['rule']}): {plain(winner['objectives'])}")
    if winner["spread"]:
        lines.append(f"mean over inner folds, whose standard deviation is {plain(winner['spread'])}")
    lines.append(f"with {plain(winner['parameters'])}")
    for name, figures in result.heads.items():
        shown = [f"{key} {figures[key]:.3f}" for key in _SHOWN if figures.get(key) is not None]
        lines.append(f"test part, {name}: {', '.join(shown) or 'nothing to test on'}")
    lines += [result.tracked, f"{result.report}: {TRIALS}, {BEST}, figures and pictures", f"{result.uri}: model"]
    return "\n".join(lines)


if __name__ == "__main__":
    run_job("tune", SearchConfig, main)
