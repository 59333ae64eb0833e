"""Cells to try a model with: real ones where it knows their genes, else made-up ones over its own genes."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import numpy as np
from scipy import sparse

from cellray.api.wire import CellTable
from cellray.data.isolated import call_isolated
from cellray.data.sources.demo_data import restore_pbmc
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary
from serving.encoding import Encoder
from serving.handover import Sample
from serving.sample import read_sample
from serving.upload import Upload

REAL = "350 blood cells (Zheng et al. 2017, of scanpy's pbmc68k_reduced), with raw counts of 765 genes"
MADE_UP = "made-up cells of three groups over genes of this model: to try the page, not to learn from"
GROUP = "group"
_CELLS = 120
_MOST_GENES = 400
_FEW = 20
"""Genes that a real cell has on average at least, of those that the model knows."""
_FOLD = 6.0
_READ_S = 120.0
_EVERY = 2
_lock = Lock()


def example_cells(vocabulary: GeneVocabulary, encode: Encoder) -> Sample:
    """Return cells for a model.

    Parameters
    ----------
    vocabulary, encode
        Of the model.
    """
    with _lock:  # the real ones are read once, by whoever comes first
        real = real_cells()
    if real is not None and _fits(real.cells, encode):
        return real
    return made_up(vocabulary)


def made_up(vocabulary: GeneVocabulary, seed: int = 0) -> Sample:
    """Return cells of three groups, each with genes of its own that it has more counts of."""
    rng, genes = np.random.default_rng(seed), list(vocabulary.medians)[:_MOST_GENES]
    group_n = np.arange(_CELLS) % 3
    fold_ng = np.where(group_n[:, None] == np.arange(len(genes))[None] % 4, _FOLD, 1.0)
    expected_g = np.array([vocabulary.medians[gene] for gene in genes])
    x_ng = rng.poisson(fold_ng * expected_g / expected_g.mean() * rng.gamma(4.0, 0.25, (_CELLS, 1)))
    x_ng[x_ng.sum(axis=1) == 0, 0] = 1
    csr = sparse.csr_matrix(x_ng.astype(np.float64))
    cells = CellTable(
        [f"cell {i + 1}" for i in range(_CELLS)],
        genes,
        csr.indptr.astype(np.int64),
        csr.indices.astype(np.int32),
        csr.data,
    )
    obs = {GROUP: [f"group {'ABC'[i]}" for i in group_n], "n_counts": x_ng.sum(axis=1).tolist()}
    return Sample(cells, obs, about=MADE_UP)


def _fits(cells: CellTable, encode: Encoder) -> bool:
    try:
        notes = encode(cells).notes
    except InputError:  # hardly a gene is known
        return False
    return float(np.mean([note.genes_mapped for note in notes])) >= _FEW


@cache
def real_cells() -> Sample | None:
    """Return real cells, read in a child so that what that imports is gone with it; None if they cannot be read."""
    found = call_isolated(_restored, REAL, "the example", _READ_S)
    return found if isinstance(found, Sample) else None


def _restored(about: str) -> Sample:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pbmc.h5ad"
        restore_pbmc(path)
        sample = read_sample(Upload(str(path), "X", None, 1 << 20, 1 << 20, 1 << 30, 1 << 20))
    assert isinstance(sample, Sample), "no limit is that low"
    cells, obs = sample.cells, sample.obs
    csr = sparse.csr_matrix((cells.counts, cells.columns, cells.indptr), (len(cells), len(cells.genes)))[::_EVERY]
    some = CellTable(cells.ids[::_EVERY], cells.genes, csr.indptr.astype(np.int64), csr.indices, csr.data)
    return Sample(some, {name: values[::_EVERY] for name, values in obs.items()}, about=about)
