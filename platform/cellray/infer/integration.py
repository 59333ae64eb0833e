"""How well embeddings of cells from several batches are integrated: a table of scores, beside that of plain PCA.

Reads finished embeddings; the formulas are in `cellray.infer.integration_scores`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.session import plain_errors
from cellray.errors import InputError, listing
from cellray.infer.evaluate import pca_of_log_counts
from cellray.infer.integration_scores import SCORERS, Cells
from cellray.infer.results import Embeddings, require_unchanged
from cellray.infer.tables import TableManifest, publish_table, table_made_before
from cellray.schema import Parent

EMBEDDING, PCA = "cellray", "pca"
"""What a row of the table scores: the embeddings, or the principal components of the log counts."""
_OWN = {schema.CELL_ID, schema.SOURCE_ROW, schema.EMBEDDING}


class IntegrationConfig(JobConfig):
    """Score how well embeddings tell labels apart and mix batches."""

    embeddings: str = Field(description="cell embeddings, from jobs.embed_cells")
    batch: str = Field(description="obs column of the batches that should mix; must be in the corpus")
    label: str = Field(description="obs column of what should stay apart, as cell types; must be in the corpus")
    output: str = Field(description="directory or s3:// URI of the scores (parquet and CSV)")
    scorer: Literal["scikit-learn", "scib-metrics"] = Field(
        "scikit-learn", description="scib-metrics (to be installed besides), or what scikit-learn has of it"
    )
    baseline: bool = Field(
        True, description="also score the PCA of log counts; needs a corpus of one local .h5ad, read into memory"
    )
    max_cells: int = Field(20_000, ge=10, description="score so many cells, drawn at random [cells]")
    seed: int = Field(0, ge=0, description="of the draw of cells, of k-means and of folds")


@plain_errors()
def score_integration(config: IntegrationConfig) -> TableManifest:
    """Score embeddings and publish the table with its manifest; a finished one of the same request is returned.

    Columns: `embedding` (cellray or pca), `metric`, `about` (labels, batches, total), `value`: 1 is best. Cells without
    a label or a batch are left out and counted.

    Raises
    ------
    InputError
        The embeddings are unfinished or not of cells, a column is not there or has one value, the baseline cannot be
        computed, or the scorer is not installed.
    """
    embeddings = Embeddings.open(config.embeddings)
    embeddings.require_cells("--embeddings")
    output = storage.absolute(config.output)
    choices = config.model_dump(mode="json", exclude={"embeddings", "output"})
    request = schema.request_digest(artefact="integration scores", embeddings=embeddings.manifest.digest, **choices)
    if done := table_made_before(output, request):
        return done
    table, dropped = _chosen(embeddings, config)
    cells = Cells(embeddings.matrix(table), _values(table, config.label), _values(table, config.batch))
    _require_several(cells, config)
    found = {EMBEDDING: cells}
    if config.baseline:
        pca_nd = _baseline(embeddings)[table[schema.SOURCE_ROW].to_numpy()]
        found = {EMBEDDING: replace(cells, before_nd=pca_nd), PCA: replace(cells, embedding_nd=pca_nd)}
    rows = [
        {"embedding": name, "metric": score.metric, "about": score.about, "value": score.value}
        for name, each in found.items()
        for score in SCORERS[config.scorer](each, config.seed)
    ]
    return publish_table(
        output,
        pd.DataFrame(rows),
        (config.scorer, "scanpy", "pyarrow"),  # the scorers bear their packages' names
        request=request,
        kind="integration scores",
        options=choices,
        made_from=Parent(uri=embeddings.uri, digest=embeddings.manifest.digest),
        dropped=dropped,
        notes={"cells": table.num_rows, "labels": _counts(cells.label_n), "batches": _counts(cells.batch_n)},
    )


def _chosen(embeddings: Embeddings, config: IntegrationConfig) -> tuple[pa.Table, dict[str, int]]:
    """Return the cells to score and how many are not scored, by reason; no more than a part is held beside them."""
    parts = [(part.uri_in(embeddings.uri), part.rows) for part in embeddings.manifest.parts if part.rows]
    columns = [config.batch, config.label]
    _require_columns(read_rows(parts[0][0], 0, 1).column_names, config)
    kept_n = np.concatenate([_complete(read_rows(uri, 0, rows, columns)) for uri, rows in parts])
    chosen, dropped = np.flatnonzero(kept_n), {"without a label or a batch": int((~kept_n).sum())}
    if not len(chosen):
        rule, fix = "some cell must have a value in both columns", "Choose other columns."
        raise InputError("--batch, --label", rule, f"none of {len(kept_n):,} cells", fix)
    if len(chosen) > config.max_cells:
        dropped["not drawn (--max-cells)"] = len(chosen) - config.max_cells
        chosen = np.sort(np.random.default_rng(config.seed).choice(chosen, config.max_cells, replace=False))
    tables, first = [], 0
    for uri, rows in parts:
        own = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + rows)] - first
        if len(own):
            wanted = [schema.SOURCE_ROW, schema.EMBEDDING, *columns]
            tables.append(read_rows(uri, 0, rows, wanted).take(pa.array(own)))
        first += rows
    return pa.concat_tables(tables), dropped


def _complete(table: pa.Table) -> NDArray[np.bool_]:
    """Return which rows have a value in every column."""
    return np.asarray(np.logical_and.reduce([pc.is_valid(column).to_numpy() for column in table.columns]))


def _require_columns(names: Sequence[str], config: IntegrationConfig) -> None:
    kept = [name for name in names if name not in _OWN]
    for option in ("batch", "label"):
        if (column := getattr(config, option)) not in kept:
            fix = "Tokenize with --obs-columns, and embed again."
            found = f"{column!r}; kept: {listing(kept)}"
            raise InputError(f"--{option}", "must be an obs column of the corpus", found, fix)


def _values(table: pa.Table, column: str) -> NDArray[np.str_]:
    return np.asarray(table[column].cast(pa.string()).to_numpy(zero_copy_only=False).astype(str))


def _counts(value_n: NDArray[np.str_]) -> dict[str, int]:
    names, counts = np.unique(value_n, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _require_several(cells: Cells, config: IntegrationConfig) -> None:
    for option, value_n in (("batch", cells.batch_n), ("label", cells.label_n)):
        if len(_counts(value_n)) < 2:
            found = f"{getattr(config, option)!r} has {listing(_counts(value_n))} only"
            raise InputError(f"--{option}", "must have two values or more", found, "Choose another column.")


def _baseline(embeddings: Embeddings) -> NDArray[np.float32]:
    """Return the principal components of all cells of the corpus' only source."""
    sources = Corpus.open(embeddings.manifest.corpus).manifest.sources
    fix = "Score without it: --no-baseline."
    if len(sources) != 1 or sources[0].format != "h5ad" or not storage.is_local(sources[0].uri):
        found = listing([source.uri for source in sources], 3)
        raise InputError("--baseline", "needs a corpus of one local .h5ad", found, fix)
    require_unchanged(sources[0])
    return pca_of_log_counts(Path(sources[0].uri), sources[0].matrix)
