"""Fine-tuning's objective for the loop: targets from a task, losses of the heads, figures of held-out cells."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from transformers import BertModel

from cellray.model.annotator import AnnotatedEncoder
from cellray.model.heads import head_answer, head_loss
from cellray.train.contracts import Batch
from cellray.train.folds import VALIDATION
from cellray.train.tasks.contract import Arrays, Task
from cellray.train.throughput import StepWork


@dataclass(frozen=True)
class LabelledBatch:
    """Token rows and what each head shall say of them, on the device."""

    input_ids_nl: Tensor
    targets: Mapping[str, Tensor]


class AnnotationLoss(nn.Module):
    """A model with heads and the loss of all of them.

    Every label counts once, times the weight of its head and its class.

    Parameters
    ----------
    model
        The model.
    class_weights, head_weights
        By head; see `cellray.train.tasks.contract.Task`.
    """

    def __init__(
        self, model: AnnotatedEncoder, class_weights: Mapping[str, Tensor], head_weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.model = model
        self._class_weights, self._head_weights = class_weights, head_weights

    def forward(self, batch: LabelledBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the summed loss, its weight, and each head's logits."""
        logits = self.model(batch.input_ids_nl)
        total = weight = torch.zeros((), device=batch.input_ids_nl.device)
        for spec in self.model.specs:
            weights = self._class_weights.get(spec.name)
            on_device = None if weights is None else weights.to(total.device)
            loss, labels = head_loss(spec, logits[spec.name], batch.targets[spec.name], on_device)
            total = total + self._head_weights[spec.name] * loss
            weight = weight + self._head_weights[spec.name] * labels
        return total, weight, logits


def work_of(bert: BertModel) -> StepWork:
    """Return what a training step of an encoder computes, which may be frozen in part or have additions."""
    trained = [any(weight.requires_grad for weight in layer.parameters()) for layer in bert.encoder.layer]
    whole = any(name.endswith("attention.output.dense.weight") and weight.requires_grad
                for name, weight in bert.named_parameters())  # fmt: skip
    return StepWork(bert.config, trained.index(True) if any(trained) else len(trained), whole)


class Annotation:
    """Learn what a task says of cells or genes; see `cellray.train.contracts.Objective`.

    Parameters
    ----------
    model
        To train, on its device.
    task, fold, part
        What is learnt, and on which part of which fold.
    """

    vocabulary_head = False

    def __init__(self, model: AnnotatedEncoder, task: Task, fold: int, part: int) -> None:
        self.model, self._task, self._fold, self._part = model, task, fold, part
        self._device = next(model.parameters()).device
        self.work = work_of(model.bert)
        self.module: nn.Module = AnnotationLoss(model, task.class_weights(fold, part), task.head_weights())

    def prepare(self, batch: Batch, generator: Generator) -> LabelledBatch:
        """Bring a batch and its targets to the device."""
        return self._labelled(batch, self._part)

    def validate(self, module: nn.Module, batches: Iterable[Batch], world_size: int) -> dict[str, float]:
        """Return `validation_loss` and the task's figures of the validation part."""
        return self.score(batches, VALIDATION, world_size)[1]

    def score(self, batches: Iterable[Batch], part: int, world_size: int) -> tuple[Arrays, dict[str, float]]:
        """Return what the model answers in a part, over all workers, and the figures of it."""
        scores = self._task.scores(self._fold, part)
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for batch in batches:
            total, weight, logits = self.module(self._labelled(batch, part))
            sums += torch.stack([total.double(), weight.double()])
            scores.add(batch, {spec.name: head_answer(spec, logits[spec.name]).cpu() for spec in self.model.specs})
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        arrays, (loss, labels) = scores.arrays(world_size), sums.tolist()
        figures = self._task.metrics(self._fold, part, arrays)
        return arrays, {"validation_loss": loss / labels if labels else math.nan, **figures}

    def _labelled(self, batch: Batch, part: int) -> LabelledBatch:
        targets = self._task.targets(self._fold, part, batch)
        return LabelledBatch(
            batch.input_ids_nl.to(self._device, non_blocking=True),
            {name: target.to(self._device, non_blocking=True) for name, target in targets.items()},
        )
