"""Pretraining on Ray Train: the job's options, what each worker does, and the model directory that comes out."""

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from transformers import BertForMaskedLM

from cellray import schema, storage, tracking
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus
from cellray.data.session import default_threads, ensure_ray, plain_errors
from cellray.errors import InputError
from cellray.model.checkpoint import CONFIG, ModelDirectory, save_model
from cellray.model.presets import bert_config
from cellray.tracking import Tracker
from cellray.train.feed import spans
from cellray.train.loop import MODEL_STATE, LoopConfig
from cellray.train.order import TrainingOrder
from cellray.train.reports import report_relay, shown
from cellray.train.worker import TrainPlan, new_model, train_worker

logger = logging.getLogger(__name__)


class PretrainConfig(JobConfig):
    """Pretrain a model on a token corpus: predict masked genes."""

    corpus: str = Field(description="token corpus, from jobs.tokenize_corpus")
    output: str = Field(description="directory or s3:// URI of the model; checkpoints go to OUTPUT.training")
    preset: str = Field("tiny", description="size of the model: tiny, v1-10m, v2-104m or v2-316m")
    epochs: float = Field(3, gt=0, description="times each cell is seen [epochs]")
    max_steps: int | None = Field(None, ge=1, description="stop after so many optimiser steps [steps]")
    batch_size: int = Field(12, ge=1, description="cells of a step, over all workers [cells]")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine"] = Field("linear", description="decay of the learning rate after the warm-up")
    warmup_steps: int | None = Field(None, ge=0, description="steps of rising learning rate, default: a tenth [steps]")
    weight_decay: float = Field(0.001, ge=0, description="AdamW weight decay, biases and LayerNorm spared")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    mask_probability: float = Field(0.15, gt=0, lt=1, description="share of the genes that are predicted")
    validation_fraction: float = Field(0.05, gt=0, lt=1, description="share of the cells held out")
    validation_cells: int = Field(10_000, ge=1, description="most cells held out, about [cells]")
    validate_every: int = Field(1000, ge=1, description="steps between validations, each with a checkpoint [steps]")
    log_every: int = Field(20, ge=1, description="most steps between reports of the training loss [steps]")
    seed: int = Field(0, ge=0, description="of weights, split, masks and order")
    num_workers: int = Field(1, ge=1, description="training processes [workers]")
    use_gpu: bool = Field(False, description="train on GPUs, one a worker")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs each worker reserves [CPUs]")
    threads: int | None = Field(
        None, ge=1, description="torch threads of a worker on CPU, default: all cores for one, else its CPUs"
    )
    max_failures: int = Field(2, ge=0, description="times lost workers are replaced before giving up")
    tracking_uri: str | None = Field(
        None, description="MLflow tracking URI, or none; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment: str = Field("cellray", description="MLflow experiment")

    @model_validator(mode="after")
    def _a_cell_for_everyone(self) -> "PretrainConfig":
        if self.batch_size < 2 * self.num_workers > 2:
            raise ValueError(
                f"--batch-size {self.batch_size} is too small for --num-workers {self.num_workers}: two each"
            )
        return self


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
        The corpus is unfinished or too small, the preset is unknown, or the output holds something else.
    """
    corpus = Corpus.open(config.corpus)
    plan = make_plan(config, corpus)
    bert_config(config.preset, corpus.vocabulary, plan.input_size)  # an unknown preset fails before anything starts
    request = _request(config, corpus)
    output = storage.absolute(config.output)
    if (done := _finished(output, request)) is not None:
        return done
    ensure_ray()
    _check_resources(config)
    tracker = _start_tracking(config, corpus, plan)
    try:
        metrics = _train(config, plan, corpus, tracker, f"run-{request[:12]}")
        result = PretrainResult(output, plan.loop.steps, float(metrics["validation_loss"]), tracker.where())
        _publish(metrics["checkpoint"], plan, result, _provenance(config, corpus, request))
    except BaseException:
        tracker.finish("FAILED")
        raise
    storage.remove_directory(storage.join(f"{output}.training", f"run-{request[:12]}"))
    tracker.set_tags({"model": output})
    tracker.finish("FINISHED")
    return result


def write_initial_model(config: PretrainConfig, output: str) -> None:
    """Write the untrained model that pretraining with this configuration starts from, to compare with."""
    corpus = Corpus.open(config.corpus)
    request = _request(config, corpus) + " initial"
    if _finished(storage.absolute(output), request) is None:
        result = PretrainResult(storage.absolute(output), 0, math.nan, "not recorded")
        plan = make_plan(config, corpus)
        _save(new_model(plan), plan, result, _provenance(config, corpus, request))


def make_plan(config: PretrainConfig, corpus: Corpus) -> TrainPlan:
    """Count training cells and steps.

    Raises
    ------
    InputError
        There are too few cells to train on or to hold out.
    """
    total, fraction = corpus.manifest.rows, _held_fraction(config, corpus)
    order = TrainingOrder(spans(corpus), config.batch_size, fraction, config.seed)
    if order.cells < config.batch_size or order.cells == total:
        raise InputError(
            corpus.uri,
            f"training needs at least {config.batch_size:,} cells for one step and one held-out cell",
            f"{order.cells:,} cells to train on and {total - order.cells:,} held out",
            "Use more cells, a smaller --batch-size or another --validation-fraction.",
        )
    steps = _steps(order, config)
    return TrainPlan(
        vocabulary=corpus.vocabulary,
        preset=config.preset,
        input_size=corpus.manifest.encoding.input_size,
        loop=LoopConfig(
            steps=steps,
            learning_rate=config.learning_rate,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps if config.warmup_steps is not None else steps // 10,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            validate_every=config.validate_every,
            log_every=min(config.log_every, max(1, steps // 10)),
            seed=config.seed,
        ),
        corpus=corpus.uri,
        batch_size=config.batch_size,
        held_fraction=fraction,
        mask_probability=config.mask_probability,
        threads=config.threads or default_threads(config.num_workers, config.cpus_per_worker),
    )


def _steps(order: TrainingOrder, config: PretrainConfig) -> int:
    """Return the steps to train: those of all epochs, or as many of them as are asked for."""
    whole, part = divmod(config.epochs, 1)
    steps = 0
    for epoch in range(int(whole)):
        steps += order.steps(epoch)
        if config.max_steps is not None and steps >= config.max_steps:  # however many epochs are still to come
            return config.max_steps
    steps += math.ceil(part * order.steps(int(whole)))
    return min(steps, config.max_steps or steps)


def _held_fraction(config: PretrainConfig, corpus: Corpus) -> float:
    """Return the share of cells held out: not more than the validation loss needs."""
    return min(config.validation_fraction, config.validation_cells / corpus.manifest.rows)


def _request(config: PretrainConfig, corpus: Corpus) -> str:
    """Return the digest of what decides the weights: where they go and how the run is watched do not."""
    ignored = {"corpus", "output", "tracking_uri", "experiment", "log_every", "max_failures", "threads"}
    ignored |= {"num_workers", "use_gpu", "cpus_per_worker"}  # a run may go on with more workers, or on other ones
    return schema.request_digest(corpus=corpus.manifest.digest, **config.model_dump(exclude=ignored))


def _finished(output: str, request: str) -> PretrainResult | None:
    """Return what this request made before; refuse an output that holds anything else."""
    if not storage.exists(storage.join(output, CONFIG)):
        storage.require_vacant(output)
        return None
    made = ModelDirectory.open(output).provenance
    if made.get("request") != request:
        fix = "Choose another --output, or delete this one."
        raise InputError(output, "the output must be empty or hold this very result", "another model", fix)
    logger.info("%s is complete already: nothing to do", output)
    return PretrainResult(output, made["steps"], made["validation_loss"] or math.nan, made["run"])


def _check_resources(config: PretrainConfig) -> None:
    """Refuse to start what would wait for ever on one machine."""
    import ray

    have, wanted = ray.cluster_resources().get("CPU", 0), config.num_workers * config.cpus_per_worker
    if not os.environ.get("RAY_ADDRESS") and wanted > have:
        raise InputError(
            "--num-workers",
            "workers must fit on the machine",
            f"{config.num_workers} workers of {config.cpus_per_worker:g} CPUs on a machine with {have:g}",
            "Use fewer workers or a smaller --cpus-per-worker, as 0.5.",
        )


def _start_tracking(config: PretrainConfig, corpus: Corpus, plan: TrainPlan) -> Tracker:
    """Create the run with everything that made it."""
    return tracking.start_run(
        config.tracking_uri,
        config.experiment,
        f"pretrain {config.preset}",
        config.model_dump(exclude={"tracking_uri"}) | {"steps": plan.loop.steps, "cells": corpus.manifest.rows},
        {"corpus_digest": corpus.manifest.digest, "vocabulary_digest": corpus.vocabulary.digest}
        | {f"version.{k}": v for k, v in schema.software_versions("ray", "torch", "transformers").items()},
    )


def _train(config: PretrainConfig, plan: TrainPlan, corpus: Corpus, tracker: Tracker, name: str) -> dict[str, Any]:
    """Run the trainer; return the last metrics with the checkpoint that goes with them."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    filesystem, storage_path = _arrow_filesystem(f"{storage.absolute(config.output)}.training")
    lines, callback = report_relay(tracker, plan.loop.steps)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan},
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[callback],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    logger.info(
        "training %s: %s steps of %s cells on %s worker(s), %s steps an epoch; starting takes half a minute",
        config.preset,
        f"{plan.loop.steps:,}",
        f"{config.batch_size:,}",
        config.num_workers,
        f"{plan.order().steps(0):,}",
    )
    with shown(lines):
        result = trainer.fit()
    assert result.checkpoint is not None  # the last step always reports one
    assert result.metrics is not None
    return dict(result.metrics) | {"checkpoint": result.checkpoint}


def _provenance(config: PretrainConfig, corpus: Corpus, request: str) -> dict[str, Any]:
    """Return where a model comes from."""
    return {
        "objective": "masked genes",
        "preset": config.preset,
        "seed": config.seed,
        "request": request,
        "corpus": corpus.uri,
        "corpus_digest": corpus.manifest.digest,
        "software": schema.software_versions("ray", "torch", "transformers"),
    }


def _publish(checkpoint: Any, plan: TrainPlan, result: PretrainResult, provenance: dict[str, Any]) -> None:  # noqa: ANN401
    """Turn a `ray.train.Checkpoint` into a model directory."""
    from safetensors.torch import load_model

    model = new_model(plan)
    with checkpoint.as_directory() as directory:
        load_model(model, Path(directory) / MODEL_STATE)
    _save(model, plan, result, provenance)


def _save(model: BertForMaskedLM, plan: TrainPlan, result: PretrainResult, provenance: dict[str, Any]) -> None:
    loss = None if math.isnan(result.validation_loss) else result.validation_loss
    made = provenance | {"steps": result.steps, "validation_loss": loss, "run": result.tracked}
    save_model(model, plan.vocabulary, made, result.uri)


def _arrow_filesystem(uri: str) -> tuple[Any, str]:
    """Return the file system Ray Train writes to and the path in it: ours for object storage, Ray's own for disks."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = storage.filesystem(uri)
    return (None, uri) if storage.is_local(uri) else (PyFileSystem(FSSpecHandler(fs)), path)
