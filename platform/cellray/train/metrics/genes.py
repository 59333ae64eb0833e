"""Figures of gene classification: for each token that was met, and for each gene over all its tokens.

A gene's probabilities are the mean of those of its tokens, one for each cell it was seen in. Sums are kept, so that
batches and workers can be added up in any order, in constant memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.train.metrics.classification import ClassificationMetrics, classification_metrics
from cellray.train.metrics.nan_json import finite_or_null

TOKEN_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class GeneSums:
    """What is added up over the tokens of each gene.

    Attributes
    ----------
    probability_vc
        Sum of the probabilities of its tokens. Vocabulary x classes.
    given_vc
        Tokens that were given each class. Vocabulary x classes.
    """

    probability_vc: NDArray[np.float64]
    given_vc: NDArray[np.int64]

    @classmethod
    def zero(cls, tokens: int, classes: int) -> Self:
        """Return empty sums for a vocabulary."""
        return cls(np.zeros((tokens, classes)), np.zeros((tokens, classes), np.int64))

    def add(self, token_t: NDArray[np.integer], probability_tc: NDArray[np.floating]) -> None:
        """Add some tokens.

        Parameters
        ----------
        token_t
            Their ids. Shape (tokens,).
        probability_tc
            Tokens x classes.
        """
        np.add.at(self.probability_vc, token_t, probability_tc)
        np.add.at(self.given_vc, (token_t, probability_tc.argmax(axis=1)), 1)

    def merge(self, other: Self) -> Self:
        """Return the sums of both."""
        return type(self)(self.probability_vc + other.probability_vc, self.given_vc + other.given_vc)

    @property
    def seen_v(self) -> NDArray[np.int64]:
        """Tokens of each gene. Shape (vocabulary,)."""
        return np.asarray(self.given_vc.sum(axis=1))

    def mean_gc(self, token_g: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the mean probabilities of some genes, NaN for a gene that was never seen. Genes x classes."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.probability_vc[token_g] / self.seen_v[token_g, None])


@dataclass(frozen=True)
class GeneMetrics:
    """Figures of one test part of genes.

    Attributes
    ----------
    per_gene
        Each gene counts once.
    per_token
        Each token counts once: share of right answers, by class and over all.
    tokens, never_seen
        Tokens that were scored, and genes of the test part that no cell held.
    table
        A row for each gene that was seen: its name and token id, how many tokens of it there were, its class, the
        class it was given, and the mean probability of each class.
    """

    per_gene: ClassificationMetrics
    per_token: dict[str, float]
    tokens: int
    never_seen: int
    table: pd.DataFrame

    @property
    def mean_gc(self) -> NDArray[np.float64]:
        """Mean probabilities of the genes of `table`. Genes x classes."""
        return self.table[[f"p: {name}" for name in self.per_gene.classes]].to_numpy(np.float64)

    @property
    def code_g(self) -> NDArray[np.int32]:
        """Class of each gene of `table`. Shape (genes,)."""
        return np.array([self.per_gene.classes.index(name) for name in self.table["class"]], np.int32)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file; what is undefined is null."""
        return {
            "per_gene": self.per_gene.to_json(),
            "per_token": finite_or_null(self.per_token),
            "tokens": self.tokens,
            "never_seen": self.never_seen,
        }


def gene_metrics(
    sums: GeneSums,
    genes: Sequence[str],
    token_g: NDArray[np.integer],
    code_g: NDArray[np.integer],
    classes: Sequence[str],
    *,
    areas: bool = True,
) -> GeneMetrics:
    """Score the genes of a test part.

    Parameters
    ----------
    sums
        Over all cells that were run.
    genes
        Names of the genes.
    token_g, code_g
        Token id and class of each. Shape (genes,).
    classes
        Names.
    areas
        See `cellray.train.metrics.classification.classification_metrics`.
    """
    seen = sums.seen_v[token_g] > 0
    token, code = np.asarray(token_g)[seen], np.asarray(code_g)[seen]
    mean_gc = sums.mean_gc(token)
    names = [genes[g] for g in np.flatnonzero(seen).tolist()]
    table = pd.DataFrame({"gene": names, "token": token, "tokens": sums.seen_v[token]})
    table["class"] = [classes[c] for c in code]
    table["given"] = [classes[c] for c in mean_gc.argmax(axis=1)]
    for c, name in enumerate(classes):
        table[f"p: {name}"] = mean_gc[:, c]
    return GeneMetrics(
        per_gene=classification_metrics(mean_gc, code, classes, areas=areas),
        per_token=_per_token(sums.given_vc[token], code, len(classes)),
        tokens=int(sums.seen_v[token].sum()),
        never_seen=int((~seen).sum()),
        table=table,
    )


def _per_token(given_gc: NDArray[np.int64], code_g: NDArray[np.integer], c: int) -> dict[str, float]:
    """Return accuracy, balanced accuracy and macro F1 from the confusion matrix of tokens."""
    confusion_cc = np.zeros((c, c), np.int64)
    np.add.at(confusion_cc, code_g, given_gc)
    support, predicted, right = confusion_cc.sum(axis=1), confusion_cc.sum(axis=0), confusion_cc.diagonal()
    there = support > 0
    if not there.any():
        return dict.fromkeys(TOKEN_FIGURES, float("nan"))
    return {
        "accuracy": float(right.sum() / support.sum()),
        "balanced_accuracy": float((right[there] / support[there]).mean()),
        "macro_f1": float((2 * right[there] / (support + predicted)[there]).mean()),
    }
