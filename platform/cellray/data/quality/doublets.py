"""Doublet scores: Scrublet (Wolock et al. 2019), through scanpy, on the cells of one data set in one file.

Scored are the cells that pass all other rules. They are held in memory together, so there is a limit to their number.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from cellray import schema
from cellray.data.parts import PartWriter, Unit
from cellray.data.quality.metrics import READ_CELLS, require_version
from cellray.data.quality.verdicts import DOUBLET_SCHEMA, Rules, read_metrics
from cellray.data.sources.contract import open_source
from cellray.errors import InputError

MAX_DOUBLET_CELLS = 20_000
"""Most cells of a data set in one file that are scored; a droplet run gives no more.

Scrublet's matrices are dense: 2 GB for 10,000 blood cells of 700 genes each, 7 GB where thousands of genes vary much.
"""
MIN_DOUBLET_CELLS = 100
"""Fewer cells than this are not scored: Scrublet's neighbourhoods would be single cells."""
_COMPONENTS = 30

SCORED = "scored"


@dataclass(frozen=True)
class Library:
    """Where the cells of one data set in one file are told of: parts of metrics, as (URI, start row, stop row)."""

    dataset: str
    metrics: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class DoubletOptions:
    """What a worker needs beside its unit; `libraries` by the units' keys."""

    libraries: Mapping[str, Library]
    rules: Rules
    matrix: str
    threshold: float | None
    seed: int


class DoubletWorker:
    """Scores one data set's cells of one file."""

    def __init__(self, options: DoubletOptions) -> None:
        self._options = options

    def __call__(self, unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        """Do one unit."""
        require_version(unit.uri, unit.version)
        library = self._options.libraries[unit.key]
        rows = np.concatenate([self._passing(library, *part) for part in library.metrics])
        part = open_part(DOUBLET_SCHEMA)
        if len(rows) < MIN_DOUBLET_CELLS:
            part.counts[SCORED] = 0
            return
        require_fitting(unit.uri, library.dataset, len(rows))
        counts = read_counts(unit.uri, self._options.matrix, rows)
        try:
            scores, threshold = doublet_scores(counts, self._options.seed)
        except ValueError as error:
            fix = "Run without --doublets, or score this data set by itself."
            found = str(error).split("\n", 1)[0]
            raise InputError(unit.uri, f"Scrublet must cope with data set {library.dataset!r}", found, fix) from None
        threshold = threshold if self._options.threshold is None else self._options.threshold
        scored = np.isfinite(scores)
        part.counts[SCORED] = int(scored.sum())
        columns = [rows[scored], scores[scored], pa.array([threshold] * int(scored.sum()), pa.float64())]
        part.write(pa.table(list(map(pa.array, columns)), schema=DOUBLET_SCHEMA))

    def _passing(self, library: Library, uri: str, start: int, stop: int) -> NDArray[np.int64]:
        """Return the rows of the library's cells that pass all other rules, ascending."""
        table = read_metrics(uri, stop - start)
        table = table.filter(pc.equal(table[schema.DATASET], library.dataset))
        passed = self._options.rules.verdicts(table) < 0
        return np.asarray(table[schema.SOURCE_ROW].to_numpy()[passed], np.int64)


def require_fitting(uri: str, dataset: str, cells: int) -> None:
    """Check that a data set can be scored.

    Raises
    ------
    InputError
        It has too many cells.
    """
    if cells > MAX_DOUBLET_CELLS:
        raise InputError(
            uri,
            f"--doublets scores at most {MAX_DOUBLET_CELLS:,} cells of a data set in one file",
            f"{cells:,} in {dataset!r}",
            "Name the column of droplet runs with --dataset-column (doublets arise within a run), "
            "or run without --doublets.",
        )


def read_counts(uri: str, matrix: str, rows: NDArray[np.int64]) -> sparse.csr_matrix:
    """Read chosen rows of a file, ascending, into memory. Shape (rows, columns), float32."""
    kept = []
    with open_source(uri, matrix) as source:
        for block in source.blocks(int(rows[0]), int(rows[-1]) + 1, READ_CELLS):
            chosen = rows[np.searchsorted(rows, block.start) : np.searchsorted(rows, block.start + block.n_cells)]
            arrays = (block.counts.astype(np.float32), block.columns, block.indptr)
            whole = sparse.csr_matrix(arrays, shape=(block.n_cells, block.n_columns))
            kept.append(whole[chosen - block.start])
    counts: sparse.csr_matrix = sparse.vstack(kept, format="csr")
    counts.sum_duplicates()
    return counts


def doublet_scores(counts: sparse.csr_matrix, seed: int) -> tuple[NDArray[np.float64], float | None]:
    """Return Scrublet's score of each cell (NaN where it gives none) and its threshold, None if it finds none.

    Parameters
    ----------
    counts
        Raw counts of one data set, cells x genes.
    seed
        Of the simulated doublets and the principal components.
    """
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no threshold found, which is told below; scanpy's own dependencies
        components = min(_COMPONENTS, *(n - 1 for n in counts.shape))
        sc.pp.scrublet(adata, n_prin_comps=components, use_approx_neighbors=False, random_state=seed, verbose=False)
    threshold = adata.uns["scrublet"].get("threshold")
    return adata.obs["doublet_score"].to_numpy(np.float64), None if threshold is None else float(threshold)
