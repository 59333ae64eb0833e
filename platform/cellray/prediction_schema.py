"""The tables and the manifest of predictions; see `cellray.schema` for what all artefacts share."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from cellray.schema import CELL_ID, GENE, SOURCE_ROW, Manifest

CELLS = "cells"
TOKEN = "token"  # noqa: S105  # no secret


def prediction_fields(heads: Mapping[str, Sequence[str]]) -> list[pa.Field]:
    """Return the columns of predictions.

    A classification `NAME` gives `NAME` (the likeliest class), `NAME_probability` (its probability) and
    `NAME.probability.CLASS` for each class; a regression gives `NAME`, in its own unit.

    Parameters
    ----------
    heads
        Name of each head to its classes; none for a regression.
    """
    fields = []
    for name, classes in heads.items():
        columns = [probability_column(name), *(probability_column(name, label) for label in classes)] if classes else []
        fields.append(pa.field(name, pa.string() if classes else pa.float32(), nullable=False))
        fields.extend(pa.field(column, pa.float32(), nullable=False) for column in columns)
    return fields


def probability_column(head: str, label: str | None = None) -> str:
    """Return the column with the probability of a class, default: of the likeliest."""
    return f"{head}_probability" if label is None else f"{head}.probability.{label}"


def hdf5_name(name: str) -> str:
    """Return a name as a key of HDF5, in which `/` stands between groups."""
    return name.replace("/", "|")


def prediction_schema(heads: Mapping[str, Sequence[str]], obs: Sequence[pa.Field], *, level: str) -> pa.Schema:
    """Return the schema of predictions: a row for each cell, each gene (over all cells) or each token of a cell."""
    cell = [pa.field(CELL_ID, pa.string(), nullable=False), pa.field(SOURCE_ROW, pa.int64(), nullable=False)]
    gene = pa.field(GENE, pa.string(), nullable=False)
    keys = {"cell": cell, "gene": [gene, pa.field(CELLS, pa.int64(), nullable=False)], "token": [*cell, gene]}
    return pa.schema([*keys[level], *prediction_fields(heads), *obs])


def gene_sum_schema(widths: Mapping[str, int]) -> pa.Schema:
    """Return the schema of what one row range adds to the predictions of genes: sums over its cells, by token id."""
    return pa.schema(
        [
            pa.field(TOKEN, pa.int32(), nullable=False),
            pa.field(CELLS, pa.int64(), nullable=False),
            *(pa.field(f"sum.{name}", pa.list_(pa.float64(), n), nullable=False) for name, n in widths.items()),
        ]
    )


class PredictionManifest(Manifest):
    """Manifest of predictions.

    Attributes
    ----------
    level
        What a row is: a `cell`, a `gene` over all cells, or a `token`, which is a gene of a cell.
    heads
        What was told, as the model's `provenance.json` describes it.
    renamed
        Obs columns that bear another name, since a prediction has theirs.
    """

    artefact: Literal["predictions"] = "predictions"
    corpus: str
    corpus_digest: str
    model: str
    model_digest: str
    level: str
    heads: tuple[dict[str, Any], ...]
    renamed: dict[str, str]
