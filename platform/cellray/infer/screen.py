"""In silico perturbation screens over a token corpus: options, plan, and the shifts that are published.

What a replica computes is `cellray.infer.screen_worker`'s; statistics are `cellray.statistics`'.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from cellray import schema, storage
from cellray.data.corpora.codes import read_codes
from cellray.data.corpora.corpus import Corpus
from cellray.data.medians.gene_tables import read_symbols
from cellray.data.parts import find_part
from cellray.data.progress import Measure
from cellray.data.publishing import finished, publish_manifest
from cellray.data.session import plain_errors
from cellray.data.units import require_records, run_units_on_actors
from cellray.errors import InputError, listing
from cellray.infer.answers import cell_heads, prediction_names
from cellray.infer.design import ALL_GENES, Design, make_design, read_design
from cellray.infer.effect_parts import effect_part, find_with_effects
from cellray.infer.lacking import find_lacking
from cellray.infer.prefilter.options import check_prefilter, prefiltered_plan
from cellray.infer.replicas import ReplicaConfig, open_pair
from cellray.infer.screen_plan import ScreenPlan, corpus_lengths, make_plan
from cellray.infer.screen_worker import ScreenOptions, ScreenWorker
from cellray.infer.states import read_states, state_embeddings
from cellray.model.checkpoint import ModelDirectory
from cellray.model.encoder import check_layer, load_encoder
from cellray.model.pooling import check_pooling
from cellray.models import ModelReference
from cellray.perturbation import make_edit
from cellray.prefilter_schema import PrefilterManifest
from cellray.shift_schema import EFFECTS, NOTE, Kind, ScreenNote, ShiftManifest, States, shift_schema

logger = logging.getLogger(__name__)


class ScreenConfig(ReplicaConfig):
    """Perturb genes of cells in silico and measure what it does to the cells' embeddings."""

    output: str = Field(description="directory or s3:// URI of the shifts (parquet)")
    kind: Kind = Field("delete", description="delete, overexpress, inhibit or activate")
    quartiles: int = Field(1, ge=1, le=3, description="quartiles of rank to move by; for inhibit and activate")
    genes: tuple[str, ...] = Field(
        (ALL_GENES,), description="all, or Ensembl IDs or symbols, each perturbed on its own"
    )
    together: bool = Field(False, description="perturb the listed genes together")
    pairs: bool = Field(False, description="perturb all pairs of the listed genes, and each of them")
    anchor: tuple[str, ...] = Field((), description="genes perturbed together with each listed one, or each of a cell")
    perturbations: str | None = Field(None, description="TOML of name = [genes], or CSV with columns name, genes (A|B)")
    gene_names: str | None = Field(
        None, description="Ensembl IDs and symbols (.csv, .tsv, .parquet, .json); default: the vocabulary's symbols"
    )
    layer: int = Field(-1, description="hidden state: 0 = last, -1 = second to last, ...")
    pooling: Literal["cell", "cls"] = Field("cell", description="cell (mean over genes) or cls (V2 models)")
    precision: Literal["float32", "bf16", "fp16"] = Field("float32", description="in which the model computes")
    state_column: str | None = Field(None, description="obs column of the corpus that names the cells' states")
    start: str | None = Field(None, description="state whose cells are perturbed")
    goal: str | None = Field(None, description="state that shifts are measured towards")
    alternatives: tuple[str, ...] = Field((), description="further states that shifts are measured towards")
    state_statistic: Literal["mean", "median"] = Field("mean", description="of a state's cell embeddings")
    state_embeddings: str | None = Field(
        None, description="parquet with the columns state and embedding: these states, not those of the corpus"
    )
    probabilities: bool = Field(
        False, description="also the change of what a fine-tuned model tells of the cell; it sees each copy once more"
    )
    effects: bool = Field(False, description="also write the effect on each gene of the cell; with --pooling cell")
    max_cells: int | None = Field(None, ge=1, description="perturb so many cells, drawn evenly over --donor [cells]")
    donor: str | None = Field(None, description="obs column of donors, for --max-cells")
    max_perturbations: int | None = Field(
        None, ge=1, description="of each cell, those of its highest ranking genes or first listed [perturbations]"
    )
    seed: int = Field(0, ge=0, description="of the draw of cells")
    exact: bool = Field(True, description="--no-exact: estimate every gene, evaluate the promising ones and a sample")
    evaluate: int = Field(40, ge=1, description="--no-exact: evaluations of promising genes, a cell on average")
    sample: int = Field(20, ge=1, description="--no-exact: evaluations of other genes, drawn, a cell on average")
    top: int = Field(50, ge=1, description="--no-exact: of how many of the best genes the recall is estimated")
    min_detections: int = Field(1, ge=1, description="--no-exact: least cells of a gene that counts as promising")
    dry_run: bool = Field(False, description="say what would be done, and do nothing")

    @model_validator(mode="after")
    def _goes_together(self) -> "ScreenConfig":
        given = [self.start is not None, self.goal is not None]
        if self.state_embeddings is not None and not all(given):
            raise ValueError("--state-embeddings needs --start and --goal")
        given.append(self.state_column is not None or self.state_embeddings is not None)
        if any(given) and not all(given):
            raise ValueError("--state-column, --start and --goal go together")
        states = [self.start, self.goal, *self.alternatives]
        if self.start is not None and len(set(states)) < len(states):
            raise ValueError("--start, --goal and --alternatives must be different states")
        if self.alternatives and self.start is None:
            raise ValueError("--alternatives needs --state-column, --start and --goal")
        if self.effects and self.pooling != "cell":
            raise ValueError("--effects needs --pooling cell")
        if sum(map(bool, (self.together, self.pairs, self.anchor))) > 1:
            raise ValueError("--together, --pairs and --anchor: one of them at most")
        other = self.genes != (ALL_GENES,) or self.together or self.pairs or self.anchor
        if self.perturbations is not None and other:
            raise ValueError("--perturbations goes without --genes, --together, --pairs and --anchor")
        if not self.exact:
            check_prefilter(self)
        return self

    @property
    def states(self) -> States | None:
        """The states that shifts are measured towards."""
        if self.start is None:
            return None
        return States(start=self.start, goal=self.goal, alternatives=self.alternatives)


@plain_errors()
def screen(config: ScreenConfig) -> ShiftManifest | PrefilterManifest | ScreenPlan:
    """Run a screen and publish its shifts with their manifest; with `dry_run` return the plan alone.

    With `exact` false few perturbations are evaluated: see `cellray.infer.prefilter`.

    A finished result of the same request is returned as it is; after an interruption only the missing parts are made.

    Raises
    ------
    InputError
        Corpus, model, genes and states do not fit together, or the output holds something else.
    """
    corpus, model, reference = open_pair(config)
    design = open_design(config, corpus)
    _check(config, corpus, model, design)
    plan = make_plan(config, corpus, model, design)
    if not config.exact:
        return _prefiltered(config, corpus, model, reference, design, plan)
    if config.dry_run:
        return plan
    output = storage.absolute(config.output)
    request = schema.request_digest(artefact="perturbation shifts", units=[unit.key for unit in plan.units])
    if done := finished(output, request, ShiftManifest):
        return done
    note = ScreenNote(
        request=request,
        kind=config.kind,
        corpus=corpus.uri,
        model=reference.uri,
        cells=int(plan.chosen_n.sum()),
        units=len(plan.units),
        perturbations=plan.copies,
    )
    storage.write_bytes(storage.join(output, NOTE), note.model_dump_json(indent=1).encode())
    load_encoder(model, config.layer)  # weights that do not fit fail before actors start
    options = _options(config, corpus, model, reference, design, plan)
    measure = Measure("perturbations", lambda unit: plan.work[unit.key])
    find = find_with_effects if config.effects else find_part
    results = run_units_on_actors(
        "perturb", output, plan.units, lambda: ScreenWorker(options), config.pool, measure, find
    )
    parts = require_records(results)
    if not any(part.rows for part in parts):
        rule, fix = "some perturbation must apply to some cell", "Choose genes that the cells have, or other cells."
        raise InputError(corpus.uri, rule, f"none of {plan.copies:,}{_lacked(corpus, design, plan)}", fix)
    manifest = _manifest(config, corpus, model, reference, design, plan, parts, request)
    publish_manifest(output, manifest, (EFFECTS,) if config.effects else ())
    return manifest


def _lacked(corpus: Corpus, design: Design, plan: ScreenPlan) -> str:
    """Tell which listed genes all the chosen cells lack."""
    lacking, cells = find_lacking(corpus, design, plan.chosen_n), int(plan.chosen_n.sum())
    genes = [] if lacking is None else [gene for gene, number in lacking.genes.items() if number == cells]
    return f"; all cells lack {listing(genes)}" if genes else ""


def _prefiltered(
    config: ScreenConfig,
    corpus: Corpus,
    model: ModelDirectory,
    reference: ModelReference,
    design: Design,
    plan: ScreenPlan,
) -> PrefilterManifest | ScreenPlan:
    """Do a screen with few exact evaluations, or plan it."""
    from cellray.infer.prefilter.job import Prefilter, prefiltered

    load_encoder(model, config.layer)
    if config.dry_run:
        return prefiltered_plan(config, plan, corpus_lengths(corpus))
    options = _options(config, corpus, model, reference, design, plan)
    lineage = {"kind": config.kind, "corpus": corpus.uri, "corpus_digest": corpus.manifest.digest}
    lineage |= {"model": reference.uri, "model_digest": model.digest}
    fields: dict[str, Any] = {
        "layer": config.layer,
        "pooling": config.pooling,
        "states": config.states,
        "skipped": plan.skipped,
    }
    fields |= {"obs_kinds": dict(corpus.manifest.obs_kinds), "design": {"precision": config.precision}}
    return prefiltered(Prefilter(config, corpus, plan, options, lineage), fields)


def open_design(config: ScreenConfig, corpus: Corpus) -> Design:
    """Return the perturbations that the options name.

    Raises
    ------
    InputError
        A gene is unknown or listed twice, or there are too many perturbations.
    """
    symbols = None if config.gene_names is None else read_symbols(config.gene_names)
    if config.perturbations is not None:
        ordered = make_edit(config.kind, config.quartiles).ordered
        return read_design(corpus.vocabulary, config.perturbations, symbols, ordered=ordered)
    return make_design(
        corpus.vocabulary,
        config.genes,
        together=config.together,
        pairs=config.pairs,
        anchor=config.anchor,
        symbols=symbols,
    )


def _check(config: ScreenConfig, corpus: Corpus, model: ModelDirectory, design: Design) -> None:
    make_edit(config.kind, config.quartiles)
    check_pooling(config.pooling, corpus.vocabulary)
    check_layer(model, config.layer)
    if design.largest > (most := corpus.vocabulary.layout(corpus.manifest.encoding.input_size).max_genes):
        rule, fix = f"cells of this corpus hold {most:,} genes at most", "List fewer genes together."
        raise InputError("--genes", rule, f"{design.largest:,} that are perturbed together", fix)
    if config.state_column is not None:  # before heads: a recipe that names another column than the corpus has
        asked: dict[str, tuple[str, ...]] = {"--start": (str(config.start),)}
        if config.state_embeddings is None:
            asked |= {"--goal": (str(config.goal),), "--alternatives": config.alternatives}
        check_states(corpus, config.state_column, asked)
    names = prediction_names(cell_heads(model)) if config.probabilities else ()
    own = shift_schema(config.states.names if config.states else (), (), names, named=design.named).names
    if taken := set(own) & set(corpus.manifest.obs_kinds):
        rule, fix = "an obs column may not bear a name of the shifts' own", "Tokenize again without it, or rename it."
        raise InputError(corpus.uri, rule, listing(taken), fix)
    if config.state_embeddings is not None:
        assert config.states is not None
        read_states(config.state_embeddings, config.states.names, int(model.config.hidden_size))


def check_states(corpus: Corpus, column: str, asked: Mapping[str, tuple[str, ...]]) -> None:
    """Check that states have cells.

    Parameters
    ----------
    column
        Obs column that names the cells' states.
    asked
        The states that each option names.

    Raises
    ------
    InputError
        The corpus has no such column, or one of the states has no cell.
    """
    known = read_codes(corpus, column, "--state-column").values
    for option, names in asked.items():
        if missing := [name for name in names if name not in known]:
            found = f"{missing[0]!r}; {column!r} holds {listing(known, limit=30)}"
            raise InputError(corpus.uri, f"{option} must be a state with cells", found, "Correct the name.")


def _options(
    config: ScreenConfig,
    corpus: Corpus,
    model: ModelDirectory,
    reference: ModelReference,
    design: Design,
    plan: ScreenPlan,
) -> ScreenOptions:
    states = state_embeddings(config, corpus) if config.states is not None else {}
    return ScreenOptions(
        replica=config.replica(corpus, reference),
        output=storage.absolute(config.output),
        kind=config.kind,
        quartiles=config.quartiles,
        layer=config.layer,
        pooling=config.pooling,
        precision=config.precision,
        effects=config.effects,
        probabilities=config.probabilities,
        design=design,
        ranges=plan.ranges,
        together=plan.together,
        chosen_n=plan.chosen_n,
        states=states,
        obs_columns=tuple(corpus.manifest.obs_kinds),
    )


def _manifest(
    config: ScreenConfig,
    corpus: Corpus,
    model: ModelDirectory,
    reference: ModelReference,
    design: Design,
    plan: ScreenPlan,
    parts: Any,  # noqa: ANN401  # records of the parts
    request: str,
) -> ShiftManifest:
    output = storage.absolute(config.output)
    asked = config.model_dump(mode="json", include={"genes", "together", "pairs", "anchor", "quartiles", "precision"})
    return ShiftManifest(
        request=request,
        parts=parts,
        software=schema.software_versions("torch", "transformers", "pyarrow"),
        kind=config.kind,
        corpus=corpus.uri,
        corpus_digest=corpus.manifest.digest,
        model=reference.uri,
        model_digest=model.digest,
        layer=config.layer,
        pooling=config.pooling,
        states=config.states,
        obs_kinds=dict(corpus.manifest.obs_kinds),
        design={**asked, "perturbations": len(design), "digest": design.digest, "named": design.named},
        skipped=plan.skipped,
        lacking=find_lacking(corpus, design, plan.chosen_n),
        predictions=prediction_names(cell_heads(model)) if config.probabilities else (),
        effect_parts=tuple(effect_part(unit, output) for unit in plan.units) if config.effects else (),
    )
