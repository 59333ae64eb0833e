"""The plan of a pretraining: which model is trained on which cells."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BertForMaskedLM

from cellray.data.corpora.corpus import Corpus
from cellray.model.device import is_accelerator
from cellray.model.masked_lm import load_masked_lm, new_masked_lm
from cellray.models import ModelReference
from cellray.train.contracts import Objective
from cellray.train.masked_genes import MaskedGenes
from cellray.train.order import RandomPart, Selection
from cellray.train.precision import autocast_dtype
from cellray.train.worker import TrainPlan


@dataclass(frozen=True, kw_only=True)
class PretrainPlan(TrainPlan):
    """What the workers of a pretraining are told, beside what all are told.

    Attributes
    ----------
    preset, model
        The model to begin with, see `PretrainConfig`.
    held_fraction
        Share of the cells held out.
    mask_probability
        Share of the genes that are predicted.
    weight_decay, learning_rate
        AdamW's.
    """

    preset: str
    model: ModelReference | None
    held_fraction: float
    mask_probability: float
    weight_decay: float
    learning_rate: float

    def initial(self, corpus: Corpus) -> BertForMaskedLM:
        """Return the model with the weights that training starts from, on the CPU."""
        if self.model is None:
            size = corpus.manifest.encoding.input_size
            return new_masked_lm(self.preset, corpus.vocabulary, size, self.loop.seed)
        return load_masked_lm(self.model.open(), self.loop.seed)

    def objective(self, corpus: Corpus, device: torch.device, rank: int) -> Objective:
        """Return the masked-gene objective."""
        model = self.initial(corpus)
        model.to(device)  # type: ignore[arg-type]  # transformers' annotation hides that of torch
        self.prepared(model)
        return MaskedGenes(model, corpus.vocabulary, self.mask_probability, self.loop.seed, packed=self._packed(device))

    def _packed(self, device: torch.device) -> bool:
        """Tell whether cells are put into one row; the kernels for it compute in bf16."""
        quick = is_accelerator(device) and autocast_dtype(self.precision, device) is torch.bfloat16
        return self.group.packing == "on" or (self.group.packing == "auto" and quick)

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Spare biases and LayerNorm weights the weight decay, as is usual for BERT."""
        decayed = [p for p in module.parameters() if p.ndim > 1]
        spared = [p for p in module.parameters() if p.ndim <= 1]
        rate = {"lr": self.learning_rate}
        return [
            {"params": decayed, "weight_decay": self.weight_decay, **rate},
            {"params": spared, "weight_decay": 0.0, **rate},
        ]

    def selections(self) -> tuple[Selection, Selection]:
        """Hold cells out by chance."""
        fraction, seed = self.held_fraction, self.loop.seed
        return RandomPart(fraction, seed, held=False), RandomPart(fraction, seed, held=True)
