"""From hidden states to embeddings, in float32 whatever the model computed in."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from cellray.errors import InputError
from cellray.vocabulary import CLS, GeneVocabulary

Pooling = Literal["cell", "cls", "gene"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def is_gene_token(vocabulary: GeneVocabulary, device: torch.device | str = "cpu") -> Tensor:
    """Return for each token id whether it is a gene, not a special token. Shape (tokens,), bool."""
    table = torch.ones(len(vocabulary), dtype=torch.bool, device=device)
    table[list(vocabulary.special_tokens.values())] = False
    return table


def mean_over_genes(hidden_nld: Tensor, gene_nl: Tensor) -> Tensor:
    """Return the mean hidden state over the gene tokens of each cell. Shape (cells, hidden), float32."""
    weight_nl = gene_nl.to(torch.float32)
    total_nd = torch.einsum("nld,nl->nd", hidden_nld.to(torch.float32), weight_nl)
    return total_nd / weight_nl.sum(dim=1, keepdim=True)


def cls_row(hidden_nld: Tensor, gene_nl: Tensor) -> Tensor:  # one signature for all cell poolings
    """Return the hidden state of `<cls>`, the first token. Shape (cells, hidden), float32."""
    return hidden_nld[:, 0].to(torch.float32)


CELL_POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cell": mean_over_genes, "cls": cls_row}
"""Poolings that give one embedding a cell; `gene` keeps each gene token's own row."""


def check_pooling(pooling: str, vocabulary: GeneVocabulary) -> None:
    """Check that a pooling exists and fits the vocabulary.

    Raises
    ------
    InputError
        It is unknown, or `cls` for a vocabulary without `<cls>`.
    """
    if pooling not in POOLINGS:
        raise InputError("--pooling", f"must be one of {', '.join(POOLINGS)}", repr(pooling), "Choose one of them.")
    if pooling == "cls" and CLS not in vocabulary.special_tokens:
        raise InputError("--pooling cls", f"the vocabulary must have {CLS}", "a V1 vocabulary", "Use --pooling cell.")
