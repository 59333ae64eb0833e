"""The tables and manifests of screens of which few perturbations are evaluated exactly; see `cellray.shift_schema`."""

from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from cellray.schema import Manifest, PartRecord
from cellray.shift_schema import PERTURBATION, RANK, Kind, States

ROW = "row"
ESTIMATE = "estimate"
CHOICE = "choice"
PROBABILITY = "inclusion_probability"
GENE_TABLE = "genes.parquet"
"""The gene table, below the directory of a screen; a CSV lies beside it."""


def estimate_schema() -> pa.Schema:
    """Return the schema of estimates: one row for each cell and gene, `row` counting the unit's cells."""
    return pa.schema(
        [
            pa.field(ROW, pa.int32(), nullable=False),
            pa.field(PERTURBATION, pa.int32(), nullable=False),
            pa.field(RANK, pa.int32(), nullable=False),
            pa.field(ESTIMATE, pa.float32(), nullable=False),
        ]
    )


def with_choice(shifts: pa.Schema) -> pa.Schema:
    """Return the schema of shifts with how each row came to be evaluated.

    `estimate` is that of the measure the genes were chosen by. `choice`: `chosen` = the gene is evaluated in all its
    cells; `sampled` = the row was drawn with `inclusion_probability`. All rows hold exact values.
    """
    return pa.schema(
        [
            *shifts,
            pa.field(ESTIMATE, pa.float32(), nullable=False),
            pa.field(CHOICE, pa.string(), nullable=False),
            pa.field(PROBABILITY, pa.float64(), nullable=False),
        ]
    )


class EstimateManifest(Manifest):
    """Manifest of the estimates of a screen."""

    artefact: Literal["perturbation estimates"] = "perturbation estimates"
    kind: Kind
    corpus: str
    corpus_digest: str
    model: str
    model_digest: str
    measure: str
    settings: dict[str, Any]


class PrefilterManifest(Manifest):
    """Manifest of a screen of which few perturbations are evaluated exactly: no complete screen.

    Attributes
    ----------
    measure
        Column that estimates are of and genes were chosen by.
    tables
        The gene table, as parquet and as CSV.
    report
        How good the estimates are, and what the screen cost.
    """

    artefact: Literal["prefiltered perturbation shifts"] = "prefiltered perturbation shifts"
    kind: Kind
    corpus: str
    corpus_digest: str
    model: str
    model_digest: str
    layer: int
    pooling: str
    states: States | None = None
    obs_kinds: dict[str, str] = Field(default_factory=dict)
    design: dict[str, Any] = Field(default_factory=dict)
    skipped: dict[str, int] = Field(default_factory=dict)
    estimates: str
    measure: str
    tables: tuple[PartRecord, ...]
    report: dict[str, Any]
