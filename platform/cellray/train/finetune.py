"""Fine-tuning: the job's options, its folds, the report, and the model directory that comes out."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus
from cellray.data.session import plain_errors
from cellray.errors import InputError, listing
from cellray.model.annotator_directory import save_annotator
from cellray.models import ModelReference, open_model
from cellray.tracking import Tracker
from cellray.tracking.options import TrackingOptions
from cellray.train.evaluation import flat_metrics, lines_on_genes, write_report
from cellray.train.feed import spans
from cellray.train.finetune_plan import FinetunePlan, ModelOptions, load_best
from cellray.train.folds import TRAIN, VALIDATION
from cellray.train.options import GROUP_FIELDS, GroupOptions, OptimiserOptions
from cellray.train.order import TrainingOrder
from cellray.train.parameters import count_parameters, merge_lora
from cellray.train.planning import check_share, count_steps, loop_config, warn_of_warmup
from cellray.train.recording import made_before, nested, recorded, register
from cellray.train.reports import Recorder, draw_training
from cellray.train.split_overview import overview
from cellray.train.tasks.contract import ALL, Arrays, Task
from cellray.train.tasks.table import TaskConfig, read_task
from cellray.train.tested_rows import TEST_PREDICTIONS, write_test_predictions
from cellray.train.trainer import check_resources, fit, threads_of
from cellray.train.turn import Turn
from cellray.train.unfinished import Asked

logger = logging.getLogger(__name__)

METRICS = "metrics.json"
TEST_FIGURES = "test/"
"""Before the names of the test parts' figures in a run: those of validations have the same names."""


class _Subject(JobConfig):
    """What is trained on what."""

    corpus: str = Field(description="token corpus with the labels, from jobs.tokenize_corpus --obs-columns")
    model: str = Field(description="model to start from: a directory, ours or an official one, or models:/NAME@ALIAS")
    task: str = Field(description="TOML file of task, labels and split; examples: jobs/configs/task_*.toml")
    output: str = Field(description="directory or s3:// URI of the model; the report goes to OUTPUT.report")


class _Stopping(JobConfig):
    """When a fold has learnt enough."""

    monitor: str = Field("validation_loss", description="metric of the validation part that chooses the best step")
    patience: int | None = Field(
        None, ge=1, description="stop a fold after so many validations without a better one [validations]"
    )


class FinetuneConfig(TrackingOptions, GroupOptions, ModelOptions, _Stopping, OptimiserOptions, _Subject):
    """Fine-tune a model: classes or numbers of cells, several at once, or classes of genes.

    With several folds each is trained and tested on its own, and the published model is then trained on all cells.
    """

    usual_epochs: ClassVar[float] = 10
    epochs: float | None = Field(
        None, gt=0, description="times each cell is seen, default: 10, or as many as --max-steps takes [epochs]"
    )
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate of the heads")
    validate_every: int | None = Field(None, ge=1, description="steps between validations, default: an epoch [steps]")


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning made.

    Attributes
    ----------
    uri, report
        The model directory and the folder of figures.
    heads
        Mean and standard deviation over the folds of each figure, by head.
    pooled
        With several folds: each figure of all their test parts together, by head.
    tested
        What that is, by head: `14 genes`.
    tracked
        Where the run is recorded.
    """

    uri: str
    report: str
    heads: dict[str, dict[str, tuple[float | None, float | None]]]
    pooled: dict[str, dict[str, float | None]]
    tested: dict[str, str]
    tracked: str


@plain_errors()
def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Fine-tune a model, test it, and write its directory.

    A model that this very request made before is returned as it is; a run that was broken off goes on from its last
    checkpoint.

    Raises
    ------
    InputError
        Corpus, model, task and options do not fit, or the output holds something else, or beside it lies an unfinished
        training with other options.
    TrainingError
        The loss is not a finite number.
    """
    corpus, task_config = Corpus.open(config.corpus), read_task(config.task)
    parent = open_parent(config, corpus)
    options, output = _asked(config, corpus, parent, task_config), storage.absolute(config.output)
    request = schema.request_digest(**options)
    if (made := made_before(output, request)) is not None:
        register(config, output, request, corpus, None)
        return _read_result(output, made["run"])
    task: Task = task_config.open(corpus)
    plans = make_plans(config, corpus, parent, task, task_config, request)
    asked = Asked(f"{output}.training", request, options, plans[0].loop.steps, len(plans))
    asked.require_training()
    _announce(config, plans, task, corpus)
    check_resources(config)
    turn = Turn.take(asked.folder)
    asked.write()
    facts = {"steps": plans[0].loop.steps, "cells": corpus.manifest.rows, "folds": len(task.folds)}
    with recorded(config, f"finetune {Path(config.task).stem}", request, corpus, parent, facts) as tracker:
        tracker.log_text(task_config.model_dump_json(indent=1), "task.json")
        recorders = _fit(config, plans, request, tracker, turn)
        tested = [plan.answers() for plan in plans if plan.part == TRAIN]
        _report(f"{output}.report", corpus, task, tested, config, tracker, recorders)
        if made_before(output, request) is None:  # else another job on this output ended while this one trained
            made = provenance(config, corpus, parent, request, task_config) | {"run": tracker.where()}
            publish(plans[-1], corpus, made, output)
        tracker.set_tags({"model": output})
        register(config, output, request, corpus, tracker)
    storage.remove_directory(asked.folder)
    return _read_result(output, tracker.where())


def _fit(
    config: FinetuneConfig, plans: Sequence[FinetunePlan], request: str, tracker: Tracker, turn: Turn
) -> list[Recorder]:
    """Train and return what was reported; each fold has a run of its own below the job's, if there are several."""
    if len(plans) == 1:
        recorder = Recorder(tracker, plans[0].loop.steps)
        recorder.kept = fit(plans, [recorder], turn)[0].best_step or None
        return [recorder]
    names = [plan.title for plan in plans]
    keys = {name: f"{request}{name.replace(' ', '')}" for name in names}
    with nested(tracker, config, keys) as trackers:
        told = zip(trackers, plans, names, strict=True)
        recorders = [Recorder(each, plan.loop.steps, name) for each, plan, name in told]
        fit(plans, recorders, turn)
    return recorders


def make_plans(
    config: FinetuneConfig, corpus: Corpus, parent: ModelReference, task: Task, task_config: TaskConfig, request: str
) -> list[FinetunePlan]:
    """Return a plan for each fold and, if there are several folds, one for the published model.

    Raises
    ------
    InputError
        The metric to watch is not one that is measured, or there is nothing to validate on.
    """
    measured = ["validation_loss", *task.metric_names()]
    if config.monitor not in measured:
        found = f"{config.monitor!r}; measured: {listing(measured, limit=40)}"
        raise InputError("--monitor", "the metric to watch must be measured", found, "Choose one of those.")
    watches = config.patience is not None or config.monitor != "validation_loss"
    if watches and not all(len(task.folds.rows(fold, VALIDATION)) for fold in range(len(task.folds))):
        found = "a split without one (validation_fraction = 0)"
        fix = "Give the split of the task file a validation part, or leave out --patience and --monitor."
        raise InputError("--patience, --monitor", "watch a validation part", found, fix)
    folds = len(task.folds)
    wanted = [(fold, TRAIN) for fold in range(folds)] + ([(0, ALL)] if folds > 1 else [])
    return [plan_fold(config, corpus, parent, task, task_config, request, fold, part) for fold, part in wanted]


def plan_fold(
    config: FinetuneConfig,
    corpus: Corpus,
    parent: ModelReference,
    task: Task,
    task_config: TaskConfig,
    request: str,
    fold: int,
    part: int,
) -> FinetunePlan:
    """Return the plan of training on one part of one fold."""
    order = TrainingOrder(spans(corpus), config.batch_size, task.selection(fold, part), config.seed)
    check_share(config.batch_size, order.cells, config)
    steps = count_steps(order, config)
    loop = loop_config(config, config, steps, order.steps(0), config.monitor, config.patience)
    return FinetunePlan(
        corpus=corpus.uri,
        loop=loop,
        batch_size=config.batch_size,
        precision=config.precision,
        group=GroupOptions(**{key: getattr(config, key) for key in GROUP_FIELDS}),
        threads=threads_of(config),
        checkpoints=storage.join(f"{storage.absolute(config.output)}.training", f"{request[:12]}-{fold}-{part}"),
        model=parent,
        task=task_config,
        fold=fold,
        part=part,
        options=ModelOptions(**{key: getattr(config, key) for key in ModelOptions.model_fields}),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )


def publish(plan: FinetunePlan, corpus: Corpus, provenance: dict[str, Any], uri: str) -> None:
    """Write the model directory of a finished plan: of its best step."""
    model = plan.objective(corpus, torch.device("cpu"), 0)
    step = load_best(plan, model.module)
    save_annotator(merge_lora(model.model), corpus.vocabulary, provenance | {"steps": step}, uri)


def _asked(config: FinetuneConfig, corpus: Corpus, parent: ModelReference, task: TaskConfig) -> dict[str, Any]:
    """Return what was asked for: where it goes and how it is watched or shared out do not count."""
    ignored = {"corpus", "output", "model", "task", *GROUP_FIELDS, *TrackingOptions.model_fields}
    contents = {"corpus": corpus.manifest.digest, "model": parent.digest, "task": task.model_dump()}
    return contents | config.model_dump(exclude=ignored)


def provenance(
    config: FinetuneConfig, corpus: Corpus, parent: ModelReference, request: str, task: TaskConfig
) -> dict[str, Any]:
    """Return where a model comes from."""
    return {
        "objective": task.task,
        "task": task.model_dump(mode="json"),
        "parent": parent.uri,
        "parent_digest": parent.digest,
        "seed": config.seed,
        "request": request,
        "corpus": corpus.uri,
        "corpus_digest": corpus.manifest.digest,
        "software": schema.software_versions("ray", "torch", "transformers"),
    }


def open_parent(config: FinetuneConfig, corpus: Corpus) -> ModelReference:
    """Open the model to start from.

    Raises
    ------
    InputError
        It has another vocabulary than the corpus, or shorter rows.
    """
    model, parent = open_model(config.model, config.tracking_uri)
    model.require_vocabulary(corpus.vocabulary, f"corpus {corpus.uri}", corpus.manifest.encoding.input_size)
    return parent


def _read_result(output: str, tracked: str) -> FinetuneResult:
    report = f"{output}.report"
    told = storage.read_json(storage.join(report, METRICS))
    heads, unit = told["heads"], told.get("unit", "cells")
    figures = {
        name: {key: (value, head["std"][key]) for key, value in head["mean"].items()} for name, head in heads.items()
    }
    several = {name: head["pooled"] for name, head in heads.items() if len(head["folds"]) > 1}
    pooled = {name: each["metrics"] for name, each in several.items()}
    return FinetuneResult(
        output, report, figures, pooled, {name: f"{each['n']:,} {unit}" for name, each in several.items()}, tracked
    )


def _report(
    uri: str,
    corpus: Corpus,
    task: Task,
    tested: Sequence[Arrays],
    config: FinetuneConfig,
    tracker: Tracker,
    recorders: Sequence[Recorder],
) -> None:
    """Write answers, figures and pictures, and hand them to the tracker."""
    results = task.results(tested)
    for line in lines_on_genes(task.folds, results):
        logger.info("%s", line)
    with tempfile.TemporaryDirectory(prefix="cellray-report-") as name:
        folder = Path(name)
        folds = f", {len(task.folds)} folds" if len(task.folds) > 1 else ""
        title = f"{title_of(config.output)}{folds}"
        written = [draw_training(recorders, folder / "training.png", title)]
        written += write_report(folder, results, task.folds, title, task.details(tested))
        written.append(write_test_predictions(folder / TEST_PREDICTIONS, task.test_rows(corpus, tested)))
        for path in filter(None, written):
            tracker.log_file(path)
        if storage.exists(uri):  # of a run that was broken off before its model was published
            storage.remove_directory(uri)
        storage.publish_directory(folder, uri, last=METRICS)
    tracker.log_metrics({f"{TEST_FIGURES}{name}": value for name, value in flat_metrics(results).items()}, 0)


def title_of(output: str) -> str:
    """Return what pictures call a model: the last part of where it goes."""
    return storage.absolute(output).rstrip("/").rsplit("/", 1)[-1]


def _announce(config: FinetuneConfig, plans: Sequence[FinetunePlan], task: Task, corpus: Corpus) -> None:
    """Say what is about to happen."""
    counted = count_parameters(plans[0].initial(corpus))  # first: it refuses options that do not fit the model
    remarks = task.remarks(corpus)
    for line in (*overview(task.folds), *remarks.lines):
        logger.info("%s", line)
    for line in remarks.warnings:
        logger.warning("%s", line)
    unseen = task.folds.unseen()
    if len(unseen):  # they count as wrong answers, and metrics.json lists them
        names = (
            f"{row[1]}: {row[2]} (fold {row[0]}, {row[3]:,} {task.folds.unit})"
            for row in unseen.itertuples(index=False)
        )
        logger.warning("tested on, but never trained on: %s", listing(names))
    logger.info(
        "fine-tuning %s of %s weights of %s: %s, up to %s steps of %s cells each; starting takes half a minute",
        f"{counted.trainable:,}",
        f"{counted.total:,}",
        config.model,
        f"{len(task.folds)} folds, then all {task.folds.unit}" if len(task.folds) > 1 else "one split",
        f"{plans[0].loop.steps:,}",
        config.batch_size,
    )
    warn_of_warmup(plans[0].loop)
