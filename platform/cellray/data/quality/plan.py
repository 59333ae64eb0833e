"""Quality control before it begins: its options, what is known of each source, the units of the first stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data import gene_ids
from cellray.data.cells import marked
from cellray.data.checks import check_block
from cellray.data.parts import Unit
from cellray.data.plan import first_cells, look_at_all, sift
from cellray.data.quality.genes import GeneChoice, counted_genes
from cellray.data.quality.metrics import MetricsOptions
from cellray.data.quality.mitochondrial import find_mitochondrial
from cellray.data.sources.contract import CountSource, format_of, left_out_warning, open_source, stamp_of
from cellray.data.sources.locate import expand_sources
from cellray.data.suspicions import suspicions
from cellray.errors import InputError, listing
from cellray.quality_schema import QualityRules
from cellray.schema import FailedSource, GeneReport


class QualityConfig(JobConfig):
    """Judge the cells of files of raw counts by the rules of Genecorpus-30M; the files stay as they are."""

    source: tuple[str, ...] = Field(
        description="files of raw counts, folders, globs or lists (.txt) of them, local or s3://, comma-separated"
    )
    output: str = Field(description="directory or s3:// URI of the verdicts (parquet)")
    vocabulary: str | None = Field(
        None, description="vocabulary.json whose genes alone count as detected; default: every column of the matrix"
    )
    gene_table: str | None = Field(
        None,
        description="table (.csv, .tsv, .parquet) of the genes that count as detected, with a column of gene ids and, "
        "if it has them, of gene types and symbols, as BioMart exports it; with --vocabulary: genes of both",
    )
    gene_types: tuple[str, ...] = Field(
        (),
        description="types of the gene table that count, comma-separated, as protein_coding,miRNA (Genecorpus-30M's); "
        "default: all",
    )
    matrix: str = Field("X", description="where the raw counts are: X, raw or layers/NAME")
    gene_ids: str | None = Field(
        None, description="var column with the gene ids, or index; default as in jobs.tokenize_corpus"
    )
    dataset_column: str | None = Field(
        None, description="obs column that names each cell's data set, also across files; default: a file is one"
    )
    n_sd: float = Field(3, gt=0, description="how far a cell may lie from its data set's mean [standard deviations]")
    mito: Literal["fraction", "counts"] = Field(
        "fraction", description="what is bounded beside the total count: mitochondrial fraction or counts"
    )
    mito_genes: tuple[str, ...] = Field(
        (), description="ids or symbols of the mitochondrial genes; default: human Ensembl IDs, or symbols in MT-"
    )
    min_genes: int = Field(7, ge=0, description="least number of detected genes [genes]")
    malignant_column: str | None = Field(
        None, description="obs column that marks malignant or immortalised cells, which do not pass"
    )
    malignant_values: tuple[str, ...] = Field(
        (), description="its values that mark a cell, comma-separated, in any case; default: true or 1"
    )
    doublets: bool = Field(
        False,
        description="also score doublets with Scrublet, and drop those above the threshold; a task holds one data "
        "set's cells of one file in memory, 2 to 7 GB for 10,000 cells: bound their number with --workers",
    )
    doublet_threshold: float | None = Field(
        None, ge=0, le=1, description="doublet score above which a cell is dropped, default: Scrublet's own"
    )
    seed: int = Field(0, ge=0, description="of Scrublet")
    plots: str | None = Field(None, description="also draw each data set's distributions into this directory (.png)")
    on_bad_file: Literal["fail", "skip"] = Field(
        "fail", description="what a file that breaks a rule does: fail the job, or be left out and reported"
    )
    cells_per_part: int = Field(16_384, ge=1, description="most cells of a source that go into one part [cells]")
    workers: int | None = Field(None, ge=1, description="most tasks at the same time, default: what the cluster has")

    @model_validator(mode="after")
    def _together(self) -> "QualityConfig":
        for option, other, alone in (
            ("--malignant-values", "--malignant-column", self.malignant_values and not self.malignant_column),
            ("--doublet-threshold", "--doublets", self.doublet_threshold is not None and not self.doublets),
            ("--gene-types", "--gene-table", self.gene_types and not self.gene_table),
            ("--gene-ids", "--vocabulary or --gene-table", self.gene_ids and not (self.vocabulary or self.gene_table)),
        ):
            if alone:
                raise ValueError(f"{option} needs {other}")
        return self


@dataclass(frozen=True)
class QualityPlan:
    """What is known of a source before it is read."""

    uri: str
    format: str
    stamp: storage.FileStamp
    n_cells: int
    mito_genes: int
    mito_from: str
    genes: GeneReport | None
    counted_genes: int | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class QualityJob:
    """A request that has been looked at: sound sources, bad ones, rules, the units of the first stage."""

    output: str
    plans: list[QualityPlan]
    failed: list[FailedSource]
    options: MetricsOptions
    rules: QualityRules
    units: list[Unit]

    @property
    def request(self) -> str:
        """Digest of all that decides the result."""
        return schema.request_digest(
            artefact="quality control",
            units=[unit.key for unit in self.units],
            rules=self.rules.model_dump(),
            failed=[failed.uri for failed in self.failed],
        )


def prepare(config: QualityConfig) -> QualityJob:
    """Open all sources, check what can be checked before reading them through, and cut them into units.

    Raises
    ------
    InputError
        A source breaks a rule and `on_bad_file` is `fail`, or no source is sound.
    """
    genes = GeneChoice.read(config.vocabulary, config.gene_table, config.gene_types)
    options = MetricsOptions(genes=genes, **{name: getattr(config, name) for name in _plain(MetricsOptions)})
    uris = expand_sources(config.source)
    plans, failed = sift(uris, _describe_all(uris, options), config.on_bad_file)
    own = {"vocabulary_digest", "gene_table_digest"}
    rules = QualityRules(
        vocabulary_digest=genes.vocabulary_digest,
        gene_table_digest=genes.table_digest,
        **{name: getattr(config, name) for name in QualityRules.model_fields if name not in own},
    )
    units = plan_units(plans, options, config.cells_per_part)
    return QualityJob(storage.absolute(config.output), plans, failed, options, rules, units)


def _plain(options: type[MetricsOptions]) -> list[str]:
    """Return the names of the options that are plain values."""
    return [name for name in options.__dataclass_fields__ if name != "genes"]


def _describe_all(uris: Sequence[str], options: MetricsOptions) -> list[QualityPlan | InputError]:
    """Describe all sources, a guarded Ray task each, in their order; a bad one gives its error."""
    return look_at_all(partial(describe_source, options=options), uris)


def describe_source(uri: str, options: MetricsOptions) -> QualityPlan:
    """Open a source and check all that can be told without reading it through, and its first cells.

    Raises
    ------
    InputError
        The source breaks a rule.
    """
    with open_source(uri, options.matrix) as source:
        _require_columns(source, options)
        stamp = stamp_of(uri)
        mito = find_mitochondrial(source.var(), options.mito_genes)
        genes = counted_genes(source, stamp.version, options.genes, options.matrix, options.gene_ids)
        counted = None if options.genes.every_column else genes.n_genes
        block = first_cells(source)
        warnings = [*left_out_warning(source), *suspicions(block, check_block(block, source).n_counts)]
        if genes.report is not None:
            warnings.extend(gene_ids.few_genes_warning(genes.report))
        if not mito.n_genes:
            warnings.append(
                f"no mitochondrial gene found ({mito.found_by}): the mitochondrial bounds do not apply to its cells; "
                "name the genes with --mito-genes if there are any"
            )
        return QualityPlan(
            uri=uri,
            format=format_of(uri),
            stamp=stamp,
            n_cells=source.n_cells,
            mito_genes=mito.n_genes,
            mito_from=mito.found_by,
            genes=genes.report,
            counted_genes=counted,
            warnings=tuple(warnings),
        )


def _require_columns(source: CountSource, options: MetricsOptions) -> None:
    """Check that the file has the obs columns of the options and that they can mean what they should."""
    kinds = source.obs_kinds()
    for option, column in (
        ("--dataset-column", options.dataset_column),
        ("--malignant-column", options.malignant_column),
    ):
        if column is not None and column not in kinds:
            found = f"no {column!r}; the file has {listing(kinds, limit=30)}"
            raise InputError(source.uri, f"{option} must name an obs column", found, f"Correct {option}.")
    if options.dataset_column is not None and kinds[options.dataset_column] == "real":
        fix = "Correct --dataset-column, or store the names as text."
        raise InputError(source.uri, "data sets have names or whole numbers", "fractional numbers", fix)
    if options.malignant_column is not None:
        marked(source, options.malignant_column, options.malignant_values, 0, 1)


def plan_units(plans: Sequence[QualityPlan], options: MetricsOptions, cells_per_part: int) -> list[Unit]:
    """Cut the sources into row ranges; each unit's key is a digest of its input and all parameters of the metrics."""
    units = []
    parameters = {name: getattr(options, name) for name in _plain(MetricsOptions)}
    vocabulary, table = options.genes.vocabulary_digest, options.genes.table_digest
    for index, plan in enumerate(plans):
        common = {
            **parameters,
            "vocabulary": vocabulary,
            "gene_table": table,
            "uri": plan.uri,
            "size": plan.stamp.size,
            "version": plan.stamp.version,
            "format": 1,
        }
        for start in range(0, plan.n_cells, cells_per_part):
            stop = min(start + cells_per_part, plan.n_cells)
            key = schema.request_digest(stage="cell metrics", **common, start=start, stop=stop)
            units.append(Unit(key, plan.uri, plan.stamp.version, index, start, stop))
    return units
