"""How many hours and workers a corpus takes, on paper.

.venv/bin/python cluster/sizing.py [--tokens N] [--gpu-share X]

Prints the table of cluster/README.md. Speeds of CPUs are measured (two cores of an AMD EPYC, tests/benchmarks) and
scaled by the operations of a forward pass; speeds of GPUs are a share of the vendor's peak that is assumed, not
measured. Knows nothing of starting machines, reading from object storage and waiting.
"""

import argparse
import sys
from dataclasses import dataclass

from cellray.model.presets import PRESETS

TOKENIZED_PER_CORE = 26_000
"""Measured: 52,000 cells/s with two workers, 1,000 genes a cell (README.md, Speed) [cells/s]."""
TOKENIZED_GENES = 1000
"""Genes of a cell in that measurement; other lengths are scaled in proportion, which is assumed."""
CORE_FLOPS = 62.4e9
"""Measured: 31.0 cells/s of 512 genes with V1, second to last layer, on two cores (tests/benchmarks/serving.py), 4.03e9
operations each by `forward_flops`. Deletions (tests/benchmarks/perturbation.py) give 71e9 (85.2 copies/s of 256 genes)
and 73e9 (13.6 of 1,024) [1/s]."""
GPU_PEAK_FLOPS = 989e12
"""Of the vendor's sheet: H100 and H200, bf16 and fp16, dense [1/s]."""
GPU_SHARE = {"v1-10m": 0.05, "v2-104m": 0.25, "v2-316m": 0.25}
"""Assumed share of the peak: small matrices keep a GPU waiting. Not measured on any GPU; hours go as one over it."""
GENES = {"v1-10m": 25_426, "v2-104m": 20_275}
"""Tokens of the released vocabularies."""
MOST_TOKENS = {"v1-10m": 2048, "v2-104m": 4096}
"""Of a cell: what the released models take."""
MASKED = 0.15
CORES, GPUS = 240, 16
"""The largest that cluster/kuberay/raycluster.yaml grows to: 16 workers of 15 CPUs, 16 spot GPUs."""
CORE_PRICE, GPU_PRICE = 0.05, 7.0
"""Assumed: an on-demand vCPU of a general machine, an on-demand H100. Spot is often a third to a half [$/h]."""
CORPORA = (1_000_000, 10_000_000, 100_000_000)


@dataclass(frozen=True)
class Work:
    """Something done to each cell of a corpus.

    Attributes
    ----------
    name
        In the table.
    core_s, gpu_s
        Seconds a cell takes on one core or GPU; None: it is not done there.
    basis
        How the speed of a core is known.
    """

    name: str
    core_s: float | None
    gpu_s: float | None
    basis: str = "computed"


def forward_flops(preset: str, tokens: int, layers_left_out: int = 1) -> float:
    """Return the operations of one forward pass over a cell: 2 n L (4 d^2 + 2 d f) + 4 L d n^2.

    The matrices of L layers of width d and feed-forward width f, and attention among n tokens, two operations a
    multiply-add; without the vocabulary's head, which inference never computes. `--layer -1` leaves the last layer out.
    """
    size = PRESETS[preset]
    layers = size.layers - layers_left_out
    matrices = 4 * size.hidden**2 + 2 * size.hidden * size.ffn
    return 2.0 * tokens * layers * matrices + 4.0 * layers * size.hidden * tokens**2


def training_flops(preset: str, tokens: int) -> float:
    """Return the operations of training on one cell: three forward passes' of all layers, and the head where masked.

    The formula of `cellray.train.throughput.StepWork` for one cell.
    """
    hidden = PRESETS[preset].hidden
    head = 6.0 * MASKED * tokens * (hidden**2 + GENES[preset] * hidden)
    return 3.0 * forward_flops(preset, tokens, layers_left_out=0) + head


def works(tokens: int, gpu_share: dict[str, float]) -> list[Work]:
    """Return the rows of the table: those of models that take cells of so many tokens."""

    def computed(name: str, preset: str, flops: float, *, on_cores: bool = True) -> Work:
        core_s = flops / CORE_FLOPS if on_cores else None
        return Work(name, core_s, flops / (gpu_share[preset] * GPU_PEAK_FLOPS))

    small, large = "v1-10m", "v2-104m"
    basis = "measured" if tokens == TOKENIZED_GENES else f"measured at {TOKENIZED_GENES:,}, scaled"
    tokenized_s = tokens / TOKENIZED_GENES / TOKENIZED_PER_CORE
    rows = [
        Work("tokenize", tokenized_s, None, basis),
        computed("embed, V2-104M", large, forward_flops(large, tokens), on_cores=False),
    ]
    if tokens > MOST_TOKENS[small]:
        return rows
    once = forward_flops(small, tokens)
    rows.insert(1, computed("embed, V1-10M", small, once))
    return [
        *rows,
        computed("delete one set of genes in every cell, V1-10M", small, 2 * once),
        computed("delete every gene of 1 cell in 100, V1-10M", small, tokens / 100 * forward_flops(small, tokens - 1)),
        computed("pretrain, 3 epochs, V1-10M", small, 3 * training_flops(small, tokens), on_cores=False),
    ]


def table(tokens: int, gpu_share: dict[str, float]) -> str:
    """Return the table as Markdown: of each work the speed of a worker, and hours and price of each corpus."""
    head = " | ".join(f"{_short(cells)} cells" for cells in CORPORA)
    lines = [
        f"| work ({tokens:,} tokens a cell) | on | cells/s of one | {head} |",
        "|---|---|---|" + "---|" * len(CORPORA),
    ]
    for work in works(tokens, gpu_share):
        for unit, seconds, most, price in (
            (f"core ({work.basis})", work.core_s, CORES, CORE_PRICE),
            ("GPU (assumed share)", work.gpu_s, GPUS, GPU_PRICE),
        ):
            if seconds is not None:
                cells = " | ".join(_cost(cells * seconds / 3600, most, price) for cells in CORPORA)
                lines.append(f"| {work.name} | {unit} | {_rounded(1 / seconds)} | {cells} |")
    return "\n".join(lines)


def _cost(hours: float, most: int, price: float) -> str:
    return f"{_rounded(hours)} h, ${_rounded(hours * price)}; {_rounded(hours / most)} h on {most}"


def _rounded(value: float) -> str:
    """Return a number with two digits that count; little is little."""
    if value < 0.01:
        return "<0.01"
    return f"{float(f'{value:.1e}'):,.3f}".rstrip("0").rstrip(".")


def _short(cells: int) -> str:
    return f"{cells // 1_000_000} M"


def _tokens(text: str) -> int:
    most = max(MOST_TOKENS.values())
    if not text.isdecimal() or not 2 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: give 2 to {most:,}, written without a comma")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share above 0, at most 1; 0.2 is 20 %")
    return share


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").replace("%", "%%"))
    parser.add_argument(
        "--tokens",
        type=_tokens,
        default=TOKENIZED_GENES,
        help="of a cell: its genes, 2 to 4096; above 2048 without the rows of V1, which takes no more",
    )
    parser.add_argument("--gpu-share", type=_share, help="of the peak that a GPU makes, for all models: above 0 to 1")
    options = parser.parse_args()
    share = {preset: options.gpu_share or assumed for preset, assumed in GPU_SHARE.items()}
    sys.stdout.write(table(options.tokens, share) + "\n")


if __name__ == "__main__":
    main()
