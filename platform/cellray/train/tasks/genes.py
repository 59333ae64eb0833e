"""Classification of genes: a model learns the class of some genes from the cells they stand in, is asked for others."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus
from cellray.model.heads import NO_LABEL, HeadSpec
from cellray.train.contracts import Batch
from cellray.train.evaluation import HeadResult, gene_head_result
from cellray.train.folds import TEST, VALIDATION, Folds, SplitConfig, gene_folds
from cellray.train.metrics.classification import AREA_FIGURES, CLASSIFICATION_FIGURES
from cellray.train.metrics.genes import TOKEN_FIGURES, GeneMetrics, GeneSums, gene_metrics
from cellray.train.metrics.nan_json import finite_or_null
from cellray.train.order import RandomPart, Selection
from cellray.train.parallel import gather_from_all
from cellray.train.tasks.contract import ALL, Arrays, Remarks
from cellray.train.tasks.gene_coverage import gene_remarks
from cellray.train.tasks.gene_labels import GeneLabels, gene_labels, read_gene_classes
from cellray.train.tested_rows import gene_rows


class GeneTaskConfig(JobConfig):
    """A task file of gene classification."""

    unit: ClassVar[str] = "genes"
    task: Literal["gene_classification"]
    name: str = Field("gene_class", min_length=1, description="the head's name")
    genes: str = Field(description="table of genes: TOML or JSON of class = [genes], or CSV with columns class, gene")
    class_weights: Literal["none", "balanced"] = "none"
    validation_cells: int = Field(1_000, ge=1, description="most cells run for a validation, about [cells]")
    split: SplitConfig = SplitConfig()

    def open(self, corpus: Corpus, watched: Collection[str] = ()) -> "GeneTask":
        """Read the table and split the genes; `watched` are figures that a training cannot do without."""
        labels = gene_labels(read_gene_classes(self.genes), corpus.vocabulary, self.split.folds, self.genes)
        folds = gene_folds(self.split, labels, self.name, self.genes)
        tokens, cells = len(corpus.vocabulary), corpus.manifest.rows
        return GeneTask(self, labels, folds, tokens, cells, frozenset(watched))


@dataclass
class GeneScores:
    """Sums of answers by gene; constant in size whatever the number of cells."""

    name: str
    asked_v: NDArray[np.bool_]
    sums: GeneSums

    def add(self, batch: Batch, answers: Mapping[str, Tensor]) -> None:
        """Add up the answers for the tokens that were asked for."""
        token_nl = batch.input_ids_nl.numpy()
        asked_nl = self.asked_v[token_nl]
        self.sums.add(token_nl[asked_nl], answers[self.name].float().numpy()[asked_nl])

    def arrays(self, world_size: int) -> Arrays:
        """Return the sums of all workers."""
        total = self.sums
        for other in gather_from_all([self.sums], world_size)[1:] if world_size > 1 else []:
            total = total.merge(other)
        return {"probability": total.probability_vc, "given": total.given_vc}


@dataclass(frozen=True)
class GeneTask:
    """Classes of genes; see `cellray.train.tasks.contract.Task`."""

    config: GeneTaskConfig
    labels: GeneLabels
    folds: Folds
    tokens: int
    cells: int
    watched: frozenset[str] = frozenset()

    def specs(self, fold: int, part: int) -> tuple[HeadSpec, ...]:
        """Return the head."""
        return (HeadSpec(self.config.name, "classification", "gene", self.labels.classes),)

    def selection(self, fold: int, part: int) -> Selection:
        """Return all cells, or some of them for a validation: genes are split, not cells."""
        if part != VALIDATION:
            return RandomPart(0.0, self.config.split.seed, held=False)
        return RandomPart(min(1.0, self.config.validation_cells / self.cells), self.config.split.seed, held=True)

    def targets(self, fold: int, part: int, batch: Batch) -> dict[str, Tensor]:
        """Return the class of each token whose gene is in the part."""
        code_g = np.where(self._chosen(fold, part), self.labels.code_g, NO_LABEL)
        table_v = torch.from_numpy(self.labels.by_token(code_g, self.tokens).astype(np.int64))
        return {self.config.name: table_v[batch.input_ids_nl]}

    def class_weights(self, fold: int, part: int) -> dict[str, Tensor]:
        """Return genes / (classes x genes of the class) if the task is balanced."""
        if self.config.class_weights == "none":
            return {}
        code_g = self.labels.code_g[self._chosen(fold, part)]
        count_c = np.bincount(code_g, minlength=len(self.labels.classes))
        weight_c = len(code_g) / ((count_c > 0).sum() * np.maximum(count_c, 1))
        return {self.config.name: torch.from_numpy(weight_c.astype(np.float32))}

    def head_weights(self) -> dict[str, float]:
        """Return 1 for the only head."""
        return {self.config.name: 1.0}

    def scores(self, fold: int, part: int) -> GeneScores:
        """Return empty sums for the genes of the part."""
        asked_v = self.labels.by_token(self._chosen(fold, part).astype(np.int32), self.tokens) == 1
        return GeneScores(self.config.name, asked_v, GeneSums.zero(self.tokens, len(self.labels.classes)))

    def metrics(self, fold: int, part: int, arrays: Arrays) -> dict[str, float]:
        """Return figures by gene, and by token under `token/NAME`."""
        found = self._scored(fold, part, arrays, areas=not AREA_FIGURES.isdisjoint(self.watched))
        if not found.tokens:
            return dict.fromkeys(self.watched.intersection(self.metric_names()), math.nan)
        return {**found.per_gene.values, **{f"token/{name}": value for name, value in found.per_token.items()}}

    def metric_names(self) -> list[str]:
        """Return the names of the figures by gene and by token."""
        return [*CLASSIFICATION_FIGURES, *(f"token/{name}" for name in TOKEN_FIGURES)]

    def results(self, tested: Sequence[Arrays]) -> list[HeadResult]:
        """Return the figures of the genes that were met, each counting once."""
        return [gene_head_result(self.config.name, [self._scored(i, TEST, each) for i, each in enumerate(tested)])]

    def details(self, tested: Sequence[Arrays]) -> dict[str, Any]:
        """Return genes by class, those that could not be used, and the figures by token of each fold."""
        of_folds = [self._scored(fold, TEST, arrays) for fold, arrays in enumerate(tested)]
        return {
            "per_token": [finite_or_null(each.per_token) for each in of_folds],
            "tokens": [each.tokens for each in of_folds],
            "genes_never_seen": [each.never_seen for each in of_folds],
            "genes": self.labels.counts,
            "not_in_vocabulary": {name: list(genes) for name, genes in self.labels.unknown.items()},
            "without_median": {name: list(genes) for name, genes in self.labels.without_median.items()},
            "named_again": self.labels.repeated,
        }

    def remarks(self, corpus: Corpus) -> Remarks:
        """Return genes that could not be used, those that no cell holds, and whether few are tested."""
        return gene_remarks(corpus, self.labels, self.folds)

    def test_rows(self, corpus: Corpus, tested: Sequence[Arrays]) -> Iterator[pa.Table]:
        """Yield the genes of each fold's test part by token id, those that were never seen among them."""
        for fold, arrays in enumerate(tested):
            sums, chosen = GeneSums(arrays["probability"], arrays["given"]), self._chosen(fold, TEST)
            yield gene_rows(self.config.name, fold, self.labels, chosen, sums)

    def _scored(self, fold: int, part: int, arrays: Arrays, *, areas: bool = True) -> GeneMetrics:
        chosen = np.flatnonzero(self._chosen(fold, part))
        names = [self.labels.genes[g] for g in chosen.tolist()]
        sums, labels = GeneSums(arrays["probability"], arrays["given"]), self.labels
        token_g, code_g = labels.token_g[chosen], labels.code_g[chosen]
        return gene_metrics(sums, names, token_g, code_g, labels.classes, areas=areas)

    def _chosen(self, fold: int, part: int) -> NDArray[np.bool_]:
        own = self.folds.part_kn[fold]
        return np.asarray(own >= 0 if part == ALL else own == part)
