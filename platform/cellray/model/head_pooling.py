"""From hidden states to the one vector a cell that heads are applied to: a part of the model, perhaps with weights.

Embeddings for their own sake are made by `cellray.model.pooling`, which has no weights.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cellray.errors import InputError
from cellray.model.pooling import CELL_POOLINGS
from cellray.vocabulary import CLS, GeneVocabulary

HeadPooling = Literal["cell", "cls", "attention"]
HEAD_POOLINGS: tuple[str, ...] = get_args(HeadPooling)


class PlainPooling(nn.Module):
    """A pooling without weights.

    Parameters
    ----------
    function
        From hidden states and which tokens are genes to one vector a cell.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, hidden_nld: Tensor, gene_nl: Tensor) -> Tensor:
        """Pool. Shape (cells, hidden), float32."""
        return self._function(hidden_nld, gene_nl)


class AttentionPooling(nn.Module):
    """A weighted mean over the gene tokens of a cell: softmax of a learned query's products with their hidden states.

    The query begins at zero, so training starts from the plain mean over genes. (Attention with one learned query:
    Lin et al. 2017; scaled as in Vaswani et al. 2017.)

    Parameters
    ----------
    width
        Size of a hidden state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_nld: Tensor, gene_nl: Tensor) -> Tensor:
        """Pool; special tokens and padding have no weight. Shape (cells, hidden), float32."""
        hidden_nld = hidden_nld.to(torch.float32)
        score_nl = hidden_nld @ self.query / self.query.numel() ** 0.5
        weight_nl = torch.softmax(score_nl.masked_fill(~gene_nl, -torch.inf), dim=1)
        return torch.einsum("nld,nl->nd", hidden_nld, weight_nl)


_MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "cell": lambda width: PlainPooling(CELL_POOLINGS["cell"]),
    "cls": lambda width: PlainPooling(CELL_POOLINGS["cls"]),
    "attention": AttentionPooling,
}


def make_head_pooling(pooling: str, width: int) -> nn.Module:
    """Return the pooling of a name, for hidden states of a width."""
    return _MAKERS[pooling](width)


def check_head_pooling(pooling: str, vocabulary: GeneVocabulary) -> None:
    """Check that a pooling exists and fits the vocabulary.

    Raises
    ------
    InputError
        It is unknown, or `cls` for a vocabulary without `<cls>`.
    """
    if pooling not in HEAD_POOLINGS:
        raise InputError("pooling", f"must be one of {', '.join(HEAD_POOLINGS)}", repr(pooling), "Choose one of them.")
    if pooling == "cls" and CLS not in vocabulary.special_tokens:
        fix = "Use cell or attention."
        raise InputError("pooling cls", f"the vocabulary must have {CLS}", "a V1 vocabulary", fix)
