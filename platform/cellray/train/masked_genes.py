"""Pretraining's objective for the loop: hide genes, predict them, validate on the same hidden genes every time."""

import math
from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn
from transformers import BertForMaskedLM

from cellray.model.packed import PackedBatch, unpad
from cellray.train.contracts import Batch
from cellray.train.objectives import GeneMasker, MaskedBatch, MaskedGeneLoss
from cellray.train.throughput import StepWork
from cellray.vocabulary import PAD, GeneVocabulary


class MaskedGenes:
    """Predict hidden genes; see `cellray.train.contracts.Objective`.

    Parameters
    ----------
    model
        To train, on its device.
    probability
        Share of the gene tokens that are predicted.
    seed
        Of the masks of validation.
    packed
        Whether a batch's cells are put into one row, without padding.
    """

    vocabulary_head = True

    def __init__(
        self,
        model: BertForMaskedLM,
        vocabulary: GeneVocabulary,
        probability: float,
        seed: int,
        *,
        packed: bool = False,
    ) -> None:
        self.module: nn.Module = MaskedGeneLoss(model, vocabulary)
        self._device = next(model.parameters()).device
        self._masker = GeneMasker(vocabulary, probability, self._device)
        self._seed, self._packed = seed, packed
        self._pad_id = vocabulary.special_tokens[PAD]
        self.work = StepWork(model.config)

    def prepare(self, batch: Batch, generator: Generator) -> MaskedBatch:
        """Bring a batch to the device and hide genes there."""
        return self._masker(self._rows(batch), generator, batch.tokens)

    def _held_out(self, batch: Batch) -> MaskedBatch:
        cells_n = torch.from_numpy(batch.cells_n).to(self._device)
        return self._masker.by_cell(self._rows(batch), cells_n, self._seed)

    def _rows(self, batch: Batch) -> Tensor | PackedBatch:
        """Bring a batch's rows to the device."""
        if self._packed and batch.tokens:
            return unpad(batch.input_ids_nl, self._pad_id).to(self._device)
        return batch.input_ids_nl.to(self._device, non_blocking=True)

    def validate(self, module: nn.Module, batches: Iterable[Batch], world_size: int) -> dict[str, float]:
        """Return the mean loss over the held-out cells' hidden genes, in nats: `validation_loss`.

        Which genes are hidden depends on the cell and the seed: the same ones at every validation, for any number of
        workers.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for batch in batches:
            total, count = module(self._held_out(batch))
            sums += torch.stack([total.double(), count.double()])
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        total_loss, hidden = sums.tolist()
        return {"validation_loss": total_loss / hidden if hidden else math.nan}
