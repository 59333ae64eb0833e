"""The masked-gene objective: which genes are hidden, and the loss of predicting them.

Works on padded batches of tokens on any device; the vocabulary head runs at the masked positions only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM

from cellray.vocabulary import MASK, PAD, GeneVocabulary

NOT_MASKED = -100
"""Label of a position that is not predicted (transformers' convention)."""


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with some genes hidden.

    Attributes
    ----------
    input_ids_nl
        Cells x tokens, after masking.
    labels_nl
        The hidden gene's token id, `NOT_MASKED` elsewhere. Cells x tokens.
    """

    input_ids_nl: Tensor
    labels_nl: Tensor


class GeneMasker:
    """Hides genes for the model to predict.

    Each gene token is chosen with probability `probability`; of those chosen 80 % become `<mask>`, 10 % another gene
    drawn evenly, 10 % stay (Theodoris et al. 2023, Methods; Devlin et al. 2019). Special tokens are neither chosen nor
    drawn.

    Parameters
    ----------
    vocabulary
        Tells genes from special tokens.
    probability
        Share of the gene tokens that are predicted.
    device
        Where batches live.
    """

    def __init__(self, vocabulary: GeneVocabulary, probability: float, device: torch.device) -> None:
        self._mask_id = vocabulary.special_tokens[MASK]
        self._genes = torch.tensor(sorted(vocabulary.genes.values()), device=device)
        self._is_gene = torch.zeros(len(vocabulary), dtype=torch.bool, device=device)
        self._is_gene[self._genes] = True
        self._probability = probability

    def __call__(self, input_ids_nl: Tensor, generator: torch.Generator) -> MaskedBatch:
        """Mask a batch; the generator must live on the batch's device."""
        device = input_ids_nl.device
        chance_nl = torch.rand(input_ids_nl.shape, generator=generator, device=device)
        chosen_nl = self._is_gene[input_ids_nl] & (chance_nl < self._probability)
        # chance / probability of a chosen token is even in [0, 1): it decides what becomes of the token
        fate_nl = chance_nl / self._probability
        drawn_nl = torch.randint(len(self._genes), input_ids_nl.shape, generator=generator, device=device)
        masked_nl = torch.where(chosen_nl & (fate_nl < 0.8), self._mask_id, input_ids_nl)
        masked_nl = torch.where(chosen_nl & (fate_nl >= 0.8) & (fate_nl < 0.9), self._genes[drawn_nl], masked_nl)
        return MaskedBatch(masked_nl, torch.where(chosen_nl, input_ids_nl, NOT_MASKED))


class MaskedGeneLoss(nn.Module):
    """A `BertForMaskedLM` and its loss, with logits computed only where a gene is predicted.

    Parameters
    ----------
    model
        The model to train.
    """

    def __init__(self, model: BertForMaskedLM, vocabulary: GeneVocabulary) -> None:
        super().__init__()
        self.model = model
        self._pad_id = vocabulary.special_tokens[PAD]

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy over the masked positions, in nats, and their number."""
        mask_nl = batch.input_ids_nl != self._pad_id
        hidden_nld = self.model.bert(
            input_ids=batch.input_ids_nl, attention_mask=None if bool(mask_nl.all()) else mask_nl
        ).last_hidden_state
        predicted_nl = batch.labels_nl != NOT_MASKED
        logits_mv = self.model.cls(hidden_nld[predicted_nl])
        loss = nn.functional.cross_entropy(logits_mv.float(), batch.labels_nl[predicted_nl], reduction="sum")
        return loss, predicted_nl.sum()


def step_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """Return the random generator of one step on one rank: a function of these numbers alone."""
    generator = torch.Generator(device=device)
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % (1 << 63)
    generator.manual_seed(mixed)
    return generator
