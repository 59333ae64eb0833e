"""What a fine-tuned model tells of a corpus, on Ray Data: labels with probabilities, numbers, genes over all cells."""

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import pyarrow as pa
from pydantic import Field, model_validator

from cellray import prediction_schema, schema, storage
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.parts import PartWriter, Unit, make_part
from cellray.data.publishing import finished, publish_manifest
from cellray.data.session import plain_errors
from cellray.data.units import require_records, run_units_on_actors
from cellray.errors import InputError
from cellray.infer.gene_sums import GeneSums
from cellray.infer.predict_worker import PredictOptions, PredictWorker, answer_columns
from cellray.infer.replicas import ReplicaConfig, open_pair
from cellray.model.annotator_directory import load_annotator, require_heads
from cellray.model.checkpoint import ModelDirectory
from cellray.model.heads import HeadSpec
from cellray.prediction_schema import PredictionManifest
from cellray.schema import PartRecord

logger = logging.getLogger(__name__)

_HEAD_LEVEL = {"cell": "cell", "gene": "gene", "token": "gene"}
_KEYS = {schema.CELL_ID, schema.SOURCE_ROW, schema.GENE, prediction_schema.CELLS}
_PARTIAL = "partial"  # sums of row ranges, removed when the genes are published


class PredictConfig(ReplicaConfig):
    """Predict labels and numbers for every cell, or every gene, of a token corpus."""

    model: str = Field(description="fine-tuned model: a directory from jobs.finetune, or models:/NAME@ALIAS")
    output: str = Field(description="directory or s3:// URI of the predictions (parquet)")
    level: Literal["cell", "gene", "token"] | None = Field(
        None,
        description="what a row is: cell, gene (mean over its cells) or token (a gene of a cell); "
        "default: cell if the model tells something of cells, else gene",
    )
    obs_columns: tuple[str, ...] | None = Field(None, description="obs columns to copy, default: all the corpus kept")
    h5ad: str | None = Field(None, description="also write an .h5ad here: obs of the sources, with the predictions")

    @model_validator(mode="after")
    def _sensible(self) -> "PredictConfig":
        if self.level == "gene" and self.obs_columns:
            raise ValueError("--obs-columns belong to cells: --level cell or token")
        if self.level not in (None, "cell") and self.h5ad is not None:
            raise ValueError("--h5ad needs predictions of cells: --level cell")
        return self


@plain_errors()
def predict_cells(config: PredictConfig) -> PredictionManifest:
    """Predict a corpus and publish the predictions with their manifest.

    A finished result of the same request is returned as it is; after an interruption only the missing parts are made.

    Raises
    ------
    InputError
        Corpus or model are unfinished or do not fit together, the model tells nothing at this level, or the output
        holds something else.
    """
    corpus, model, reference = open_pair(config)
    require_heads(model)
    level, specs = chosen_heads(config, model)
    obs_columns = _obs_columns(config, corpus, specs, level)
    output = storage.absolute(config.output)
    parameters = {
        "model": model.digest,
        "heads": [spec.to_json() for spec in specs],  # names of classes are no part of the weights
        "level": level,
        "pooling": model.provenance["pooling"],
        "columns": list(obs_columns.items()),
        "budget": config.budget,
    }
    units = corpus.plan_units(config.cells_per_part, **parameters)
    request = schema.request_digest(artefact="predictions", units=[unit.key for unit in units])
    if done := finished(output, request, PredictionManifest):
        return done
    load_annotator(model)  # weights that do not fit fail before actors start
    names = tuple(spec.name for spec in specs)
    options = PredictOptions(config.replica(corpus, reference), level, names, obs_columns)
    place = storage.join(output, _PARTIAL) if level == "gene" else output
    parts = require_records(run_units_on_actors("predict", place, units, lambda: PredictWorker(options), config.pool))
    if level == "gene":
        parts = (_join_genes(place, output, parts, specs, corpus, request),)
    manifest = PredictionManifest(
        request=request,
        parts=parts,
        software=schema.software_versions("torch", "transformers", "pyarrow"),
        corpus=corpus.uri,
        corpus_digest=corpus.manifest.digest,
        model=reference.uri,
        model_digest=model.digest,
        level=level,
        heads=tuple(spec.to_json() for spec in specs),
        renamed={old: new for old, new in obs_columns.items() if old != new},
    )
    publish_manifest(output, manifest)
    if level == "gene":
        storage.remove_directory(place)
    return manifest


def chosen_heads(config: PredictConfig, model: ModelDirectory) -> tuple[str, list[HeadSpec]]:
    """Return what a row is, and the heads that tell something of it.

    Raises
    ------
    InputError
        The model has no such head.
    """
    have = [spec.level for spec in model.heads]
    level = config.level or ("cell" if "cell" in have else "gene")
    specs = [spec for spec in model.heads if spec.level == _HEAD_LEVEL[level]]
    told = ", ".join(f"{spec.name} of each {spec.level}" for spec in model.heads)
    if not specs:
        rule = f"--level {level} needs a head of that level"
        raise InputError(model.uri, rule, f"it tells {told}", "Choose another level.")
    if config.h5ad is not None and level != "cell":
        rule, found = "an .h5ad has a row for each cell", f"a model that tells {told}"
        raise InputError("--h5ad", rule, found, "Leave out --h5ad: the predictions are parquet tables.")
    return level, specs


def _obs_columns(config: PredictConfig, corpus: Corpus, specs: Sequence[HeadSpec], level: str) -> dict[str, str]:
    """Return the columns to copy and their names: one that a prediction bears too gets `obs.` in front."""
    made = [field.name for field in prediction_schema.prediction_fields({spec.name: spec.classes for spec in specs})]
    twice = {name for name in made if made.count(name) > 1} | (set(made) & _KEYS)
    if twice:
        rule = "each prediction needs a column of its own"
        raise InputError("heads", rule, f"{min(twice)!r} is taken", "Name the heads otherwise when fine-tuning.")
    if level == "gene":
        return {}
    for name in config.obs_columns or ():
        corpus.require_column(name, "--obs-columns")
    wanted = tuple(corpus.manifest.obs_kinds) if config.obs_columns is None else config.obs_columns
    return free_names(wanted, made)


def free_names(columns: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Return a name for each column that no prediction bears: its own, or with `obs.` in front."""
    names: dict[str, str] = {}
    for column in dict.fromkeys(columns):
        name = column
        while name in taken or (name != column and name in columns):
            name = f"obs.{name}"
        names[column] = name
        if name != column:
            logger.info("the obs column %r is written as %r: a prediction bears its name", column, name)
    return names


def _join_genes(
    place: str, output: str, parts: Sequence[PartRecord], specs: Sequence[HeadSpec], corpus: Corpus, request: str
) -> PartRecord:
    """Add up the sums of all row ranges and publish a row for each gene."""
    sums = GeneSums(specs, len(corpus.vocabulary))
    for part in parts:
        sums.add_table(read_rows(part.uri_in(place), 0, part.rows))
    tokens, cells, means = sums.means()
    names = pa.array([corpus.vocabulary.gene_of_token[int(token)] for token in tokens], pa.string())
    wanted = prediction_schema.prediction_schema({spec.name: spec.classes for spec in specs}, (), level="gene")
    table = pa.table([names, pa.array(cells), *answer_columns(specs, means)], schema=wanted)

    def write(unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
        open_part(wanted).write(table)

    return make_part(Unit(request, corpus.uri, corpus.manifest.digest, 0, 0, corpus.manifest.rows), write, output)
