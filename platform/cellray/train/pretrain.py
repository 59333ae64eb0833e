"""Pretraining: the job's options, the plan for its workers, and the model directory that comes out."""

import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import BertForMaskedLM

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus
from cellray.data.session import plain_errors
from cellray.errors import InputError
from cellray.model.checkpoint import save_model
from cellray.model.presets import bert_config
from cellray.models import ModelReference, open_model
from cellray.tracking import Tracker
from cellray.tracking.options import TrackingOptions
from cellray.train.feed import spans
from cellray.train.options import GROUP_FIELDS, GroupOptions, OptimiserOptions
from cellray.train.order import RandomPart, TrainingOrder
from cellray.train.planning import check_share, count_steps, loop_config, warn_of_warmup
from cellray.train.pretrain_plan import PretrainPlan
from cellray.train.recording import made_before, recorded, register
from cellray.train.reports import Recorder, draw_training
from cellray.train.state import load_weights
from cellray.train.trainer import check_resources, fit, threads_of
from cellray.train.turn import Turn
from cellray.train.unfinished import Asked

logger = logging.getLogger(__name__)


class _Subject(JobConfig):
    """What is trained on what."""

    corpus: str = Field(description="token corpus, from jobs.tokenize_corpus")
    output: str = Field(description="directory or s3:// URI of the model; checkpoints go to OUTPUT.training")
    preset: str = Field("tiny", description="size of a new model: tiny, v1-10m, v2-104m or v2-316m")
    model: str | None = Field(
        None,
        description="model to go on training, not --preset: a directory, ours or official, or models:/NAME@ALIAS",
    )
    mask_probability: float = Field(0.15, gt=0, lt=1, description="share of the genes that are predicted")
    validation_fraction: float = Field(0.05, gt=0, lt=1, description="share of the cells held out")
    validation_cells: int = Field(10_000, ge=1, description="most cells held out, about [cells]")


class PretrainConfig(TrackingOptions, GroupOptions, OptimiserOptions, _Subject):
    """Pretrain a model on a token corpus: predict masked genes."""


@dataclass(frozen=True)
class PretrainResult:
    """What pretraining made.

    Attributes
    ----------
    uri
        The model directory.
    steps
        Optimiser steps done.
    validation_loss
        Mean cross-entropy of held-out cells' masked genes, in nats.
    tracked
        Where the run is recorded.
    """

    uri: str
    steps: int
    validation_loss: float
    tracked: str


@plain_errors()
def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pretrain a model and write its directory.

    A model that this very request made before is returned as it is; a run that was broken off goes on from its last
    checkpoint.

    Raises
    ------
    InputError
        The corpus is unfinished or too small, the preset is unknown, the model does not fit the corpus, or the output
        holds something else, or beside it lies an unfinished training with other options.
    TrainingError
        The loss is not a finite number.
    """
    corpus = Corpus.open(config.corpus)
    parent = _parent(config, corpus)
    options, output = _asked(config, corpus, parent), storage.absolute(config.output)
    request = schema.request_digest(**options)
    plan = make_plan(config, corpus, parent, request)
    if (result := _made(output, request)) is not None:
        register(config, output, request, corpus, None)
        return result
    asked = Asked(f"{output}.training", request, options, plan.loop.steps)
    asked.require_training()
    check_resources(config)
    turn = Turn.take(asked.folder)
    asked.write()
    name, facts = f"pretrain {config.model or config.preset}", {"steps": plan.loop.steps, "cells": corpus.manifest.rows}
    with recorded(config, name, request, corpus, parent, facts) as tracker:
        _announce(config, plan, corpus)
        recorder = Recorder(tracker, plan.loop.steps)
        fit([plan], [recorder], turn)
        with tempfile.TemporaryDirectory(prefix="cellray-training-") as folder:
            if picture := draw_training([recorder], Path(folder) / "training.png", name):
                tracker.log_file(picture)
        result = _made(output, request)  # by another job on this output, which ended while this one trained
        result = result or _publish(plan, corpus, output, tracker, _provenance(config, corpus, parent, request))
        tracker.set_tags({"model": output})
        register(config, output, request, corpus, tracker)
    storage.remove_directory(asked.folder)
    return result


def _made(output: str, request: str) -> PretrainResult | None:
    """Return what this very request made before."""
    made = made_before(output, request)
    if made is None:
        return None
    return PretrainResult(output, made["steps"], made["validation_loss"] or math.nan, made["run"])


def write_initial_model(config: PretrainConfig, output: str) -> None:
    """Write the model that pretraining with this configuration starts from, to compare with."""
    corpus = Corpus.open(config.corpus)
    parent = _parent(config, corpus)
    request = schema.request_digest(**_asked(config, corpus, parent)) + " initial"
    if made_before(storage.absolute(output), request) is None:
        plan = make_plan(config, corpus, parent, request)
        made = _provenance(config, corpus, parent, request) | {"steps": 0, "validation_loss": None, "run": "none"}
        save_model(plan.initial(corpus), corpus.vocabulary, made, output)


def make_plan(config: PretrainConfig, corpus: Corpus, parent: ModelReference | None, request: str) -> PretrainPlan:
    """Count training cells and steps.

    Raises
    ------
    InputError
        There are too few cells to train on or to hold out, or more workers than cells in a step.
    """
    total = corpus.manifest.rows
    fraction = min(config.validation_fraction, config.validation_cells / total)  # no more than the loss needs
    part = RandomPart(fraction, config.seed, held=False)
    order = TrainingOrder(spans(corpus), config.batch_size, part, config.seed)
    if order.cells < config.batch_size or order.cells == total:
        raise InputError(
            corpus.uri,
            f"training needs at least {config.batch_size:,} cells for one step and one held-out cell",
            f"{order.cells:,} cells to train on and {total - order.cells:,} held out",
            "Use more cells, a smaller --batch-size or another --validation-fraction.",
        )
    check_share(config.batch_size, order.cells, config)
    steps = count_steps(order, config)
    return PretrainPlan(
        corpus=corpus.uri,
        loop=loop_config(config, config, steps, order.steps(0)),
        batch_size=config.batch_size,
        precision=config.precision,
        group=GroupOptions(**{name: getattr(config, name) for name in GROUP_FIELDS}),
        threads=threads_of(config),
        checkpoints=storage.join(f"{storage.absolute(config.output)}.training", f"checkpoints-{request[:12]}"),
        preset=config.preset,
        model=parent,
        held_fraction=fraction,
        mask_probability=config.mask_probability,
        weight_decay=config.weight_decay,
        learning_rate=config.learning_rate,
    )


def _parent(config: PretrainConfig, corpus: Corpus) -> ModelReference | None:
    """Return the model to go on with, checked against the corpus; check the preset where there is none."""
    size = corpus.manifest.encoding.input_size
    if config.model is None:
        bert_config(config.preset, corpus.vocabulary, size)  # an unknown preset fails before anything starts
        return None
    model, parent = open_model(config.model, config.tracking_uri)
    model.require_vocabulary(corpus.vocabulary, f"corpus {corpus.uri}", size)
    return parent


def _asked(config: PretrainConfig, corpus: Corpus, parent: ModelReference | None) -> dict[str, Any]:
    """Return what was asked for: where it goes and how the run is watched or shared out do not count."""
    ignored = {"corpus", "output", "model", *GROUP_FIELDS, *TrackingOptions.model_fields}
    contents = {"corpus": corpus.manifest.digest, "model": parent and parent.digest}
    return contents | config.model_dump(exclude=ignored)


def _announce(config: PretrainConfig, plan: PretrainPlan, corpus: Corpus) -> None:
    """Say what is about to happen."""
    low, high = config.num_workers
    logger.info(
        "training %s: %s steps of %s cells on %s worker(s), %s steps an epoch; starting takes half a minute",
        config.model or config.preset,
        f"{plan.loop.steps:,}",
        f"{config.batch_size:,}",
        low if low == high else f"{low} to {high}",
        f"{plan.order(corpus).steps(0):,}",
    )
    warn_of_warmup(plan.loop)


def _provenance(config: PretrainConfig, corpus: Corpus, parent: ModelReference | None, request: str) -> dict[str, Any]:
    """Return where a model comes from."""
    return {
        "objective": "masked genes",
        "preset": None if parent else config.preset,
        "parent": parent and parent.uri,
        "parent_digest": parent and parent.digest,
        "seed": config.seed,
        "request": request,
        "corpus": corpus.uri,
        "corpus_digest": corpus.manifest.digest,
        "software": schema.software_versions("ray", "torch", "transformers"),
    }


def _publish(
    plan: PretrainPlan, corpus: Corpus, output: str, tracker: Tracker, provenance: dict[str, Any]
) -> PretrainResult:
    """Turn the last checkpoint into a model directory."""
    objective = plan.objective(corpus, torch.device("cpu"), 0)
    with plan.store().newest() as found:
        _require_last(plan, found and found[1]["step"], output)
        assert found is not None
        folder, record = found
        load_weights(folder, objective.module)
    loss = float(record["metrics"]["validation_loss"])
    made = provenance | {"steps": record["step"], "run": tracker.where()}
    made["validation_loss"] = None if math.isnan(loss) else loss
    model = objective.module.model
    assert isinstance(model, BertForMaskedLM)
    save_model(model, corpus.vocabulary, made, output)
    return PretrainResult(output, int(record["step"]), loss, tracker.where())


def _require_last(plan: PretrainPlan, step: int | None, output: str) -> None:
    """Check that the newest sound checkpoint is the last one: an older model is not what was asked for."""
    if step != plan.loop.steps:
        found = "no sound checkpoint" if step is None else f"that of step {step:,} as the newest sound one"
        fix = f"Run the same command again: training goes on from what lies in {plan.checkpoints}."
        raise InputError(output, f"the model is made of the checkpoint of step {plan.loop.steps:,}", found, fix)
