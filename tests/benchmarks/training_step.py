"""One training step of V1 in float32 on the CPU: ours against BertForMaskedLM with labels, at 2,048 tokens.

A step is forward, backward, clipping and AdamW. Both start from the same weights, get the same masked tokens and draw
the same dropout, so losses and gradients must agree. Peak memory is taken in a process of its own for each: the
high-water mark of the resident set (VmHWM) after one step, less the resident set just before it; a step of a few
tokens beforehand has made the optimiser's state and the libraries' buffers, and gradients are freed before the step.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM

from cellray.model.presets import bert_config
from cellray.train.objectives import GeneMasker, MaskedBatch, MaskedGeneLoss, step_generator
from cellray.train.throughput import peak_memory_bytes
from cellray.vocabulary import GeneVocabulary
from tests.benchmarks.compare import in_turns

V1_GENES, V1_DROPOUT, ROUNDS = 25_424, 0.02, 5
RATIO, MEMORY = 1.4, 0.5  # targets: at least so many times as fast, at most this share of the memory
CASES = [(1, 2048, V1_DROPOUT), (4, 512, V1_DROPOUT), (1, 2048, 0.0), (4, 512, 0.0)]
CPU = torch.device("cpu")
WAYS = ("ours", "transformers")


@dataclass
class Step:
    """A model and what is needed to train it by one step, in one of two ways."""

    way: str
    dropout: float

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.vocabulary = GeneVocabulary.from_medians({f"ENSG{i:011d}": 1.0 for i in range(V1_GENES)}, "v1", "ensembl")
        config = bert_config("v1-10m", self.vocabulary, 2048)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = self.dropout
        self.model = BertForMaskedLM(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0)  # all the work, and weights stay alike
        self._loss: nn.Module | None = MaskedGeneLoss(self.model, self.vocabulary) if self.way == "ours" else None

    def batch(self, rows: int, tokens: int) -> MaskedBatch:
        """Return random cells, 15 % of their genes masked."""
        generator = torch.Generator().manual_seed(1)
        ids_nl = torch.stack([torch.randperm(V1_GENES, generator=generator)[:tokens] + 2 for _ in range(rows)])
        return GeneMasker(self.vocabulary, 0.15, CPU)(ids_nl, step_generator(0, 0, 0, CPU), ids_nl.numel())

    def __call__(self, batch: MaskedBatch) -> Tensor:
        """Train by one step; gradients, clipped, are left to be looked at."""
        torch.manual_seed(2)
        self.optimizer.zero_grad(set_to_none=True)
        if self._loss is None:
            mask_nl = torch.ones_like(batch.input_ids_nl)
            loss: Tensor = self.model(batch.input_ids_nl, attention_mask=mask_nl, labels=batch.labels_nl).loss
        else:
            total, count = self._loss(batch)
            loss = total / count
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()


def check(ours: Step, baseline: Step, batch: MaskedBatch) -> None:
    """Check losses and gradients of one step."""
    losses = float(ours(batch)), float(baseline(batch))
    worst = 0.0
    for a, b in zip(ours.model.parameters(), baseline.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        # a key's bias shifts all scores of a query alike: its true gradient is zero, and what is there is rounding
        if float(b.grad.norm()) > 1e-7:
            worst = max(worst, float((a.grad - b.grad).norm() / b.grad.norm()))
    print(f"  losses {losses[0]:.6f} and {losses[1]:.6f}; largest relative difference of a gradient {worst:.1e}")
    assert abs(losses[0] - losses[1]) < 1e-5
    assert worst < 1e-4


def peak_of_step(way: str, rows: int, tokens: int, dropout: float) -> tuple[float, float]:
    """Return the peak memory of a step above what was there before it, and of the whole process, in MB."""
    arguments = ["--memory-of", way, "--rows", str(rows), "--tokens", str(tokens), "--dropout", str(dropout)]
    command = [sys.executable, "-m", "tests.benchmarks.training_step", *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(out[-2]), float(out[-1])


def print_peak(way: str, rows: int, tokens: int, dropout: float) -> None:
    """Do one step in this process and print its peak."""
    step = Step(way, dropout)
    small, batch = step.batch(1, 8), step.batch(rows, tokens)
    step(small)
    step.optimizer.zero_grad(set_to_none=True)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    step(batch)
    peak = peak_memory_bytes(torch.device("cpu"))
    print(f"{(peak - before) / 1e6} {peak / 1e6}")


def compare(rows: int, tokens: int, dropout: float, rounds: int) -> None:
    """Check, time and weigh one case."""
    print(f"one step of V1 on {rows} x {tokens:,} tokens, dropout {dropout}, {torch.get_num_threads()} threads")
    steps = [Step(way, dropout) for way in WAYS]
    batch = steps[0].batch(rows, tokens)
    check(*steps, batch)

    def of(step: Step) -> Callable[[], object]:
        return lambda: step(batch)

    timing = in_turns(of(steps[0]), of(steps[1]), rounds)
    print(
        f"  {timing.ours:.2f} s against {timing.baseline:.2f} s: {timing.ratio:.2f} x "
        f"({timing.lowest:.2f} to {timing.highest:.2f} in {rounds} rounds; target {RATIO} x)"
    )
    if Path("/proc/self/statm").exists():
        (ours, whole), (theirs, theirs_whole) = (peak_of_step(way, rows, tokens, dropout) for way in WAYS)
        print(
            f"  peak memory of the step {ours:,.0f} MB against {theirs:,.0f} MB: {ours / theirs:.2f} "
            f"(target {MEMORY}); of the process {whole:,.0f} and {theirs_whole:,.0f} MB"
        )


def main() -> None:
    """Compare all cases, or print the memory of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-of", choices=WAYS)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dropout", type=float, default=V1_DROPOUT)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    if chosen.memory_of:
        print_peak(chosen.memory_of, chosen.rows, chosen.tokens, chosen.dropout)
        return
    for rows, tokens, dropout in CASES:
        compare(rows, tokens, dropout, chosen.rounds)


if __name__ == "__main__":
    main()
