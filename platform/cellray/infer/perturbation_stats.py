"""Statistics of a finished screen as a job: options, gene names, tables in parquet and CSV, a manifest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import pandas as pd
from pydantic import Field, model_validator

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.medians.gene_tables import read_gene_names
from cellray.data.publishing import finished, publish_manifest
from cellray.data.session import plain_errors
from cellray.errors import InputError
from cellray.infer.shift_tables import ShiftTable, cell_rows
from cellray.infer.tables import TABLE, read_made_table, write_frame, write_stream
from cellray.schema import CorpusManifest, Parent
from cellray.shift_schema import BEFORE_PREFIX, CHANGE_PREFIX, SHIFT_PREFIX, StatisticsManifest
from cellray.statistics.aggregates import CELL, aggregate_data, aggregate_gene_shifts, value_name
from cellray.statistics.goal_state import goal_state_shift
from cellray.statistics.mixture_model import mixture_model
from cellray.statistics.naming import GeneNames
from cellray.statistics.pairs import pair_interactions
from cellray.statistics.stream import DonorTest, GeneTable, Options
from cellray.statistics.vs_null import vs_null
from cellray.vocabulary import GeneVocabulary

Mode = Literal["goal_state_shift", "vs_null", "mixture_model", "aggregate_data", "aggregate_gene_shifts"]

CELLS = "cells"
"""Name of the table of single cells' values, which `aggregate_data` writes beside the gene table."""


FIRST_ROWS, FEW_CELLS = 20, 5
"""A table whose first rows are mostly of fewer cells is warned of."""


class PerturbationStatsConfig(JobConfig):
    """Compute gene tables from an in silico perturbation screen."""

    shifts: str = Field(description="screen, from jobs.perturb")
    mode: Mode = Field(description=f"what to compute: {', '.join(get_args(Mode))}")
    output: str = Field(description="directory or s3:// URI of the tables (parquet and CSV)")
    null: str | None = Field(None, description="vs_null: the screen of the null cells")
    measure: str = Field("similarity", description="column of vs_null, mixture_model, aggregate_data: or shift:STATE")
    pairs: bool = Field(False, description="mixture_model: combined against summed effects of perturbed pairs")
    anchor: str | None = Field(None, description="with --pairs: Ensembl ID or symbol; only its pairs")
    donor: str | None = Field(None, description="obs column: also test over donors, whose cells are not independent")
    min_detections: int = Field(1, ge=1, description="leave out perturbations with fewer cells")
    min_donors: int = Field(3, ge=2, description="donors a gene needs for a test over donors")
    donor_test: DonorTest = Field("auto", description="t, wilcoxon (signed-rank), or auto: signed-rank from 20 donors")
    gene_names: str | None = Field(None, description="table of Ensembl IDs and symbols (.csv, .tsv, .parquet)")
    vocabulary: str | None = Field(None, description="vocabulary with token ids and symbols; default: the corpus's")
    pool_size: int = Field(100_000, ge=100, description="most shifts in the pool that genes are compared with")
    rank_bins: int = Field(10, ge=1, le=100, description="bins of ranks within which matched genes are drawn")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    mixture_tolerance: float = Field(
        1e-3, gt=0, description="where the mixture's fit stops; smaller = nearer to the optimum"
    )
    block_rows: int = Field(10_000_000, ge=1000, description="rows held in memory at once by vs_null and --pairs")
    seed: int = Field(42, ge=0, description="of the pool's sample")
    plots: str | None = Field(None, description="also draw pictures into this folder")

    @model_validator(mode="after")
    def _sensible(self) -> "PerturbationStatsConfig":
        if (self.mode == "vs_null") != (self.null is not None):
            raise ValueError("--mode vs_null and --null go together")
        if self.pairs and self.mode != "mixture_model":
            raise ValueError("--pairs goes with --mode mixture_model")
        if self.mode == "mixture_model" and self.measure.startswith(BEFORE_PREFIX):
            raise ValueError(
                f"--measure {self.measure} is what cells were before the edit, no impact; use {CHANGE_PREFIX}"
            )
        if self.anchor is not None and not self.pairs:
            raise ValueError("--anchor needs --pairs")
        if self.donor is not None and self.mode == "aggregate_gene_shifts":
            raise ValueError("--donor: aggregate_gene_shifts has no donor level")
        return self

    def options(self) -> Options:
        """Return what the statistics are told."""
        names = Options.__dataclass_fields__
        return Options(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Screens:
    """What a mode works on."""

    test: ShiftTable
    null: ShiftTable | None
    donor: str | None
    pairs: bool
    anchor: str | None


def _goal(screens: Screens, options: Options) -> GeneTable:
    return goal_state_shift(screens.test.stream(screens.donor), screens.test.manifest.states, options)


def _null(screens: Screens, options: Options) -> GeneTable:
    assert screens.null is not None
    differences = compare_screens(screens.test, screens.null, options.measure)
    found = vs_null(screens.test.stream(screens.donor), screens.null.stream(screens.donor), options)
    return replace(found, notes={**found.notes, **({"differences": differences} if differences else {})})


def compare_screens(test: ShiftTable, null: ShiftTable, measure: str) -> dict[str, list[Any]]:
    """Return in what two screens differ, test before null, that may be compared nevertheless.

    Raises
    ------
    InputError
        Their numbers do not mean the same: another model, layer or pooling, or shifts of another goal. What heads tell
        depends on the model alone.
    """
    shared = {"model_digest": "--model"}
    if not measure.startswith((BEFORE_PREFIX, CHANGE_PREFIX)):
        shared |= {"layer": "--layer", "pooling": "--pooling"}
    pairs = {option: (getattr(test.manifest, name), getattr(null.manifest, name)) for name, option in shared.items()}
    states = [screen.manifest.states for screen in (test, null)]
    if measure.startswith(SHIFT_PREFIX):
        pairs["--goal"] = (states[0] and states[0].goal, states[1] and states[1].goal)
    for option, (ours, theirs) in pairs.items():
        if ours != theirs:
            rule, fix = f"both screens must have one {option}", "Screen the null cells as the test cells."
            raise InputError(null.uri, rule, f"{theirs} in the null screen, {ours} in the test", fix)
    told = {name: [getattr(each.manifest, name) for each in (test, null)] for name in ("kind", "corpus")}
    told["start"] = [each and each.start for each in states]
    told |= {name: [each.manifest.design.get(name) for each in (test, null)] for name in ("quartiles", "precision")}
    return {name: both for name, both in told.items() if both[0] != both[1]}


def _mixture(screens: Screens, options: Options) -> GeneTable:
    stream = screens.test.stream(screens.donor)
    return pair_interactions(stream, screens.anchor, options) if screens.pairs else mixture_model(stream, options)


def _data(screens: Screens, options: Options) -> GeneTable:
    return aggregate_data(screens.test.stream(screens.donor), options)


def _gene_shifts(screens: Screens, options: Options) -> GeneTable:
    effects = screens.test.effects()
    return aggregate_gene_shifts(screens.test.stream(), effects, options)


MODES: dict[str, Callable[[Screens, Options], GeneTable]] = {
    "goal_state_shift": _goal,
    "vs_null": _null,
    "mixture_model": _mixture,
    "aggregate_data": _data,
    "aggregate_gene_shifts": _gene_shifts,
}


@plain_errors()
def perturbation_stats(config: PerturbationStatsConfig) -> StatisticsManifest:
    """Compute the tables of a mode and publish them with their manifest.

    A finished result of the same request is returned as it is.

    Raises
    ------
    InputError
        The screen is unfinished or lacks what the mode needs, or the output holds something else.
    """
    test = ShiftTable.open(config.shifts)
    test.require_measure(config.measure)
    null = None if config.null is None else ShiftTable.open(config.null)
    if null is not None:
        null.require_measure(config.measure)
        compare_screens(test, null, config.measure)
    names, named_by = gene_names(config, test)
    output = storage.absolute(config.output)
    choices = config.model_dump(
        mode="json", exclude={"shifts", "null", "output", "plots", "gene_names", "vocabulary", "block_rows"}
    )
    request = schema.request_digest(
        artefact="perturbation statistics",
        shifts=test.manifest.digest,
        null=None if null is None else null.manifest.digest,
        names=[dict(names.tokens), dict(names.symbols)],
        **choices,
    )
    if done := finished(output, request, StatisticsManifest):
        return done
    screens = Screens(test, null, config.donor, config.pairs, _gene(config.anchor, names))
    found = MODES[config.mode](screens, config.options())
    written = write_frame(output, TABLE, named(found.table, names))
    if config.mode == "aggregate_data":
        written += write_stream(output, CELLS, _cells(test, config, names, set(found.table["Ensembl_ID"])))
    manifest = StatisticsManifest(
        request=request,
        parts=tuple(record for record in written if record.path.endswith(".parquet")),
        csv=tuple(record for record in written if record.path.endswith(".csv")),
        software=schema.software_versions("scipy", "scikit-learn", "pandas", "pyarrow"),
        mode=config.mode,
        options=choices,
        shifts=Parent(uri=test.uri, digest=test.manifest.digest),
        null=None if null is None else Parent(uri=null.uri, digest=null.manifest.digest),
        rows_read=test.manifest.rows,
        genes=len(found.table),
        dropped=found.dropped,
        notes={**found.notes, "names": named_by},
    )
    publish_manifest(output, manifest)
    return manifest


def gene_names(config: PerturbationStatsConfig, screen: ShiftTable) -> tuple[GeneNames, str]:
    """Return token ids and symbols of genes, and where they are from.

    They come from `--vocabulary`, else from the vocabulary of the screened corpus if that is still there and unchanged;
    symbols from `--gene-names` outweigh its own.

    Raises
    ------
    InputError
        A file that was named is missing or of another kind.
    """
    vocabulary, source = _vocabulary(config, screen)
    tokens = {} if vocabulary is None else dict(vocabulary.genes)
    symbols = {} if vocabulary is None else {gene: symbol for symbol, gene in sorted(vocabulary.symbols.items())}
    if config.gene_names is not None:
        symbols |= read_gene_names(config.gene_names)
        source = f"symbols: {config.gene_names}; {source}"
    return GeneNames(tokens, symbols, screen.names()), source


def _gene(name: str | None, names: GeneNames) -> str | None:
    """Return the Ensembl ID that a name of the user means: itself, or that of the one gene with this symbol."""
    ids = sorted(gene for gene, symbol in names.symbols.items() if symbol == name and name not in names.tokens)
    if len(ids) > 1:
        fix = "Name the gene by its Ensembl ID."
        raise InputError("--anchor", "a symbol must mean one gene", f"{name} ({', '.join(ids)})", fix)
    return ids[0] if ids else name


def _vocabulary(config: PerturbationStatsConfig, screen: ShiftTable) -> tuple[GeneVocabulary | None, str]:
    if config.vocabulary is not None:
        return GeneVocabulary.load(config.vocabulary), config.vocabulary
    corpus = screen.manifest.corpus
    try:
        same = CorpusManifest.load(corpus).digest == screen.manifest.corpus_digest
    except InputError:
        same = False
    if not same:
        return None, "none: the corpus is not there or has changed; --vocabulary names another source"
    return GeneVocabulary.load(storage.join(corpus, schema.VOCABULARY)), corpus


def named(table: pd.DataFrame, names: GeneNames) -> pd.DataFrame:
    """Put the columns of token ids, symbols and the user's names of perturbations before those of Ensembl IDs."""
    table = names.called(table, "Pair" if "Pair" in table else "Ensembl_ID")
    if "Affected_Ensembl_ID" in table:
        table = names.put_before(table, "Ensembl_ID", "Perturbed", "Gene_name")
        table = names.put_before(table, "Affected_Ensembl_ID", "Affected", "Affected_gene_name")
        of_cell = table["Affected_Ensembl_ID"] == CELL
        table.loc[of_cell, "Affected"] = CELL
        return table.assign(Affected_Ensembl_ID=table["Affected_Ensembl_ID"].where(~of_cell, None).astype("string"))
    if "Anchor_Ensembl_ID" in table:
        table = names.put_before(table, "Anchor_Ensembl_ID", "Anchor", "Anchor_name")
    return names.put_before(table, "Ensembl_ID", "Gene", "Gene_name")


def _cells(
    screen: ShiftTable, config: PerturbationStatsConfig, names: GeneNames, kept: set[str]
) -> Iterator[pd.DataFrame]:
    """Yield the values of single cells: official columns, then what they belong to."""
    for rows in cell_rows(screen, config.measure):
        genes = pd.Series(rows["genes"].to_pylist(), dtype=object)
        _, symbols = names.columns(genes)
        shown = pd.Series(symbols, dtype=object).fillna(genes)
        columns = {value_name(config.measure): rows["value"], "Gene": shown, "Ensembl_ID": genes}
        frame = names.called(pd.DataFrame({**columns, "cell_id": rows["cell"].to_pylist()}), "Ensembl_ID")
        yield frame[genes.isin(kept) & frame[value_name(config.measure)].notna()]


def read_table(output: str) -> pd.DataFrame:
    """Return the gene table of finished statistics.

    Raises
    ------
    InputError
        There are none.
    """
    return read_made_table(output, StatisticsManifest)


def few_detections(output: str) -> str | None:
    """Warn where most of the first rows of finished statistics are of a handful of cells; None where they are not.

    Means over few cells are the most extreme: they head a table that nothing was left out of.
    """
    table = read_table(output)
    column = next((name for name in ("N_Detections", "N_Detections_test") if name in table), None)
    if column is None or table.empty:
        return None
    found = table[column].to_numpy()
    few, shown = int((found[:FIRST_ROWS] < FEW_CELLS).sum()), min(FIRST_ROWS, len(found))
    if 2 * few <= shown:
        return None
    fix = f"--min-detections {FEW_CELLS} leaves them out" if (found >= FEW_CELLS).any() else "screen more cells"
    return f"{few} of the first {shown} rows were detected in fewer than {FEW_CELLS} cells: {fix}"
