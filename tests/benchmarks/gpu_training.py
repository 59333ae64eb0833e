"""Pretraining on a GPU: cells and tokens a second, use of the hardware and memory, against transformers' own model.

Ways: `transformers` = BertForMaskedLM with sdpa, padding and logits at every position; `padded` = ours, the same
batches with the head at masked positions only; `packed` = ours without padding. All in bfloat16 by autocast with AdamW,
the same cells in the same batches. Without a GPU nothing is measured; `--smoke` runs tiny sizes anywhere, to test the
script.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertForMaskedLM

from cellray.model.packed import PackedBatch, unpad
from cellray.model.presets import bert_config
from cellray.train.objectives import NOT_MASKED, GeneMasker, MaskedBatch, MaskedGeneLoss, step_generator
from cellray.train.precision import autocast, autocast_dtype, compile_layers
from cellray.train.throughput import StepWork, ThroughputWindow, peak_memory_bytes, peak_of, row_lengths
from cellray.vocabulary import GeneVocabulary

WARM_UP, STEPS = 5, 20


@dataclass(frozen=True)
class Size:
    """A model, its vocabulary and what a batch of it is."""

    preset: str
    kind: str
    genes: int
    input_size: int
    cells: int

    @property
    def special_tokens(self) -> int:
        """Number of tokens before the first gene."""
        return {"v1": 2, "v2": 4}[self.kind]


SIZES = [
    Size("v1-10m", "v1", 25_424, 2048, 48),
    Size("v2-104m", "v2", 20_271, 4096, 18),
    Size("v2-316m", "v2", 20_271, 4096, 8),
]
SMOKE = [Size("tiny", "v1", 300, 64, 4)]


def batches(size: Size, steps: int) -> list[Tensor]:
    """Return padded token rows: log-normal lengths about 0.4 of the input size, alike within a batch."""
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.normal(np.log(size.input_size * 0.4), 0.6, steps * size.cells))
    lengths = np.sort(drawn.clip(8, size.input_size).astype(int)).reshape(steps, size.cells)
    made = []
    for row in lengths[rng.permutation(steps)]:
        ids_nl = np.zeros((size.cells, row.max()), np.int64)
        for cell, length in enumerate(row):
            ids_nl[cell, :length] = rng.choice(size.genes, min(length, size.genes), replace=False) + size.special_tokens
        made.append(torch.from_numpy(ids_nl))
    return made


class TransformersLoss(nn.Module):
    """Transformers' own model on a masked batch, with a loss summed as ours is."""

    def __init__(self, model: BertForMaskedLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return the summed loss and the number of masked genes."""
        count = (batch.labels_nl != NOT_MASKED).sum()
        mask_nl = batch.input_ids_nl != 0
        return self.model(batch.input_ids_nl, attention_mask=mask_nl, labels=batch.labels_nl).loss * count, count


def measure(size: Size, way: str, device: torch.device, *, compiled: bool, steps: tuple[int, int]) -> str:
    """Train some steps and return a line of what was seen."""
    torch.manual_seed(0)
    vocabulary = GeneVocabulary.from_medians(
        {f"ENSG{i:011d}": 1.0 for i in range(size.genes)}, size.kind, "ensembl", input_size=size.input_size
    )
    model = BertForMaskedLM(bert_config(size.preset, vocabulary, size.input_size)).train().to(device)
    loss = TransformersLoss(model) if way == "transformers" else MaskedGeneLoss(model, vocabulary)
    if compiled:
        compile_layers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    masker, dtype = GeneMasker(vocabulary, 0.15, device), autocast_dtype("auto", device)
    warm_up, timed = steps
    window, last, masked = ThroughputWindow(StepWork(model.config), None), torch.zeros(()), torch.zeros(())
    for step, ids_nl in enumerate(batches(size, warm_up + timed)):
        if step == warm_up:
            window = _fresh_window(model, device, dtype)
        lengths = row_lengths(ids_nl, 0)
        rows: Tensor | PackedBatch = unpad(ids_nl, 0).to(device) if way == "packed" else ids_nl.to(device)
        with autocast(dtype, device):
            total, count = loss(masker(rows, step_generator(0, step, 0, device), int(lengths.sum())))
        optimizer.zero_grad(set_to_none=True)
        last = (total / count).detach()
        (total / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        window.add(lengths)
        masked = masked + count if step > warm_up else count
    return _line(size, way, window, device, (float(last), int(masked)), lengths, compiled=compiled)


def _fresh_window(model: BertForMaskedLM, device: torch.device, dtype: torch.dtype | None) -> ThroughputWindow:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    return ThroughputWindow(StepWork(model.config), peak_of(device, dtype))


def _line(
    size: Size,
    way: str,
    window: ThroughputWindow,
    device: torch.device,
    last: tuple[float, int],
    lengths: NDArray[np.int64],
    *,
    compiled: bool,
) -> str:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    loss, masked = last
    seen = window.metrics(1, masked)
    use = f"{100 * seen['mfu']:.1f} %" if "mfu" in seen else "unavailable"
    return (
        f"{size.preset} {way}{' compiled' if compiled else ''}: {seen['cells_per_s']:,.0f} cells/s, "
        f"{seen['tokens_per_s']:,.0f} tokens/s, MFU {use}, peak memory {peak_memory_bytes(device) / 1e9:.2f} GB, "
        f"{len(lengths)} cells a batch, last loss {loss:.3f}"
    )


def attempt(run: Callable[[], str], name: str) -> str:
    """Return a measurement, or that the batch did not fit: one way's end must not hide the others."""
    try:
        return run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return f"{name}: does not fit into memory"


def main() -> None:
    """Measure every size in every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one step of a tiny model, wherever this runs")
    parser.add_argument("--presets", nargs="*", default=[size.preset for size in SIZES])
    parser.add_argument("--no-compile", action="store_true")
    chosen = parser.parse_args()
    if not (chosen.smoke or torch.cuda.is_available()):
        print("no GPU: nothing measured")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    sizes = SMOKE if chosen.smoke else [size for size in SIZES if size.preset in chosen.presets]
    steps = (0, 1) if chosen.smoke else (WARM_UP, STEPS)
    for size in sizes:
        for compiled in (False,) if chosen.smoke or chosen.no_compile else (False, True):
            for way in ("transformers", "padded", "packed"):

                def run(size: Size = size, way: str = way, compiled: bool = compiled) -> str:
                    return measure(size, way, device, compiled=compiled, steps=steps)

                print(attempt(run, f"{size.preset} {way}"), flush=True)


if __name__ == "__main__":
    main()
