"""The masked-gene objective: which genes are hidden, and the loss of predicting them.

Works on padded or packed batches of tokens on any device; the vocabulary head runs at the masked positions only.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM

from cellray.model.attention import use_attention
from cellray.model.packed import PackedBatch, packed_hidden
from cellray.train.head_loss import linear_cross_entropy
from cellray.vocabulary import MASK, PAD, GeneVocabulary

NOT_MASKED = -100
"""Label of a position that is not predicted (transformers' convention)."""


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with some genes hidden.

    Attributes
    ----------
    input_ids_nl
        Cells x tokens, after masking; 1 x tokens of all cells where they are packed.
    labels_nl
        The hidden gene's token id, `NOT_MASKED` elsewhere. Cells x tokens.
    padded
        Whether there may be padding. Asking the tensor would make the computer wait for the GPU.
    packed
        How cells lie in the one row; its token ids are those before masking.
    """

    input_ids_nl: Tensor
    labels_nl: Tensor
    padded: bool = True
    packed: PackedBatch | None = None


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

    def __call__(
        self, rows: Tensor | PackedBatch, generator: torch.Generator, tokens: int | None = None
    ) -> MaskedBatch:
        """Mask a batch.

        Parameters
        ----------
        rows
            Padded token rows, cells x tokens, or cells packed into one row.
        generator
            Must live on the batch's device.
        tokens
            Tokens without padding, where they are known; they tell whether there is any.
        """
        input_ids_nl = rows.input_ids_nl if isinstance(rows, PackedBatch) else rows
        device = input_ids_nl.device
        chance_nl = torch.rand(input_ids_nl.shape, generator=generator, device=device)
        drawn_nl = torch.randint(len(self._genes), input_ids_nl.shape, generator=generator, device=device)
        return self._hide(rows, chance_nl, drawn_nl, tokens)

    def by_cell(self, rows: Tensor | PackedBatch, cells_n: Tensor, seed: int) -> MaskedBatch:
        """Mask a batch with draws that depend on each cell's number and the seed alone: however cells are batched.

        Parameters
        ----------
        rows
            As for a call.
        cells_n
            Number of each cell. int64, on the batch's device.
        """
        if isinstance(rows, PackedBatch):
            cell_nl = cells_n.repeat_interleave(rows.cu_lengths.diff())[None]
            bits_nl = hashed(seed, cell_nl, rows.position_ids_nl)
        else:
            bits_nl = hashed(seed, cells_n[:, None], torch.arange(rows.shape[1], device=rows.device)[None])
        chance_nl = (bits_nl >> 32).to(torch.float64) / (1 << 31)
        drawn_nl = (bits_nl & 0x7FFFFFFF) % len(self._genes)
        return self._hide(rows, chance_nl.float(), drawn_nl, None)

    def _hide(self, rows: Tensor | PackedBatch, chance_nl: Tensor, drawn_nl: Tensor, tokens: int | None) -> MaskedBatch:
        """Mask a batch, given a number in [0, 1) and a gene's index for each token."""
        packed = rows if isinstance(rows, PackedBatch) else None
        input_ids_nl = rows.input_ids_nl if isinstance(rows, PackedBatch) else rows
        padded = packed is None and tokens != input_ids_nl.numel()
        chosen_nl = self._is_gene[input_ids_nl] & (chance_nl < self._probability)
        # chance / probability of a chosen token is even in [0, 1): it decides what becomes of the token
        fate_nl = chance_nl / self._probability
        masked_nl = torch.where(chosen_nl & (fate_nl < 0.8), self._mask_id, input_ids_nl)
        masked_nl = torch.where(chosen_nl & (fate_nl >= 0.8) & (fate_nl < 0.9), self._genes[drawn_nl], masked_nl)
        return MaskedBatch(masked_nl, torch.where(chosen_nl, input_ids_nl, NOT_MASKED), padded, packed)


class MaskedGeneLoss(nn.Module):
    """A `BertForMaskedLM` and its loss, with logits computed only where a gene is predicted.

    Parameters
    ----------
    model
        The model to train; its attention becomes `cellray.model.attention`, its weights and results stay.
    vocabulary
        Tells padding.
    """

    def __init__(self, model: BertForMaskedLM, vocabulary: GeneVocabulary) -> None:
        super().__init__()
        use_attention(model)
        self.model = model
        self._pad_id = vocabulary.special_tokens[PAD]

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy over the masked positions, in nats, and their number."""
        predicted_t = (batch.labels_nl != NOT_MASKED).flatten()
        place_m = predicted_t.nonzero().squeeze(1)  # waits for a GPU: before the encoder has work queued, not after
        hidden_md = self._hidden(batch).index_select(0, place_m)
        head = self.model.cls.predictions
        labels_m = batch.labels_nl.flatten().index_select(0, place_m)
        decoder = head.decoder
        loss = linear_cross_entropy(head.transform(hidden_md), decoder.weight, decoder.bias, labels_m)
        return loss, predicted_t.sum()

    def _hidden(self, batch: MaskedBatch) -> Tensor:
        """Return all tokens' hidden states, cells one behind the other. Shape (tokens, hidden)."""
        bert = self.model.bert
        if batch.packed is not None:
            return packed_hidden(bert, replace(batch.packed, input_ids_nl=batch.input_ids_nl))
        # a mask of four axes is taken as it is; of one of two axes transformers would look whether it hides anything
        mask_n11l = (batch.input_ids_nl != self._pad_id)[:, None, None] if batch.padded else None
        hidden_nld: Tensor = bert(input_ids=batch.input_ids_nl, attention_mask=mask_n11l).last_hidden_state
        return hidden_nld.flatten(0, 1)


def step_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """Return the random generator of one step on one rank: a function of these numbers alone."""
    generator = torch.Generator(device=device)
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % (1 << 63)
    generator.manual_seed(mixed)
    return generator


def hashed(seed: int, cell: Tensor, place: Tensor) -> Tensor:
    """Return 63 random bits for each token of each cell, as int64: a function of these numbers alone.

    Counting in steps of the golden ratio, mixed by the finaliser of splitmix64 (Steele et al. 2014).
    """
    x = cell * _signed(0xD1342543DE82EF95) + place * _signed(0x9E3779B97F4A7C15) + _signed(seed * 0x2545F4914F6CDD1D)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)  # the shift of an unsigned number
    return (x ^ ((x >> 31) & ((1 << 33) - 1))) & ((1 << 63) - 1)


def _signed(value: int) -> int:
    """Return the int64 with the last 64 bits of a number."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
