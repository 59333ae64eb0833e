"""Which perturbations are evaluated exactly: all of the most promising genes, and a random sample of the others.

Genes are chosen for the screen as a whole, by the mean of their estimates over the cells that express them, since that
is what a screen's table ranks. Each other perturbation is drawn on its own (Poisson sampling): a number computed from
the seed, the cell's genes and the gene must lie below the probability. So neither the units nor the actors have a say,
and the probabilities are known; cells with the same genes in the same order get the same sample.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellray.infer.design import Design
from cellray.infer.prefilter.estimate import applicable
from cellray.schema import request_digest
from cellray.statistics.sampling import mix64

CHOSEN, SAMPLED = "chosen", "sampled"


@dataclass(frozen=True)
class Means:
    """Estimates of a screen, summed over cells, by token id.

    Attributes
    ----------
    count_v
        Cells in which the gene's perturbation applies.
    sum_v
        Of the estimates.
    """

    count_v: NDArray[np.int64]
    sum_v: NDArray[np.float64]

    @classmethod
    def zeros(cls, tokens: int) -> "Means":
        """Return those of no cell."""
        return cls(np.zeros(tokens, np.int64), np.zeros(tokens))

    def add(self, token_r: NDArray[np.integer], estimate_r: NDArray[np.floating]) -> None:
        """Take rows; each is added in turn, so that only their order matters and not how they are cut."""
        np.add.at(self.count_v, token_r, 1)
        np.add.at(self.sum_v, token_r, estimate_r.astype(np.float64))


def choose_genes(means: Means, evaluations: int, *, highest: bool, least: int = 1) -> NDArray[np.int64]:
    """Return the token ids of the most promising genes, best first, that so many evaluations suffice for.

    Parameters
    ----------
    evaluations
        Most perturbations, over all cells.
    highest
        Whether a high mean is promising, as of shifts towards a goal; or a low one, as of similarities.
    least
        Cells that a gene must have; the means of few cells are the most extreme ones.
    """
    there = np.flatnonzero(means.count_v >= max(least, 1))
    mean = means.sum_v[there] / means.count_v[there]
    best = there[np.lexsort((there, -mean if highest else mean))]
    return best[np.cumsum(means.count_v[best]) <= evaluations]


@dataclass(frozen=True)
class PrefilteredDesign(Design):
    """Of every gene of a cell those that are evaluated exactly.

    Attributes
    ----------
    chosen_v
        By token id whether the gene is evaluated in all its cells.
    sample
        How many others are, a cell, in expectation.
    seed
        Of the sample.
    kind
        What is done to the genes.
    """

    chosen_v: NDArray[np.bool_] | None = None
    sample: int = 0
    seed: int = 0
    kind: str = "delete"

    @classmethod
    def of(cls, chosen: NDArray[np.int64], tokens: int, sample: int, seed: int, kind: str) -> "PrefilteredDesign":
        """Return the design that evaluates some genes, by their token ids, and a sample of the others."""
        chosen_v = np.zeros(tokens, bool)
        chosen_v[chosen] = True
        nothing = np.empty((0, 1), np.int32)
        return cls((), nothing, every_gene=True, chosen_v=chosen_v, sample=sample, seed=seed, kind=kind)

    @property
    def digest(self) -> str:
        """Digest of everything that decides the perturbations."""
        assert self.chosen_v is not None
        chosen = np.flatnonzero(self.chosen_v).tolist()
        return request_digest(chosen=chosen, sample=self.sample, seed=self.seed, kind=self.kind)

    def inclusion(self, genes_n: NDArray[np.uint16]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return for each rank of a cell whether it is evaluated, and the probability of that: 1 for chosen genes."""
        assert self.chosen_v is not None
        there_n = np.zeros(len(genes_n), bool)
        there_n[applicable(self.kind, len(genes_n))] = True
        chosen_n = self.chosen_v[genes_n]
        others = int((there_n & ~chosen_n).sum())
        probability_n = np.where(chosen_n, 1.0, min(1.0, self.sample / max(others, 1))) * there_n
        digest = hashlib.sha256(genes_n.astype("<u2").tobytes()).digest()
        salt = mix64(np.frombuffer(digest[:8], "<u8") ^ mix64(np.array([self.seed], np.uint64)))
        uniform_n = (mix64(salt ^ mix64(genes_n.astype(np.uint64))) >> np.uint64(11)) / 2.0**53
        return uniform_n < probability_n, probability_n

    def of_cell(
        self, genes_n: NDArray[np.uint16], first: int, stop: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the genes that are evaluated of the ranks from `first` to before `stop`."""
        evaluated_n, _ = self.inclusion(genes_n)
        own = genes_n[first:stop][evaluated_n[first:stop]]
        return own.astype(np.int64), own.astype(np.int32)[:, None]
