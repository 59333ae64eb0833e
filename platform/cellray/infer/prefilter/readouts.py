"""What is read out of a cell's hidden states: numbers whose changes tell the measure of a perturbation.

Of a goal state it is one number, the cosine with it. A similarity has no slope where nothing is perturbed, so there the
numbers are random projections of the very embedding whose squared change is the dissimilarity:

- `cls`: 1 - cos(e', e) = |u' - u|^2 / 2, u the unit vector of the `<cls>` row;
- `cell`: mean over genes of 1 - cos(h'_i, h_i) = |u' - u|^2 / 2, u the unit vectors of all N genes in a row, divided by
  sqrt(N).

The mean of the squares of K projections on vectors w with E[w w^T] = 1 is |u' - u|^2 in expectation (Hutchinson 1990),
with a relative standard deviation of about sqrt(2 / K), less for orthogonal vectors.
"""

import hashlib
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize


class Readout(Protocol):
    """Numbers of a cell's hidden states.

    Attributes
    ----------
    count
        How many.
    """

    count: int

    def of_cell(self, genes_n: NDArray[np.uint16]) -> "Readout":
        """Return what is read out of the cell with these genes."""
        ...

    def __call__(self, hidden_nld: Tensor, gene_l: Tensor) -> Tensor:
        """Return the numbers of copies of one cell. Copies x numbers, float64.

        Parameters
        ----------
        hidden_nld
            Copies x tokens x hidden.
        gene_l
            Which tokens are genes, bool.
        """
        ...

    def without(self, hidden_ld: Tensor, gene_l: Tensor) -> Tensor:
        """Return what leaving each gene out of the pooling, and nothing else, changes. Genes x numbers, float64."""
        ...

    def measure(self, change_nk: Tensor) -> Tensor:
        """Return the measure that changes of the numbers tell. Shape (perturbations,)."""
        ...


class Goal:
    """The cosine with a state's embedding; the measure is its change."""

    count = 1

    def __init__(self, state_d: Tensor, *, cls: bool) -> None:
        self._unit_d, self._cls = normalize(state_d.double(), dim=0), cls

    def of_cell(self, genes_n: NDArray[np.uint16]) -> "Goal":
        """Return this one: it is the same for all cells."""
        return self

    def __call__(self, hidden_nld: Tensor, gene_l: Tensor) -> Tensor:
        """Return cos(e, state)."""
        pooled_nd = hidden_nld[:, 0].double() if self._cls else hidden_nld[:, gene_l].double().mean(1)
        return (normalize(pooled_nd, dim=1) @ self._unit_d)[:, None]

    def without(self, hidden_ld: Tensor, gene_l: Tensor) -> Tensor:
        """Return cos(e_j, state) - cos(e, state), e_j the mean over the other genes; 0 where `<cls>` is read."""
        own_nd = hidden_ld[gene_l].double()
        if self._cls:
            return own_nd.new_zeros(len(own_nd), 1)
        left_nd = own_nd.sum(0) - own_nd  # the number of genes does not turn it
        return (normalize(left_nd, dim=1) @ self._unit_d - normalize(own_nd.sum(0), dim=0) @ self._unit_d)[:, None]

    def measure(self, change_nk: Tensor) -> Tensor:
        """Return the change itself."""
        return change_nk[:, 0]


class Likeness:
    """Random projections of the unit embedding; the measure is the similarity to the unperturbed cell."""

    def __init__(self, probes: int, width: int, seed: int, *, cls: bool) -> None:
        self.count = min(probes, width) if cls else probes
        self._width, self._seed, self._cls = width, seed, cls

    def of_cell(self, genes_n: NDArray[np.uint16]) -> "Likeness":
        """Return one whose projections depend on the seed and the cell, so that what they miss averages out."""
        digest = hashlib.sha256(self._seed.to_bytes(8, "little") + genes_n.astype("<u2").tobytes()).digest()
        return Likeness(self.count, self._width, int.from_bytes(digest[:7], "little"), cls=self._cls)

    def __call__(self, hidden_nld: Tensor, gene_l: Tensor) -> Tensor:
        """Return the projections."""
        probe_kld = self._probes(int(gene_l.sum())).to(hidden_nld.device)
        if self._cls:
            unit_nd = normalize(hidden_nld[:, 0].double(), dim=1)
            projected_nk: Tensor = unit_nd @ probe_kld[:, 0].T
            return projected_nk
        unit_nld = normalize(hidden_nld[:, gene_l].double(), dim=2) / probe_kld.shape[1] ** 0.5
        number_nk: Tensor = torch.einsum("nld,kld->nk", unit_nld, probe_kld)
        return number_nk

    def _probes(self, genes: int) -> Tensor:
        """Return the vectors of a cell, orthogonal for `cls`, of signs else."""
        generator = torch.Generator().manual_seed(self._seed)
        if not self._cls:
            signs = torch.randint(0, 2, (self.count, genes, self._width), generator=generator)
            sign_kld: Tensor = signs.double() * 2 - 1
            return sign_kld
        square = torch.randn(self._width, self.count, generator=generator, dtype=torch.float64)
        orthogonal: Tensor = torch.linalg.qr(square).Q
        probe_kd: Tensor = orthogonal.T * self._width**0.5
        return probe_kd[:, None]

    def without(self, hidden_ld: Tensor, gene_l: Tensor) -> Tensor:
        """Return zeros: each gene is compared with itself."""
        return hidden_ld.new_zeros(int(gene_l.sum()), self.count, dtype=torch.float64)

    def measure(self, change_nk: Tensor) -> Tensor:
        """Return 1 - half the mean square."""
        return 1 - change_nk.square().mean(1) / 2
