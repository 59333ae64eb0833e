"""The training loop of one worker: batches in, optimiser steps, validation, metrics and checkpoints out.

Knows torch and the objective. Where batches come from and where reports go is given to it, so that it runs alone in a
test as it runs on a cluster.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import get_scheduler

from cellray.train.objectives import GeneMasker, MaskedBatch, step_generator

_VALIDATION_STEP = -1  # validation masks are drawn as of this step, the same at every validation
MODEL_STATE, OPTIMIZER_STATE, LOOP_STATE = "model_state.safetensors", "optimizer_state.safetensors", "loop_state.json"


@dataclass(frozen=True)
class LoopConfig:
    """Numbers of the loop; see `cellray.train.pretrain.PretrainConfig` for their meaning."""

    steps: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    validate_every: int
    log_every: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def of_rank(self, rank: int, world_size: int) -> "LoopConfig":
        """Return the same numbers for one worker of a group."""
        return replace(self, rank=rank, world_size=world_size)


@dataclass(frozen=True)
class Batch:
    """Padded token rows.

    Attributes
    ----------
    input_ids_nl
        Cells x tokens, int64, padded at the end.
    tokens
        Tokens without the padding.
    """

    input_ids_nl: Tensor
    tokens: int


Report = Callable[[dict[str, float], bool], None]
"""Receives metrics (with `step`) and whether a checkpoint is due."""


class Loop:
    """One worker's training.

    Parameters
    ----------
    loss
        `MaskedGeneLoss`, wrapped for several workers if there are several.
    masker
        Hides genes.
    config
        The loop's numbers.
    device
        Where to compute.
    """

    def __init__(self, loss: nn.Module, masker: GeneMasker, config: LoopConfig, device: torch.device) -> None:
        self._loss, self._masker, self._config, self._device = loss, masker, config, device
        self.optimizer = AdamW(_parameter_groups(loss, config.weight_decay), lr=config.learning_rate)
        self._scheduler = get_scheduler(config.schedule, self.optimizer, config.warmup_steps, config.steps)
        self.step = 0

    def run(self, batches: Iterable[Batch], validation: Iterable[Batch], report: Report) -> None:
        """Train until the configured number of steps.

        Parameters
        ----------
        batches
            Those of the steps still to do, in order.
        validation
            The held-out batches, gone through at every validation.
        report
            Receives metrics.
        """
        config = self._config
        window, source = _Window(), iter(batches)
        while self.step < config.steps:
            with window.waiting():
                batch = next(source)
            window.add(*self.train_step(batch.input_ids_nl), batch)
            last = self.step == config.steps
            due = last or self.step % config.validate_every == 0
            if due or self.step % config.log_every == 0:
                metrics = window.metrics(config.world_size) | {"learning_rate": self._scheduler.get_last_lr()[0]}
                if due:
                    metrics["validation_loss"] = self.validate(validation)
                report({"step": self.step, **metrics}, due)
                window = _Window()  # validation and checkpoints do not count towards the rates

    def train_step(self, batch_nl: Tensor) -> tuple[float, int]:
        """Do one optimiser step; return the summed loss over masked genes and their number.

        Raises
        ------
        FloatingPointError
            The loss is not finite.
        """
        config = self._config
        self._loss.train()
        generator = step_generator(config.seed, self.step, config.rank, self._device)
        torch.manual_seed(generator.initial_seed())  # dropout: a function of the step too, so a resumed run is the same
        total, count = self._loss(self._masker(batch_nl.to(self._device), generator))
        if not bool(torch.isfinite(total)):
            raise FloatingPointError(f"the loss became {total.item()} at step {self.step}; try a lower learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        (total * self._weight(count)).backward()
        nn.utils.clip_grad_norm_(self._loss.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self._scheduler.step()
        self.step += 1
        return float(total.detach()), int(count)

    def _weight(self, count: Tensor) -> Tensor:
        """Return what the summed loss is scaled by: the mean over all workers' masked genes, whoever has how many.

        Workers average their gradients, hence the factor `world_size`.
        """
        everywhere = count.to(torch.float64)
        if self._config.world_size > 1:
            torch.distributed.all_reduce(everywhere)
        return (self._config.world_size / everywhere.clamp(min=1)).to(torch.float32)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> float:
        """Return the mean loss over the held-out cells' masked genes, in nats, over all workers."""
        self._loss.eval()
        generator = step_generator(self._config.seed, _VALIDATION_STEP, self._config.rank, self._device)
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        module = self._loss.module if hasattr(self._loss, "module") else self._loss
        for batch in batches:
            masked: MaskedBatch = self._masker(batch.input_ids_nl.to(self._device), generator)
            total, count = module(masked)  # type: ignore[operator]
            sums += torch.stack([total.double(), count.double()])
        if self._config.world_size > 1:
            torch.distributed.all_reduce(sums)
        return float(sums[0] / sums[1]) if float(sums[1]) else math.nan

    def save(self, directory: Path, model: nn.Module) -> None:
        """Write weights, optimiser and place in the schedule, as safetensors and JSON."""
        save_model(model, str(directory / MODEL_STATE))  # knows of tied weights
        tensors, numbers = _flatten(self.optimizer)
        save_file(tensors, directory / OPTIMIZER_STATE)
        state = {"step": self.step, "optimizer": numbers, "scheduler": self._scheduler.state_dict()}
        (directory / LOOP_STATE).write_text(json.dumps(state))

    def load(self, directory: Path, model: nn.Module) -> None:
        """Restore what `save` wrote."""
        load_model(model, directory / MODEL_STATE, device=str(self._device))
        state = json.loads((directory / LOOP_STATE).read_text())
        _unflatten(self.optimizer, load_file(directory / OPTIMIZER_STATE), state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.step = int(state["step"])


class _Window:
    """Sums since the last report."""

    def __init__(self) -> None:
        self._loss, self._masked, self._tokens, self._cells, self._waited = 0.0, 0, 0, 0, 0.0
        self._began = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the block as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def add(self, loss: float, masked: int, batch: Batch) -> None:
        self._loss += loss
        self._masked += masked
        self._tokens += batch.tokens
        self._cells += len(batch.input_ids_nl)

    def metrics(self, world_size: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._began
        return {
            "train_loss": self._loss / max(self._masked, 1),
            "tokens_per_s": world_size * self._tokens / seconds,
            "cells_per_s": world_size * self._cells / seconds,
            "data_wait_share": self._waited / seconds,
        }


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Spare biases and LayerNorm weights the weight decay, as is usual for BERT."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    spared = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def _flatten(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors by name and the rest as plain numbers."""
    state = optimizer.state_dict()
    tensors = {f"{i}.{name}": t.contiguous() for i, slots in state["state"].items() for name, t in slots.items()}
    return tensors, {"param_groups": state["param_groups"]}


def _unflatten(optimizer: Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Put a flattened state back."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": numbers["param_groups"]})
