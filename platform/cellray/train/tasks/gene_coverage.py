"""Which labelled genes stand in the cells of a corpus, and what a person should know of it before a training.

A gene that no cell holds is neither learnt from nor tested. Knows nothing of models or figures.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellray import schema
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.errors import listing
from cellray.train.feed import spans
from cellray.train.folds import TEST, Folds
from cellray.train.tasks.contract import Remarks
from cellray.train.tasks.gene_labels import GeneLabels

MOST_CELLS = 100_000
"""Cells that are looked at, about: a gene that none of so many holds gives a test next to nothing."""
FEW_GENES = 5
"""Fewer genes of a class in a test part than this are warned of."""


@dataclass(frozen=True)
class GenesMet:
    """Labelled genes in the cells that were looked at.

    Attributes
    ----------
    met_g
        Which ones were met. Shape (genes,).
    cells, total
        Cells that were looked at, of how many.
    """

    met_g: NDArray[np.bool_]
    cells: int
    total: int


def genes_met(corpus: Corpus, labels: GeneLabels, most_cells: int = MOST_CELLS) -> GenesMet:
    """Look for the labelled genes all over a corpus, until all are met or enough cells were looked at.

    Parameters
    ----------
    corpus
        Its token rows are read, span by span.
    labels
        The genes.
    most_cells
        After these no further span is read.
    """
    met_v, cells = np.zeros(len(corpus.vocabulary), np.bool_), 0
    found = spans(corpus)
    for span in map(found.__getitem__, np.random.default_rng(0).permutation(len(found))):  # sources lie in a row
        if cells >= most_cells or met_v[labels.token_g].all():
            break
        rows = read_rows(span.uri, span.start, span.stop, [schema.INPUT_IDS])[schema.INPUT_IDS]
        for chunk in rows.chunks:
            met_v[chunk.flatten().to_numpy()] = True
        cells += len(span)
    return GenesMet(met_v[labels.token_g], cells, corpus.manifest.rows)


def gene_remarks(corpus: Corpus, labels: GeneLabels, folds: Folds, most_cells: int = MOST_CELLS) -> Remarks:
    """Return how many of the listed genes can be used, and a warning where few are tested."""
    found = genes_met(corpus, labels, most_cells)
    return Remarks((_listed(labels), _met(labels, found)), tuple(filter(None, [_few_tested(folds, found)])))


def _listed(labels: GeneLabels) -> str:
    unknown = [name for names in labels.unknown.values() for name in names]
    silent = [name for names in labels.without_median.values() for name in names]
    listed = len(labels.genes) + len(unknown) + len(silent) + labels.repeated
    apart = {"not in the vocabulary": unknown, "without a median": silent}
    told = [f"{what}: {listing(names)}" for what, names in apart.items() if names]
    told += [f"named twice: {labels.repeated:,}"] if labels.repeated else []
    return "; ".join([f"genes listed: {listed:,}, of which {len(labels.genes):,} are used", *told])


def _met(labels: GeneLabels, found: GenesMet) -> str:
    absent = [gene for gene, met in zip(labels.genes, found.met_g, strict=True) if not met]
    total = f"{len(labels.genes):,} genes"
    if not absent:
        return f"all {total} stand in cells"
    what = "neither learnt from nor tested"
    where = f"the {found.cells:,} cells and are {what}"
    if found.cells < found.total:
        where = f"{found.cells:,} of the {found.total:,} cells; if the others have none either, they are {what}"
    return f"{len(absent):,} of {total} stand in none of {where}: {listing(absent)}"


def _few_tested(folds: Folds, found: GenesMet) -> str:
    """Return a warning if a fold tests few genes of a class, as far as is known; empty if none does."""
    ((head, classes),) = folds.classes.items()
    code_g = folds.codes[head]
    tested_kc = np.array(
        [
            np.bincount(code_g[(folds.part_kn[fold] == TEST) & found.met_g], minlength=len(classes))
            for fold in range(len(folds))
        ]
    )
    few_k = (tested_kc < FEW_GENES).any(axis=1)
    if not few_k.any() or not (folds.part_kn == TEST).any():
        return ""
    fold, c = np.unravel_index(tested_kc.argmin(), tested_kc.shape)
    least = f"{tested_kc.min():,} of {classes[c]!r}"
    helps = "a longer list, more cells or longer rows help"
    told = f"fewer than {FEW_GENES} genes of a class are tested"
    if found.cells < found.total:
        told = f"going by {found.cells:,} of the {found.total:,} cells, {told}"
    if len(folds) == 1:
        return f"{told}, {least}: figures say little; {helps}"
    told += f" in {few_k.sum():,} of {len(folds):,} folds, {least} in fold {fold}"
    return f"{told}: a fold's figures say little, look at those of all folds together; {helps}, and fewer folds"
