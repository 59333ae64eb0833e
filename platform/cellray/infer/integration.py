"""How well embeddings of cells from several batches are integrated: a table of scores, beside that of plain PCA.

Reads finished embeddings; the formulas are in `cellray.infer.integration_scores`.
"""

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
from cellray.data.corpora.corpus import Corpus
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
    """Return the cells to score and how many are not scored, by reason."""
    table = embeddings.table()
    for option in ("batch", "label"):
        if (column := getattr(config, option)) not in table.column_names:
            kept = [name for name in table.column_names if name not in _OWN]
            fix = "Tokenize with --obs-columns, and embed again."
            raise InputError(
                f"--{option}", "must be an obs column of the corpus", f"{column!r}; kept: {listing(kept)}", fix
            )
    whole = table.filter(pc.and_(pc.is_valid(table[config.batch]), pc.is_valid(table[config.label])))
    dropped = {"without a label or a batch": table.num_rows - whole.num_rows}
    if whole.num_rows > config.max_cells:
        chosen = np.random.default_rng(config.seed).choice(whole.num_rows, config.max_cells, replace=False)
        dropped["not drawn (--max-cells)"] = whole.num_rows - config.max_cells
        whole = whole.take(pa.array(np.sort(chosen)))
    return whole, dropped


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
