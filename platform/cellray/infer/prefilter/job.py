"""A screen in two phases: estimates of all perturbations, then exact values of the promising and of a random sample.

Both phases are units of work that a rerun finds again; between them the driver adds up the estimates gene by gene.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cellray import schema, storage
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.parts import Unit
from cellray.data.publishing import finished, publish_manifest
from cellray.data.units import require_records, run_units_on_actors
from cellray.errors import InputError
from cellray.infer.prefilter.choice import CHOSEN, Means, PrefilteredDesign, choose_genes
from cellray.infer.prefilter.options import prefiltered_plan
from cellray.infer.prefilter.report import Evaluated, Rows, gene_table
from cellray.infer.prefilter.workers import EstimateSettings, EstimateWorker, PrefilteredWorker
from cellray.infer.screen_plan import corpus_lengths
from cellray.infer.screen_worker import ScreenOptions
from cellray.prefilter_schema import (
    CHOICE,
    ESTIMATE,
    GENE_TABLE,
    PROBABILITY,
    ROW,
    EstimateManifest,
    PrefilterManifest,
)
from cellray.schema import PartRecord
from cellray.shift_schema import NOTE, PERTURBATION, SIMILARITY, ScreenNote, shift_column

if TYPE_CHECKING:
    from cellray.infer.screen import ScreenConfig
    from cellray.infer.screen_plan import ScreenPlan

FOLDER = "estimates"
"""Ending of the directory of the estimates, beside that of the shifts; they stay."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Prefilter:
    """One prefiltered screen.

    Attributes
    ----------
    config, corpus, plan, options
        Of the screen; the options' design is that of every gene.
    lineage
        Fields that both manifests share.
    """

    config: "ScreenConfig"
    corpus: Corpus
    plan: "ScreenPlan"
    options: ScreenOptions
    lineage: dict[str, Any]

    @property
    def settings(self) -> EstimateSettings:
        """What decides the estimates."""
        return EstimateSettings(self.config.goal, seed=self.config.seed)

    @property
    def measure(self) -> str:
        """The column that estimates are of."""
        return SIMILARITY if self.config.goal is None else shift_column(self.config.goal)

    @property
    def output(self) -> str:
        """Directory of the shifts."""
        return storage.absolute(self.config.output)

    @property
    def estimates(self) -> str:
        """Directory of the estimates."""
        return f"{self.output.rstrip('/')}.{FOLDER}"

    def estimate_units(self) -> dict[str, Unit]:
        """Return by the key of each unit of the plan the unit of its cells' estimates."""
        found, of_cells = {}, dict[tuple[str, int], Unit]()
        for unit in self.plan.units:
            key = schema.request_digest(estimates_of=unit.key, grid=self.settings.grid, probes=self.settings.probes)
            own = replace(unit, key=schema.request_digest(key=key, seed=self.settings.seed))
            found[unit.key] = of_cells.setdefault((unit.uri, unit.start), own)
        return found

    def estimate(self) -> EstimateManifest:
        """Estimate all perturbations and publish that."""
        by_key = self.estimate_units()
        units = list(dict.fromkeys(by_key.values()))
        request = schema.request_digest(artefact="perturbation estimates", units=[unit.key for unit in units])
        if done := finished(self.estimates, request, EstimateManifest):
            return done
        ranges = {own.key: self.plan.ranges[key] for key, own in reversed(by_key.items())}
        options = replace(self.options, ranges=ranges, output=self.estimates)
        settings, pool = self.settings, self.config.pool
        results = run_units_on_actors(
            "estimate", self.estimates, units, lambda: EstimateWorker(options, settings), pool
        )
        manifest = EstimateManifest(
            request=request,
            parts=require_records(results),
            software=schema.software_versions("torch", "transformers", "pyarrow"),
            measure=self.measure,
            settings={"grid": settings.grid, "probes": settings.probes, "seed": settings.seed},
            **self.lineage,
        )
        publish_manifest(self.estimates, manifest)
        return manifest

    def choose(self, estimates: EstimateManifest) -> tuple[Means, PrefilteredDesign]:
        """Add up the estimates and choose genes."""
        tokens, config = len(self.corpus.vocabulary), self.config
        means = Means.zeros(tokens)
        for table in self._tables(self.estimates, estimates.parts, [PERTURBATION, ESTIMATE]):
            means.add(table[PERTURBATION].to_numpy(), table[ESTIMATE].to_numpy())
        budget = config.evaluate * int(self.plan.chosen_n.sum())
        least = config.min_detections
        chosen = choose_genes(means, budget, highest=config.goal is not None, least=least)
        return means, PrefilteredDesign.of(chosen, tokens, config.sample, config.seed, config.kind)

    def evaluate(self, design: PrefilteredDesign) -> tuple[PartRecord, ...]:
        """Evaluate exactly what was chosen and drawn."""
        by_key = self.estimate_units()
        keys = {
            unit.key: schema.request_digest(unit=unit.key, choice=design.digest, estimates=by_key[unit.key].key)
            for unit in self.plan.units
        }
        units = [replace(unit, key=keys[unit.key]) for unit in self.plan.units]
        ranges = {keys[key]: chosen for key, chosen in self.plan.ranges.items()}
        options = replace(self.options, ranges=ranges, design=design)
        estimated, where = {keys[key]: unit for key, unit in by_key.items()}, self.estimates
        return require_records(
            run_units_on_actors(
                "perturb", self.output, units, lambda: PrefilteredWorker(options, where, estimated), self.config.pool
            )
        )

    def gathered(
        self, means: Means, design: PrefilteredDesign, estimates: EstimateManifest, parts: Sequence[PartRecord]
    ) -> Evaluated:
        """Return what is known of each gene."""
        assert design.chosen_v is not None
        inverse_v = np.zeros(len(means.count_v))
        for table in self._tables(self.estimates, estimates.parts, [ROW, PERTURBATION]):
            token_r = table[PERTURBATION].to_numpy()
            other = ~design.chosen_v[token_r]
            row_r = table[ROW].to_numpy()[other]
            least = row_r.min() if len(row_r) else 0
            others_r = np.bincount(row_r - least)[row_r - least]  # how many perturbations the row's cell draws from
            probability_r = np.minimum(1.0, design.sample / others_r)
            weight_r = (1 - probability_r) / np.maximum(probability_r, 1e-300)
            np.add.at(inverse_v, token_r[other], weight_r if design.sample else np.inf)
        columns = [PERTURBATION, self.measure, ESTIMATE, CHOICE, PROBABILITY]
        pieces = map(_rows, self._tables(self.output, parts, columns))
        return Evaluated.of(means, pieces, inverse_v, highest=self.config.goal is not None)

    @staticmethod
    def _tables(directory: str, parts: Sequence[PartRecord], columns: list[str]) -> Iterator[pa.Table]:
        for part in parts:
            if part.rows:
                yield read_rows(part.uri_in(directory), 0, part.rows, columns).select(columns)


def _rows(table: pa.Table) -> Rows:
    token, exact, estimate, choice, probability = table.columns
    chosen = choice.to_numpy() == CHOSEN
    numbers = (column.to_numpy().astype(np.float64) for column in (exact, estimate, probability))
    exact_r, estimate_r, probability_r = numbers
    return token.to_numpy().astype(np.int64), exact_r, estimate_r, chosen, probability_r


def prefiltered(run: Prefilter, fields: dict[str, Any]) -> PrefilterManifest:
    """Run a prefiltered screen and publish its shifts, its gene table and its report.

    A finished result of the same request is returned as it is; after an interruption only the missing parts are made.

    Parameters
    ----------
    fields
        Further fields of the manifest.

    Raises
    ------
    InputError
        The output holds something else.
    """
    config = run.config
    asked = {name: getattr(config, name) for name in ("evaluate", "sample", "top", "seed", "min_detections")}
    units = [unit.key for unit in run.estimate_units().values()]
    request = schema.request_digest(artefact="prefiltered perturbation shifts", units=units, **asked)
    if done := finished(run.output, request, PrefilterManifest):
        return done
    _note(run, request)
    estimates = run.estimate()
    means, design = run.choose(estimates)
    if not means.count_v.any():
        raise InputError(config.corpus, "a prefiltered screen needs genes to perturb", "none", "Choose other cells.")
    parts = run.evaluate(design)
    found = run.gathered(means, design, estimates, parts)
    names = run.corpus.vocabulary.gene_of_token
    table, report = gene_table(found, names, CONFIDENCE, config.top, config.seed, config.min_detections)
    manifest = PrefilterManifest(
        request=request,
        parts=parts,
        software=schema.software_versions("torch", "transformers", "pyarrow"),
        estimates=run.estimates,
        measure=run.measure,
        tables=_write(run.output, table),
        report={**report, "forward passes": _cost(estimates, parts, means)},
        **run.lineage,
        **fields,
    )
    publish_manifest(run.output, manifest)
    return manifest


def _note(run: Prefilter, request: str) -> None:
    """Say at the output what is to do."""
    few = prefiltered_plan(run.config, run.plan, corpus_lengths(run.corpus))
    note = ScreenNote(
        request=request,
        kind=run.config.kind,
        corpus=run.lineage["corpus"],
        model=run.lineage["model"],
        cells=int(run.plan.chosen_n.sum()),
        units=len(run.plan.units),
        perturbations=few.copies,
        estimates=run.estimates,
        estimate_units=len(set(run.estimate_units().values())),
    )
    storage.write_bytes(storage.join(run.output, NOTE), note.model_dump_json(indent=1).encode())


def _cost(estimates: EstimateManifest, parts: Sequence[PartRecord], means: Means) -> dict[str, Any]:
    """Return rows through the model, a backward pass counted as two; unperturbed rows of both ways are not."""
    spent = sum(part.counts.get("forward passes", 0) for part in estimates.parts)
    exact, whole = sum(part.rows for part in parts), int(means.count_v.sum())
    return {"estimates": spent, "exact": exact, "whole screen": whole, "times fewer": whole / max(spent + exact, 1)}


def _write(output: str, table: pd.DataFrame) -> tuple[PartRecord, ...]:
    """Write the gene table as parquet and as CSV."""
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    records = []
    beside = GENE_TABLE.removesuffix(".parquet") + ".csv"
    for path, write in ((GENE_TABLE, pq.write_table), (beside, pa_csv.write_csv)):
        with storage.atomic_file(storage.join(output, path)) as temporary:
            write(arrow, temporary)
            digest = storage.sha256_file(str(temporary))
        records.append(PartRecord(path=path, rows=len(table), sha256=digest, source=0, start=0, stop=len(table)))
    return tuple(records)
