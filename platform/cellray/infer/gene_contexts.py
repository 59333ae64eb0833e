"""How much a gene's embedding depends on the context its cell is in: within contexts, and between them.

Streams embeddings of genes (`jobs.embed_cells --pooling gene`); holds a sum for each gene and context, no cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.corpora.codes import MISSING
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.session import plain_errors
from cellray.errors import InputError, listing
from cellray.infer.embed import PER_GENE
from cellray.infer.results import Embeddings
from cellray.infer.tables import TableManifest, publish_table, table_made_before
from cellray.schema import Parent

_ROWS = 65_536  # of gene embeddings held at once
FEW_CONTEXTS = "genes met in fewer than two contexts"
NO_CONTEXT = "rows of cells without a context"
OTHER_GENES = "rows of genes not asked for"


class GeneContextConfig(JobConfig):
    """Tell how specific to their context the embeddings of genes are."""

    embeddings: str = Field(description="gene embeddings, from jobs.embed_cells --pooling gene")
    context: str = Field(description="obs column of the contexts, as cell types; must be in the corpus")
    output: str = Field(description="directory or s3:// URI of the table (parquet and CSV)")
    genes: tuple[str, ...] = Field((), description="Ensembl IDs, or symbols the vocabulary knows; default: all")
    min_cells: int = Field(10, ge=2, description="cells in which a context must hold a gene to count for it [cells]")


@dataclass(frozen=True)
class ContextSums:
    """Sums of unit vectors.

    Attributes
    ----------
    sum_gcd
        Sum of the embeddings, each divided by its length: genes x contexts x dimensions.
    cells_gc
        How many there were.
    """

    sum_gcd: NDArray[np.float64]
    cells_gc: NDArray[np.int64]

    @classmethod
    def zero(cls, genes: int, contexts: int, width: int) -> "ContextSums":
        """Return sums of nothing."""
        return cls(np.zeros((genes, contexts, width)), np.zeros((genes, contexts), np.int64))

    def add(self, gene_r: NDArray[np.int64], context_r: NDArray[np.int64], embedding_rd: NDArray[np.float32]) -> None:
        """Add rows: of each the gene, the context and the embedding."""
        contexts, width = self.sum_gcd.shape[1:]
        place_r = gene_r * contexts + context_r
        order = np.argsort(place_r, kind="stable")
        places, starts, counts = np.unique(place_r[order], return_index=True, return_counts=True)
        unit_rd = embedding_rd[order].astype(np.float64)
        unit_rd /= np.linalg.norm(unit_rd, axis=1, keepdims=True)
        self.sum_gcd.reshape(-1, width)[places] += np.add.reduceat(unit_rd, starts)
        self.cells_gc.reshape(-1)[places] += counts


def context_cosines(sum_cd: NDArray[np.float64], cells_c: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return mean cosines between a gene's embeddings in two different cells, for each two contexts.

    With S the sum of n unit vectors, the mean cosine over all pairs of cells is S_a . S_b / (n_a n_b) between two
    contexts, and (|S|^2 - n) / (n (n - 1)) between different cells of one: exact, whatever the number of cells.

    Parameters
    ----------
    sum_cd
        Contexts x dimensions.
    cells_c
        At least two cells each.

    Returns
    -------
    NDArray[np.float64]
        Contexts x contexts; within a context on the diagonal.
    """
    n_c = cells_c.astype(np.float64)
    cosine_cc: NDArray[np.float64] = sum_cd @ sum_cd.T / np.outer(n_c, n_c)
    own_c = (np.square(sum_cd).sum(1) - n_c) / (n_c * (n_c - 1))
    np.fill_diagonal(cosine_cc, own_c)
    return cosine_cc


@plain_errors()
def gene_contexts(config: GeneContextConfig) -> TableManifest:
    """Compare each gene's embeddings within and between contexts, and publish the table with its manifest.

    Columns: `Ensembl_ID`, `Gene_name`, `N_Contexts`, `N_Cells`, `Within` (mean over contexts of the mean cosine of two
    cells of it), `Between` (mean over pairs of contexts), `Context_specificity` = `Within` - `Between`, `Most_distinct`
    (the context whose cosines with the others are lowest). Highest specificity first. Memory: 8 bytes for each gene,
    context and dimension.

    Raises
    ------
    InputError
        The embeddings are unfinished or not of genes, the column is not there or has one value, or a gene is unknown.
    """
    embeddings = Embeddings.open(config.embeddings)
    if embeddings.manifest.pooling != PER_GENE:
        found = f"--pooling {embeddings.manifest.pooling}"
        raise InputError("--embeddings", "needs embeddings of genes", found, "Embed with --pooling gene.")
    output = storage.absolute(config.output)
    choices = config.model_dump(mode="json", exclude={"embeddings", "output"})
    request = schema.request_digest(artefact="gene contexts", embeddings=embeddings.manifest.digest, **choices)
    if done := table_made_before(output, request):
        return done
    corpus = Corpus.open(embeddings.manifest.corpus)
    corpus.require_column(config.context, "--context")
    names = _genes(corpus, config.genes)
    contexts, sums, dropped = _summed(embeddings, config.context, names)
    rows = [_row(name, contexts, sums, index, config.min_cells) for index, name in enumerate(names)]
    table = pd.DataFrame([row for row in rows if row])
    dropped[FEW_CONTEXTS] = len(rows) - len(table)
    if table.empty:
        fix = "Choose another column, more cells, or a smaller --min-cells."
        rule = f"some gene must be in {config.min_cells} cells of two contexts or more"
        raise InputError("--context", rule, f"none; contexts: {listing(contexts)}", fix)
    symbols = {gene: symbol for symbol, gene in sorted(corpus.vocabulary.symbols.items())}
    table.insert(1, "Gene_name", table["Ensembl_ID"].map(symbols).astype("string"))
    return publish_table(
        output,
        table.sort_values(["Context_specificity", "Ensembl_ID"], ascending=[False, True], ignore_index=True),
        ("numpy", "pyarrow"),
        request=request,
        kind="gene contexts",
        options=choices,
        made_from=Parent(uri=embeddings.uri, digest=embeddings.manifest.digest),
        dropped=dropped,
        notes={"contexts": list(contexts)},
    )


def _genes(corpus: Corpus, asked: Sequence[str]) -> list[str]:
    """Return the Ensembl IDs of the genes to tell of."""
    vocabulary = corpus.vocabulary
    if not asked:
        return sorted(vocabulary.genes)
    found = {name: name if name in vocabulary.genes else vocabulary.symbols.get(name) for name in asked}
    if unknown := [name for name, gene in found.items() if gene is None]:
        raise InputError("--genes", "must be in the vocabulary", listing(unknown), "Check ids and species.")
    return sorted({gene for gene in found.values() if gene is not None})


def _summed(
    embeddings: Embeddings, column: str, names: Sequence[str]
) -> tuple[tuple[str, ...], ContextSums, dict[str, int]]:
    """Add up all parts; return the contexts, the sums and the rows that were left out."""
    contexts = sorted({value for part in embeddings.manifest.parts for value in _distinct(embeddings, part, column)})
    genes_a, contexts_a = pa.array(names, pa.string()), pa.array(contexts, pa.string())
    sums = ContextSums.zero(len(names), len(contexts), embeddings.manifest.width)
    dropped = {NO_CONTEXT: 0, OTHER_GENES: 0}
    for part in embeddings.manifest.parts:
        for start in range(0, part.rows, _ROWS):
            stop = min(part.rows, start + _ROWS)
            table = read_rows(part.uri_in(embeddings.uri), start, stop, [schema.GENE, column, schema.EMBEDDING])
            gene_r = _codes(table[schema.GENE], genes_a)
            context_r = _codes(table[column].cast(pa.string()), contexts_a)
            kept_r = (gene_r != MISSING) & (context_r != MISSING)
            dropped[OTHER_GENES] += int((gene_r == MISSING).sum())
            dropped[NO_CONTEXT] += int(((gene_r != MISSING) & (context_r == MISSING)).sum())
            if kept_r.any():
                sums.add(gene_r[kept_r], context_r[kept_r], embeddings.matrix(table)[kept_r])
    return tuple(contexts), sums, dropped


def _distinct(embeddings: Embeddings, part: schema.PartRecord, column: str) -> list[str]:
    if not part.rows:
        return []
    values = read_rows(part.uri_in(embeddings.uri), 0, part.rows, [column])[column].cast(pa.string())
    return [value for value in values.unique().to_pylist() if value is not None]


def _codes(values: pa.ChunkedArray, known: pa.Array) -> NDArray[np.int64]:
    """Return the index of each value among the known ones, or MISSING."""
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.index_in(values, known), MISSING).to_numpy(), np.int64)


def _row(gene: str, contexts: Sequence[str], sums: ContextSums, index: int, min_cells: int) -> dict[str, Any]:
    """Return a gene's row of the table, or nothing if too few contexts hold it."""
    enough = np.flatnonzero(sums.cells_gc[index] >= min_cells)
    if len(enough) < 2:
        return {}
    cells_c = sums.cells_gc[index, enough]
    cosine_cc = context_cosines(sums.sum_gcd[index, enough], cells_c)
    others_cc = ~np.eye(len(enough), dtype=bool)
    within, between = cosine_cc.diagonal().mean(), cosine_cc[others_cc].mean()
    apart = int(np.where(others_cc, cosine_cc, 0).sum(1).argmin())
    return {
        "Ensembl_ID": gene,
        "N_Contexts": len(enough),
        "N_Cells": int(cells_c.sum()),
        "Within": float(within),
        "Between": float(between),
        "Context_specificity": float(within - between),
        "Most_distinct": contexts[enough[apart]],
    }
