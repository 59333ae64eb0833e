"""Cheap estimates of what deleting, or moving to the front, each gene of a cell does: all genes at once.

With m a number read out of the cell (`readouts`), and gene j at rank j, the estimated change of m is

    delete:       without_j - dm/dlog g_j + D(j)
    overexpress:  (x_j at the front - x_j) . (dm/dx_j + dm/dx_j where j has moved) / 2 + D(j)

`without_j` is the exact effect of leaving j out of the pooling; g_j is its gate as a key in all layers and heads
(`cellray.model.gates`), 1 now and 0 when it is gone, so that the second term is that of first order; x_j is what enters
the first layer. D(j) is the effect of the others' ranks: those behind a deleted gene move up by one, those before an
overexpressed one down. Moving them one after the other, each adds the change of its x times dm/dx; the derivative is
the mean of those before any and after all have moved (trapezoid rule). At some ranks D is computed exactly, no gene
edited, positions moved; what the sum lacks there is interpolated linearly between them.

Left out: terms of second order in the gate, and that the edited gene's own row reacts, which no one sees once it is
gone; that where an overexpressed gene's slope is taken after its move, `_GROUPS`-th of the genes have moved with it.
Whatever an estimate lacks is what the sample of exact values corrects.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellray.infer.prefilter.readouts import Readout
from cellray.model.encoder import CellEncoder
from cellray.model.gates import gated_layers, placed_embeddings
from cellray.vocabulary import TokenLayout


def _after_deletion(rank_g: Tensor, rank_l: Tensor) -> Tensor:
    """Return how far each token moves when the gene at each rank is gone. Ranks x tokens."""
    return -(rank_l > rank_g[:, None]).long()


def _after_overexpression(rank_g: Tensor, rank_l: Tensor) -> Tensor:
    """Return how far each token moves when the gene at each rank comes to the front. Ranks x tokens."""
    return ((rank_l >= 0) & (rank_l < rank_g[:, None])).long()


_MOVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "delete": _after_deletion,
    "overexpress": _after_overexpression,
}
ESTIMATED = tuple(_MOVES)
"""Kinds of perturbations that there are estimates of."""
_GROUPS = 4
"""Overexpressed genes' slopes after their moves are taken together, every fourth gene's at once."""


def applicable(kind: str, genes: int) -> slice:
    """Return the ranks whose perturbation gives a copy: the gene that is first already cannot come to the front."""
    return slice(0, genes if genes > 1 else 0) if kind == "delete" else slice(1, genes)


def passes(kind: str, numbers: int, grid: int) -> int:
    """Return the forward passes that the estimates of a cell cost, a backward pass counted as two.

    Parameters
    ----------
    numbers
        How many are read out of the cell.
    grid
        See `Estimator`.
    """
    rows = 2 + (_GROUPS if kind == "overexpress" else 0)
    return rows * (1 + 2 * numbers) + grid


@dataclass(frozen=True)
class Estimator:
    """Estimates the measures of a cell's perturbations.

    Attributes
    ----------
    encoder
        Layers up to the wanted one, float32 or float64.
    layout
        Of the token rows.
    kind
        `delete` or `overexpress`.
    readout
        What is measured.
    grid
        Ranks between the ends at which the effect of the moved ranks is computed exactly.
    token_budget
        Tokens of grid rows computed at once.
    """

    encoder: CellEncoder
    layout: TokenLayout
    kind: str
    readout: Readout
    grid: int
    token_budget: int

    @property
    def passes(self) -> int:
        """Forward passes that a cell's estimates cost; a backward pass counts as two."""
        return passes(self.kind, self.readout.count, self.grid)

    def __call__(self, genes_n: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Return the estimated measure for each rank: shift or similarity; 0 or 1 where nothing would change.

        Parameters
        ----------
        genes_n
            The cell's genes in rank order, without special tokens.
        """
        nothing = self.readout.measure(torch.zeros(len(genes_n), self.readout.count)).numpy().astype(np.float32)
        if len(genes_n) < 2:
            return nothing
        estimate_n = self.readout.measure(self._changes(genes_n)).cpu().numpy().astype(np.float32)
        kept = applicable(self.kind, len(genes_n))
        nothing[kept] = estimate_n[kept]
        return nothing

    def _changes(self, genes_n: NDArray[np.uint16]) -> Tensor:
        """Return the change of each number for each gene. Genes x numbers, float64."""
        readout = self.readout.of_cell(genes_n)
        cell = _Cell.of(genes_n, self.layout, next(self.encoder.parameters()).device)
        bert, genes = self.encoder.bert, len(genes_n)
        ends = torch.tensor([genes, 0] if self.kind == "delete" else [0, genes - 1], device=cell.rank_l.device)
        position_rl = self._moved(cell, ends)  # as it is, and all moved
        if self.kind == "overexpress":
            position_rl = torch.cat([position_rl, self._grouped(cell)])
        with torch.no_grad():
            placed_rld = placed_embeddings(bert, cell.ids_1l, position_rl)
            front_ld = placed_embeddings(bert, cell.ids_1l, torch.full_like(cell.position_1l, cell.first))[0]
        leaf_rld = placed_rld.clone().requires_grad_()
        log_gate_rl = torch.zeros_like(placed_rld[..., 0]).requires_grad_()
        hidden_rld = gated_layers(bert, leaf_rld, log_gate_rl)
        number_rk = readout(hidden_rld, cell.gene_l)
        own, moved = [], []
        for k in range(readout.count):
            leaves = [leaf_rld, log_gate_rl]  # before the first layer there are no gates: then their slopes are 0
            slopes = torch.autograd.grad(number_rk[:, k].sum(), leaves, retain_graph=True, materialize_grads=True)
            slope_rld, gate_rl = (each.double() for each in slopes)
            moved.append((slope_rld[:2].mean(0) * (placed_rld[1] - placed_rld[0]).double()).sum(1))
            own_l = (
                -gate_rl[0] if self.kind == "delete" else _jumps(slope_rld, (front_ld - placed_rld[0]).double(), cell)
            )
            own.append(own_l[cell.gene_l])
        own_nk = torch.stack(own, dim=1)
        if self.kind == "delete":
            own_nk = own_nk + readout.without(hidden_rld[0].detach(), cell.gene_l)
        return own_nk + self._of_ranks(readout, cell, torch.stack(moved, dim=1), number_rk[:2].detach())

    @staticmethod
    def _grouped(cell: "_Cell") -> Tensor:
        """Return positions with the genes of one group after the other at the front. Groups x tokens."""
        group_g1 = torch.arange(_GROUPS, device=cell.rank_l.device)[:, None]
        return torch.where((cell.rank_l % _GROUPS == group_g1) & cell.gene_l, cell.first, cell.position_1l)

    def _moved(self, cell: "_Cell", rank_g: Tensor) -> Tensor:
        """Return the positions of all tokens when the gene at each rank is edited, its own left as it is."""
        return cell.position_1l + _MOVES[self.kind](rank_g, cell.rank_l)

    @torch.no_grad()
    def _of_ranks(self, readout: Readout, cell: "_Cell", moved_lk: Tensor, ends_2k: Tensor) -> Tensor:
        """Return D: the effect of the others' ranks for each gene's. Genes x numbers."""
        genes = int(cell.gene_l.sum())
        backward = self.kind == "delete"
        order_lk = moved_lk.flip(0) if backward else moved_lk
        before_lk = order_lk.cumsum(0) - order_lk  # of all tokens that have moved before this one
        sum_nk = (before_lk.flip(0) if backward else before_lk)[cell.gene_l]
        inner = np.unique(np.linspace(0, genes - 1, self.grid + 2).round().astype(np.int64))[1:-1]
        last = genes - 1
        exact_gk = torch.cat([ends_2k[:0], *self._exactly(readout, cell, inner)]) - ends_2k[0]
        all_moved_k = ends_2k[1] - ends_2k[0]
        lacking = (exact_gk - sum_nk[inner]).cpu().numpy()
        at_all, at_none = (0, last) if backward else (last, 0)
        # where none of the genes moves there is nothing to correct
        known = {at_all: (all_moved_k - sum_nk[at_all]).cpu().numpy(), at_none: np.zeros(len(all_moved_k))}
        ranks = np.r_[0, inner, last]
        values_gk = np.vstack([known[0], lacking, known[last]])
        between_nk = np.stack([np.interp(np.arange(genes), ranks, column) for column in values_gk.T], axis=1)
        return sum_nk + torch.from_numpy(between_nk).to(sum_nk)

    def _exactly(self, readout: Readout, cell: "_Cell", ranks: NDArray[np.int64]) -> list[Tensor]:
        """Return the numbers with positions moved as for the gene at each rank, no gene edited."""
        size, found = max(1, self.token_budget // len(cell.rank_l)), []
        for start in range(0, len(ranks), size):
            rank_g = torch.from_numpy(ranks[start : start + size]).to(cell.rank_l.device)
            placed = placed_embeddings(self.encoder.bert, cell.ids_1l, self._moved(cell, rank_g))
            found.append(readout(gated_layers(self.encoder.bert, placed), cell.gene_l))
        return found


def _jumps(slope_rld: Tensor, jump_ld: Tensor, cell: "_Cell") -> Tensor:
    """Return what each token's own move to the front does, by its slopes before and after. Shape (tokens,)."""
    after_ld = slope_rld[2 + cell.rank_l % _GROUPS, torch.arange(len(cell.rank_l), device=cell.rank_l.device)]
    return ((slope_rld[0] + after_ld) / 2 * jump_ld).sum(1)


@dataclass(frozen=True)
class _Cell:
    """A token row with its special tokens.

    Attributes
    ----------
    rank_l
        Rank of each token's gene; -1 for `<cls>`, the number of genes for `<eos>`.
    first
        Position of the first gene.
    """

    ids_1l: Tensor
    position_1l: Tensor
    rank_l: Tensor
    gene_l: Tensor
    first: int

    @classmethod
    def of(cls, genes_n: NDArray[np.uint16], layout: TokenLayout, device: torch.device) -> "_Cell":
        front = [] if layout.cls_id is None else [layout.cls_id]
        end = [] if layout.eos_id is None else [layout.eos_id]
        ids = torch.tensor([*front, *genes_n.tolist(), *end], device=device)
        rank_l = torch.arange(len(ids), device=device) - len(front)
        gene_l = (rank_l >= 0) & (rank_l < len(genes_n))
        return cls(ids[None], torch.arange(len(ids), device=device)[None], rank_l, gene_l, len(front))
