"""How fast training goes: cells and tokens a second, use of the hardware, waiting for data, memory.

Model FLOPs are those the training step needs by its formula, whatever the machine did: work on padding and activations
computed twice do not count, so that the figure compares ways of doing one thing. Knows the peak speed of devices by
their name; of others, CPUs included, the use of the hardware is unavailable, and then it is left out.
"""

import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig

from cellray.model.device import is_accelerator

TERA = 1e12

PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"NVIDIA B200", {"bf16": 2250, "fp16": 2250, "tf32": 1125, "float32": 75}),
    (r"NVIDIA (H200|GH200 .*)", {"bf16": 989, "fp16": 989, "tf32": 494, "float32": 67}),
    (r"NVIDIA H(100|200) NVL", {"bf16": 835, "fp16": 835, "tf32": 417, "float32": 60}),
    (r"NVIDIA H100 PCIe", {"bf16": 756, "fp16": 756, "tf32": 378, "float32": 51}),
    (r"NVIDIA H100 80GB HBM3", {"bf16": 989, "fp16": 989, "tf32": 494, "float32": 67}),
    (r"(NVIDIA )?A100(-(SXM4|PCIE)-[48]0GB| 80GB PCIe)", {"bf16": 312, "fp16": 312, "tf32": 156, "float32": 19.5}),
    (r"NVIDIA A30", {"bf16": 165, "fp16": 165, "tf32": 82, "float32": 10.3}),
    (r"NVIDIA A40", {"bf16": 149.7, "fp16": 149.7, "tf32": 74.8, "float32": 37.4}),
    (r"NVIDIA A10", {"bf16": 125, "fp16": 125, "tf32": 62.5, "float32": 31.2}),
    (r"NVIDIA A10G", {"bf16": 70, "fp16": 70, "tf32": 35, "float32": 35}),
    (r"NVIDIA L40S", {"bf16": 362, "fp16": 362, "tf32": 183, "float32": 91.6}),
    (r"NVIDIA L40", {"bf16": 181, "fp16": 181, "tf32": 90.5, "float32": 90.5}),
    (r"NVIDIA L4", {"bf16": 121, "fp16": 121, "tf32": 60, "float32": 30.3}),
    (r"NVIDIA RTX A6000", {"bf16": 154.8, "fp16": 154.8, "tf32": 77.4, "float32": 38.7}),
    (r"NVIDIA GeForce RTX 4090", {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "float32": 82.6}),
    (r"NVIDIA GeForce RTX 3090", {"bf16": 71, "fp16": 71, "tf32": 35.6, "float32": 35.6}),
    (r"Tesla V100-SXM2-.*", {"fp16": 125, "float32": 15.7}),
    (r"Tesla V100-PCIE-.*", {"fp16": 112, "float32": 14}),
    (r"Tesla T4", {"fp16": 65, "float32": 8.1}),
)
"""Peak TFLOP/s of one device: a pattern for the whole of `torch.cuda.get_device_name`, and a figure for each kind of
matrix product (`tf32` = float32 tensors on tensor cores). A slice of a device (MIG) has another name and no entry.

Checked against public tables of these figures: A10, A30, A40, A100, H100 (SXM, PCIe), H200, L4, L40, L40S, T4, V100;
the others are unchecked. Dense figures of NVIDIA's data sheets
(A10, A10G, A30, A40, A100, B200 (HGX), H100, H200, L4, L40, L40S, RTX A6000, T4,
V100) and of its Ampere (GA102) and Ada architecture papers (GeForce; float32 accumulation). Where a sheet gives the
figure with 2:4 sparsity only, half of it stands here: training's matrices are dense."""


@dataclass(frozen=True)
class StepWork:
    """What a training step computes, from which its floating point operations follow.

    Attributes
    ----------
    config
        Layers, width, feed-forward width and vocabulary of the model.
    frozen
        First layers in and below which nothing is learnt.
    weights
        Whether the encoder's own weights are learnt above; not with low-rank additions in their place.
    """

    config: BertConfig
    frozen: int = 0
    weights: bool = True

    def flops(self, tokens: int, squared_lengths: int, masked: int) -> float:
        """Return the floating point operations of a step.

        A weight matrix multiplies each token once forward (a multiplication and an addition a weight: 2) and, where all
        is learnt, twice backward (for the gradients of its input and of itself: 4), 6 a weight and token. A layer's
        matrices are query, key, value and output (4 d^2) and the two of the feed-forward part (2 d f). The vocabulary
        head's d^2 + V d work at the masked positions only. Attention has two products without weights, queries by keys
        and probabilities by values: each is n^2 d multiply-adds in a cell of n tokens, 2 x 2 n^2 d operations forward
        and twice that backward, 12 n^2 d.

        FLOPs = 6 tokens L (4 d^2 + 2 d f) + 6 masked (d^2 + V d) + 12 L d sum n^2

        (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B.) Frozen layers go forward only (2 in place
        of 6, 4 n^2 d in place of 12); the first layer above them needs no gradient of the input of query, key and
        value. Where weights are not learnt the gradients of themselves are left out (4 in place of 6). Looking up
        embeddings multiplies nothing. Element-wise work, the optimiser, low-rank additions and the heads of fine-tuning
        are left out, each under 1 % beside matrices.

        Parameters
        ----------
        tokens
            Tokens without padding.
        squared_lengths
            Sum over cells of their squared number of tokens.
        masked
            Positions whose gene is predicted by a vocabulary head.
        """
        d, layers = self.config.hidden_size, self.config.num_hidden_layers
        learning = layers - self.frozen
        weights = 4 * d * d + 2 * d * self.config.intermediate_size
        backward = (4.0 if self.weights else 2.0) * learning * weights
        if learning and (self.frozen or not self.weights):
            backward -= 2 * 3 * d * d
        head = d * d + self.config.vocab_size * d
        attention = (4.0 * layers + 8.0 * learning) * d
        return tokens * (2.0 * layers * weights + backward) + 6.0 * masked * head + attention * squared_lengths


def peak_flops(device_name: str, kind: str) -> float | None:
    """Return a device's peak FLOP/s for a kind of matrix product, or None for unavailable.

    Parameters
    ----------
    device_name
        As `torch.cuda.get_device_name` gives it.
    kind
        `bf16`, `fp16`, `tf32` or `float32`.
    """
    figures = (peaks for name, peaks in PEAK_TFLOPS if re.fullmatch(name, device_name))
    tera = next(figures, {}).get(kind)
    return None if tera is None else tera * TERA


def peak_of(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """Return the peak FLOP/s of a device as it is used now; None = unavailable.

    Parameters
    ----------
    device
        Where the model computes.
    dtype
        What autocast computes in; None = float32, as torch is set to multiply it.
    """
    if not (is_accelerator(device) and torch.cuda.is_available()):
        return None
    single = "float32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    kinds = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: single, None: single}
    return peak_flops(torch.cuda.get_device_name(device), kinds[dtype])


def row_lengths(input_ids_nl: Tensor, pad_id: int) -> NDArray[np.int64]:
    """Return the tokens of each padded row; meant for tensors of the CPU. Shape (cells,)."""
    lengths: NDArray[np.int64] = (input_ids_nl != pad_id).sum(dim=1).numpy()
    return lengths


class ThroughputWindow:
    """Sums of one worker since the last report.

    Parameters
    ----------
    work
        What a step computes.
    peak
        Peak FLOP/s of the worker's device; None = unavailable.
    """

    def __init__(self, work: StepWork, peak: float | None) -> None:
        self._work, self._peak = work, peak
        self.cells, self.tokens, self.squared_lengths = 0, 0, 0
        self.waited_s, self._began = 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the block as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - began

    def add(self, lengths_n: NDArray[np.int64]) -> None:
        """Count a batch: each cell's tokens without padding."""
        lengths_n = lengths_n.astype(np.int64)
        self.cells += len(lengths_n)
        self.tokens += int(lengths_n.sum())
        self.squared_lengths += int((lengths_n**2).sum())

    def metrics(self, world_size: int, masked: int, seconds: float | None = None) -> dict[str, float]:
        """Return the window's rates.

        Parameters
        ----------
        world_size
            Workers, taken to be as fast as this one: rates are theirs together, the use of the hardware is of one.
        masked
            Positions that a vocabulary head of this worker predicted.
        seconds
            How long the window was; by default since its making.

        Returns
        -------
        dict
            `cells_per_s`, `tokens_per_s`, `data_wait_share`; `mfu`, the share of the peak that model FLOPs make, if
            the peak is known.
        """
        seconds = seconds or time.perf_counter() - self._began
        rates = {
            "cells_per_s": world_size * self.cells / seconds,
            "tokens_per_s": world_size * self.tokens / seconds,
            "data_wait_share": self.waited_s / seconds,
        }
        if self._peak is not None:
            flops = self._work.flops(self.tokens, self.squared_lengths, masked)
            rates["mfu"] = flops / seconds / self._peak
        return rates


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory used so far: tensors on a GPU, since the last reset; else the process, since its start."""
    if is_accelerator(device) and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux' getrusage counts the parent's memory, too, from before a process became another
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
