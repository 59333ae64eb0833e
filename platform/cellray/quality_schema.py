"""Manifest of quality control: rules, bounds of each data set, where every cell of each file went."""

from typing import Literal

from cellray.schema import FailedSource, GeneReport, Manifest, Record


class Bounds(Record):
    """Within which a data set's cells must lie: mean - k sd to mean + k sd of its `cells` cells (population sd)."""

    cells: int
    mean: float
    sd: float
    low: float
    high: float


class DatasetRecord(Record):
    """One data set: bounds and what they did. `mito` is None where no file has mitochondrial genes."""

    name: str
    cells: int
    passed: int
    n_counts: Bounds | None
    mito: Bounds | None


class DoubletRecord(Record):
    """Doublet scores of one data set's cells in one file; without a threshold none was dropped."""

    dataset: str
    scored: int
    threshold: float | None


class QualitySource(Record):
    """One file that was controlled: which version, how its genes were told, where every cell went.

    `counted_genes` is the number of its genes that count as detected where they have a count; None: every column.
    """

    uri: str
    format: str
    matrix: str
    size: int
    version: str
    cells: int
    passed: int
    dropped: dict[str, int]
    mito_genes: int
    mito_from: str
    genes: GeneReport | None
    counted_genes: int | None = None
    doublets: tuple[DoubletRecord, ...] = ()
    warnings: tuple[str, ...] = ()


class QualityRules(Record):
    """What a cell had to fulfil."""

    n_sd: float
    mito: Literal["fraction", "counts"]
    min_genes: int
    vocabulary_digest: str | None
    gene_table_digest: str | None = None
    gene_types: tuple[str, ...] = ()
    dataset_column: str | None
    malignant_column: str | None
    malignant_values: tuple[str, ...]
    mito_genes: tuple[str, ...]
    doublets: bool
    doublet_threshold: float | None
    seed: int


class QualityManifest(Manifest):
    """Manifest of quality control."""

    artefact: Literal["quality control"] = "quality control"
    rules: QualityRules
    sources: tuple[QualitySource, ...]
    datasets: tuple[DatasetRecord, ...]
    failed: tuple[FailedSource, ...] = ()
    warnings: tuple[str, ...] = ()
