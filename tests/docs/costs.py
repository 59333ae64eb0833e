"""The arithmetic of docs/costs.md: operations of a forward pass, and hours from them.

python -m tests.docs.costs      prints the tables as they stand on the page
"""

import runpy

from transformers import BertConfig

from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary
from tests.conftest import REPOSITORY

_SIZING = runpy.run_path(str(REPOSITORY / "cluster" / "sizing.py"))
CORE_FLOPS: float = _SIZING["CORE_FLOPS"]
"""Of one core in float32, as in the guide of clusters."""
CORES = 16
GPU_FLOPS = {size: share * _SIZING["GPU_PEAK_FLOPS"] for size, share in _SIZING["GPU_SHARE"].items()}
"""Assumed, as in the guide of clusters: a share of the bfloat16 peak of an H100 or H200."""
TOKENS = 1_024
SIZES = ("v1-10m", "v2-104m", "v2-316m")
CELLS = (1_000_000, 10_000_000, 100_000_000)


def forward_flops(config: BertConfig, tokens: int, layer: int = -1) -> float:
    """Return the floating point operations of embedding one cell: 2 n (4 d^2 + 2 d f) + 4 n^2 d for each layer run.

    Query, key, value and output are four matrices d x d, the feed-forward part two d x f, two operations a weight and
    token; attention has two products of n^2 d multiply-adds. The layers above the wanted one are not run.
    """
    d, f = config.hidden_size, config.intermediate_size
    layers = config.num_hidden_layers + layer
    return float(layers * (2 * tokens * (4 * d * d + 2 * d * f) + 4 * tokens * tokens * d))


def config_of(size: str) -> BertConfig:
    """Return the configuration of a released size."""
    kind = size.split("-", 1)[0]
    return bert_config(size, GeneVocabulary.from_medians({"ENSG00000000001": 1.0}, kind, "ensembl"), TOKENS)


def hours(passes: float, size: str, flops: float) -> float:
    """Return the hours one worker takes for so many forward passes."""
    return passes * forward_flops(config_of(size), TOKENS) / flops / 3600


def row(size: str, label: str, flops: float) -> str:
    """Return a line of the table: GFLOP a cell, cells a second, hours for each number of cells, workers for a day."""
    operations = forward_flops(config_of(size), TOKENS)
    each = [hours(cells, size, flops) for cells in CELLS]
    cells = [f"{value:,.2f}" if value < 10 else f"{value:,.0f}" for value in each]
    workers = f"{max(1, -(-each[-1] // 24)):,.0f}"
    return " | ".join(
        ["", size, label, f"{operations / 1e9:,.1f}", f"{flops / operations:,.0f}", *cells, workers, ""]
    ).strip()


def table() -> list[str]:
    """Return the lines of the table of embedding."""
    cores = [row(size, "CPU, 16 cores", CORES * CORE_FLOPS) for size in SIZES]
    return cores + [row(size, "GPU", GPU_FLOPS[size]) for size in SIZES]


def screens() -> list[str]:
    """Return the lines of the table of screens: every gene of cells of 1,024 genes."""
    columns = [("v1-10m", CORES * CORE_FLOPS), *((size, GPU_FLOPS[size]) for size in SIZES)]
    lines = []
    for cells in (200, 10_000, *CELLS):
        told = [_time(hours(cells * TOKENS, size, flops)) for size, flops in columns]
        lines.append(f"| {cells:,} cells of {TOKENS:,} genes | {cells * TOKENS:,} | {' | '.join(told)} |")
    return lines


def _time(value: float) -> str:
    return f"{value:,.0f} h" if value >= 10 else f"{value:.1f} h" if value >= 1 else f"{60 * value:.1f} min"


if __name__ == "__main__":
    print("\n".join([*table(), "", *screens()]))  # noqa: T201
