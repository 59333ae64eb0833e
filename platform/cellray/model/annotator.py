"""The model of fine-tuning: an encoder, a pooling and one linear head for each thing it tells.

Neither the vocabulary head nor layers that no head needs are ever built. Directories are `annotator_directory`'s.
"""

import hashlib
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from transformers import BertModel

from cellray.model.encoder import first_hidden_states, hidden_states
from cellray.model.head_pooling import make_head_pooling
from cellray.model.heads import HeadSpec, check_heads
from cellray.model.pooling import is_gene_token
from cellray.model.threads import steady_sums
from cellray.vocabulary import PAD, GeneVocabulary

_INITIAL_STD = 0.02  # BERT's own


class Heads(nn.Module):
    """One linear layer a head, by name.

    An `nn.ModuleDict` would refuse names such as `type`, which cells do have a column of.

    Parameters
    ----------
    specs
        What there is to tell.
    width
        Size of a hidden state.
    seed
        Of the weights; each head's depend on its own name alone.
    """

    def __init__(self, specs: Sequence[HeadSpec], width: int, seed: int) -> None:
        super().__init__()
        for spec in specs:
            self._modules[spec.name] = _new_head(spec, width, seed)

    def __getitem__(self, name: str) -> nn.Linear:
        head = self._modules[name]
        assert isinstance(head, nn.Linear)
        return head


def _new_head(spec: HeadSpec, width: int, seed: int) -> nn.Linear:
    digest = hashlib.sha256(f"{seed} {spec.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    head = nn.Linear(width, spec.width, device="meta").to_empty(device="cpu")  # draws nothing from the global generator
    with torch.no_grad():
        head.weight.normal_(0, _INITIAL_STD, generator=generator)
        head.bias.zero_()
    return head


class AnnotatedEncoder(nn.Module):
    """Token rows to what the heads tell of cells and genes.

    Names of the weights: `bert.*` as in transformers, `pooling.*`, `heads.NAME.weight` and `heads.NAME.bias`.

    Parameters
    ----------
    bert
        The embedding layer and the transformer layers that are used.
    specs
        What there is to tell.
    pooling
        `cell`, `cls` or `attention`: the vector a cell that cell-level heads are applied to.
    vocabulary
        Tells genes from special tokens.
    dropout
        Of the pooled vector (cell level) or the hidden states (gene level), in training.
    seed
        Of new heads.
    emb_layer
        Which hidden state of the parent model `bert` puts out, for the record.
    """

    def __init__(
        self,
        bert: BertModel,
        specs: Sequence[HeadSpec],
        pooling: str,
        vocabulary: GeneVocabulary,
        *,
        dropout: float = 0.0,
        seed: int = 0,
        emb_layer: int = 0,
    ) -> None:
        super().__init__()
        check_heads(specs)
        self.specs, self.pooling_name, self.emb_layer = tuple(specs), pooling, emb_layer
        self.pad_id = vocabulary.special_tokens[PAD]
        self.bert = bert
        self.pooling = make_head_pooling(pooling, self.width)
        self.heads = Heads(specs, self.width, seed)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("gene_v", is_gene_token(vocabulary), persistent=False)

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.bert.config.hidden_size)

    def spec(self, name: str) -> HeadSpec:
        """Return the description of a head."""
        return next(spec for spec in self.specs if spec.name == name)

    def gene_positions(self, input_ids_nl: Tensor) -> Tensor:
        """Return which tokens are genes. Shape (cells, tokens), bool."""
        gene_v: Tensor = self.get_buffer("gene_v")
        return gene_v[input_ids_nl]

    def forward(self, input_ids_nl: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the logits of each head, in float32.

        Parameters
        ----------
        input_ids_nl
            Cells x tokens, int64, padded at the end.
        names
            Heads to compute, default: all.

        Returns
        -------
        dict[str, Tensor]
            For a classification cells x classes, or cells x tokens x classes at gene level (special tokens and padding
            are meaningless); for a regression, standardised, the same without classes.
        """
        wanted = [spec for spec in self.specs if names is None or spec.name in names]
        states = self._states(input_ids_nl, {spec.level for spec in wanted})
        no_autocast = torch.autocast(input_ids_nl.device.type, enabled=False)  # heads compute in float32
        with no_autocast, steady_sums(len(input_ids_nl)):
            dropped = {level: self.dropout(state) for level, state in states.items()}
            logits = {spec.name: self.heads[spec.name](dropped[spec.level]) for spec in wanted}
        return {spec.name: logits[spec.name] if spec.classes else logits[spec.name].squeeze(-1) for spec in wanted}

    def _states(self, input_ids_nl: Tensor, levels: Collection[str]) -> dict[str, Tensor]:
        """Return what the heads of each level are applied to, in float32: a vector a cell, or a vector a token."""
        if levels == {"cell"} and self.pooling_name == "cls":
            return {"cell": first_hidden_states(self.bert, input_ids_nl, self.pad_id).float()}
        hidden_nld = hidden_states(self.bert, input_ids_nl, self.pad_id)
        with torch.autocast(input_ids_nl.device.type, enabled=False):
            states = {"gene": hidden_nld.float()}
            if "cell" in levels:
                states["cell"] = self.pooling(hidden_nld, self.gene_positions(input_ids_nl))
        return {level: states[level] for level in sorted(levels)}
