"""Pretraining's objective for the loop: hide genes, predict them, validate on the same hidden genes every time."""

import math
from collections.abc import Iterable

import torch
from torch import Generator, nn
from transformers import BertConfig, BertForMaskedLM

from cellray.model.packed import unpad
from cellray.train.contracts import Batch
from cellray.train.objectives import GeneMasker, MaskedBatch, MaskedGeneLoss, step_generator
from cellray.vocabulary import PAD, GeneVocabulary

_VALIDATION_STEP = -1  # validation masks are drawn as of this step, the same at every validation


class MaskedGenes:
    """Predict hidden genes; see `cellray.train.contracts.Objective`.

    Parameters
    ----------
    model
        To train, on its device.
    probability
        Share of the gene tokens that are predicted.
    seed, rank
        Of the masks of validation.
    packed
        Whether a batch's cells are put into one row, without padding.
    """

    def __init__(
        self,
        model: BertForMaskedLM,
        vocabulary: GeneVocabulary,
        probability: float,
        seed: int,
        rank: int,
        *,
        packed: bool = False,
    ) -> None:
        self.module: nn.Module = MaskedGeneLoss(model, vocabulary)
        self._device = next(model.parameters()).device
        self._masker = GeneMasker(vocabulary, probability, self._device)
        self._seed, self._rank, self._packed = seed, rank, packed
        self._pad_id = vocabulary.special_tokens[PAD]
        self.flops: BertConfig | None = model.config

    def prepare(self, batch: Batch, generator: Generator) -> MaskedBatch:
        """Bring a batch to the device and hide genes there."""
        if self._packed and batch.tokens:
            return self._masker(unpad(batch.input_ids_nl, self._pad_id).to(self._device), generator)
        return self._masker(batch.input_ids_nl.to(self._device, non_blocking=True), generator, batch.tokens)

    def validate(self, module: nn.Module, batches: Iterable[Batch], world_size: int) -> dict[str, float]:
        """Return the mean loss over the held-out cells' hidden genes, in nats: `validation_loss`."""
        generator = step_generator(self._seed, _VALIDATION_STEP, self._rank, self._device)
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for batch in batches:
            total, count = module(self.prepare(batch, generator))
            sums += torch.stack([total.double(), count.double()])
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        total_loss, hidden = sums.tolist()
        return {"validation_loss": total_loss / hidden if hidden else math.nan}
