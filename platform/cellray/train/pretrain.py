"""Pretraining on Ray Train: the job's options, what each worker does, and the model directory that comes out."""

import logging
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from cellray import schema, storage, tracking
from cellray.config import JobConfig
from cellray.data.collate import TokenRows, length_grouped_batches
from cellray.data.corpus import Corpus, read_rows
from cellray.data.session import ensure_ray, plain_errors
from cellray.data.split import held_out
from cellray.errors import InputError
from cellray.model.checkpoint import CONFIG, save_model
from cellray.model.presets import bert_config
from cellray.tracking import Tracker
from cellray.train.loop import Batch, Loop, LoopConfig
from cellray.train.objectives import GeneMasker, MaskedGeneLoss
from cellray.train.reports import report_relay, shown
from cellray.vocabulary import PAD, GeneVocabulary

logger = logging.getLogger(__name__)

_RANGE_CELLS = 4096  # cells a read task brings
_GROUP_BATCHES = 64  # batches among which rows are grouped by length


class PretrainConfig(JobConfig):
    """Pretrain a model on a token corpus: predict masked genes."""

    corpus: str = Field(description="token corpus, from jobs.tokenize_corpus")
    output: str = Field(description="directory or s3:// URI of the model; checkpoints go to OUTPUT.training")
    preset: str = Field("tiny", description="size of the model: tiny, v1-10m, v2-104m or v2-316m")
    epochs: float = Field(3, gt=0, description="times each cell is seen [epochs]")
    max_steps: int | None = Field(None, ge=1, description="stop after so many optimiser steps [steps]")
    batch_size: int = Field(12, ge=1, description="cells of a step on each worker [cells]")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine"] = Field("linear", description="decay of the learning rate after the warm-up")
    warmup_steps: int | None = Field(None, ge=0, description="steps of rising learning rate, default: a tenth [steps]")
    weight_decay: float = Field(0.001, ge=0, description="AdamW weight decay, biases and LayerNorm spared")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    mask_probability: float = Field(0.15, gt=0, lt=1, description="share of the genes that are predicted")
    validation_fraction: float = Field(0.05, gt=0, lt=1, description="share of the cells held out")
    validate_every: int = Field(1000, ge=1, description="steps between validations, each with a checkpoint [steps]")
    log_every: int = Field(20, ge=1, description="steps between reports of the training loss [steps]")
    seed: int = Field(0, ge=0, description="of weights, split, masks and order")
    num_workers: int = Field(1, ge=1, description="training processes [workers]")
    use_gpu: bool = Field(False, description="train on GPUs, one a worker")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs each worker reserves [CPUs]")
    threads: int | None = Field(None, ge=1, description="torch threads of a worker on CPU, default: cpus-per-worker")
    max_failures: int = Field(2, ge=0, description="times lost workers are replaced before giving up")
    tracking_uri: str | None = Field(
        None, description="MLflow tracking URI, or none; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment: str = Field("cellray", description="MLflow experiment")


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


@dataclass(frozen=True)
class _Plan:
    """What every worker is told."""

    config: PretrainConfig
    vocabulary: GeneVocabulary
    input_size: int
    steps: int
    warmup_steps: int


@plain_errors()
def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pretrain a model and write its directory.

    Raises
    ------
    InputError
        The corpus is unfinished or too small, the preset is unknown, or the output holds a model already.
    """
    output = storage.absolute(config.output)
    if storage.exists(storage.join(output, CONFIG)):
        raise InputError(
            output, "the output must not hold a model yet", CONFIG, "Choose another --output, or delete it."
        )
    corpus = Corpus.open(config.corpus)
    plan = _plan(config, corpus)
    bert_config(config.preset, corpus.vocabulary, plan.input_size)  # an unknown preset fails before anything starts
    ensure_ray()
    tracker = _start_tracking(config, corpus, plan)
    try:
        validation_loss = _train(config, plan, corpus, tracker, output)
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.set_tags({"model": output})
    tracker.finish("FINISHED")
    return PretrainResult(output, plan.steps, validation_loss, tracker.where())


def write_initial_model(config: PretrainConfig, output: str) -> None:
    """Write the untrained model that pretraining with this configuration starts from, to compare with."""
    corpus = Corpus.open(config.corpus)
    plan = _plan(config, corpus)
    provenance = {"objective": "none: initial weights", "preset": config.preset, "seed": config.seed}
    save_model(_new_model(plan), corpus.vocabulary, provenance, storage.absolute(output))


def _plan(config: PretrainConfig, corpus: Corpus) -> _Plan:
    """Count training cells and steps."""
    cells = corpus.manifest.rows
    training = cells - int(held_out(0, cells, config.validation_fraction, config.seed).sum())
    per_step = config.batch_size * config.num_workers
    if training < per_step or training == cells:
        raise InputError(
            corpus.uri,
            f"training needs at least {per_step:,} cells for one step and one held-out cell",
            f"{training:,} cells to train on and {cells - training:,} held out",
            "Use more cells, a smaller --batch-size or another --validation-fraction.",
        )
    steps = math.ceil(config.epochs * (training // per_step))
    steps = min(steps, config.max_steps or steps)
    warmup = config.warmup_steps if config.warmup_steps is not None else steps // 10
    return _Plan(config, corpus.vocabulary, corpus.manifest.encoding.input_size, steps, warmup)


def _start_tracking(config: PretrainConfig, corpus: Corpus, plan: _Plan) -> Tracker:
    return tracking.start_run(
        config.tracking_uri,
        config.experiment,
        f"pretrain {config.preset}",
        config.model_dump() | {"steps": plan.steps, "corpus_cells": corpus.manifest.rows},
        {"corpus_digest": corpus.manifest.digest, "vocabulary_digest": corpus.vocabulary.digest}
        | {f"version.{k}": v for k, v in schema.software_versions("ray", "torch", "transformers").items()},
    )


def _train(config: PretrainConfig, plan: _Plan, corpus: Corpus, tracker: Tracker, output: str) -> float:
    """Run the trainer and publish the model of its last checkpoint; return the last validation loss."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    storage_path, name = f"{output}.training", "run"
    lines, callback = report_relay(tracker, plan.steps)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"plan": plan},
        datasets={"train": _cells(corpus, config, held=False), "validation": _cells(corpus, config, held=True)},
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=_arrow_filesystem(storage_path),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[callback],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    with shown(lines):
        result = trainer.fit()
    assert result.checkpoint is not None  # the last step always reports one
    assert result.metrics is not None
    with result.checkpoint.as_directory() as directory:
        _publish(Path(directory), config, plan, corpus, tracker, output)
    return float(result.metrics["validation_loss"])


def _publish(
    directory: Path, config: PretrainConfig, plan: _Plan, corpus: Corpus, tracker: Tracker, output: str
) -> None:
    """Turn a checkpoint into a model directory."""
    from safetensors.torch import load_model

    from cellray.train.loop import MODEL_STATE

    model = _new_model(plan)
    load_model(model, directory / MODEL_STATE)
    provenance = {
        "objective": "masked genes",
        "preset": config.preset,
        "steps": plan.steps,
        "seed": config.seed,
        "corpus": corpus.uri,
        "corpus_digest": corpus.manifest.digest,
        "run": tracker.where(),
        "software": schema.software_versions("ray", "torch", "transformers"),
    }
    save_model(model, corpus.vocabulary, provenance, output)


def _new_model(plan: _Plan) -> Any:  # noqa: ANN401  # a transformers.BertForMaskedLM; imported late
    from transformers import BertForMaskedLM

    model_config = bert_config(plan.config.preset, plan.vocabulary, plan.input_size)
    with torch.random.fork_rng():
        torch.manual_seed(plan.config.seed)
        return BertForMaskedLM(model_config)


def _cells(corpus: Corpus, config: PretrainConfig, *, held: bool) -> Any:  # noqa: ANN401  # a ray.data.Dataset
    """Return the token rows of the training or the held-out cells as a Ray Dataset."""
    import ray

    ranges, first = [], 0
    for unit in corpus.plan_units(_RANGE_CELLS):
        ranges.append({"uri": unit.uri, "start": unit.start, "stop": unit.stop, "first": first})
        first += unit.stop - unit.start
    read = partial(_read_range, fraction=config.validation_fraction, seed=config.seed, held=held)
    return ray.data.from_items(ranges, override_num_blocks=len(ranges)).map_batches(read, batch_format="pyarrow")


def _read_range(ranges: pa.Table, fraction: float, seed: int, *, held: bool) -> Iterator[pa.Table]:
    """Read row ranges of the corpus and keep the cells of one side of the split."""
    for item in ranges.to_pylist():
        rows = read_rows(item["uri"], item["start"], item["stop"], columns=[schema.INPUT_IDS])
        wanted = held_out(item["first"], rows.num_rows, fraction, seed) == held
        yield rows.filter(pa.array(wanted))


def _train_worker(settings: dict[str, Any]) -> None:
    """Train on one worker of the group; Ray Train calls it."""
    from ray import train
    from ray.train import torch as ray_torch

    plan: _Plan = settings["plan"]
    config, context, device = plan.config, train.get_context(), ray_torch.get_device()
    torch.set_num_threads(config.threads or max(1, int(config.cpus_per_worker)))
    torch.manual_seed(config.seed + context.get_world_rank())  # dropout
    model = _new_model(plan).to(device)
    loss = ray_torch.prepare_model(MaskedGeneLoss(model, plan.vocabulary))
    masker = GeneMasker(plan.vocabulary, config.mask_probability, device)
    numbers = config.model_dump(include={f for f in LoopConfig.__dataclass_fields__ if f in type(config).model_fields})
    numbers |= {"steps": plan.steps, "warmup_steps": plan.warmup_steps}
    rank, world = context.get_world_rank(), context.get_world_size()
    loop = Loop(loss, masker, LoopConfig(**numbers, rank=rank, world_size=world), device)
    if (checkpoint := train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as directory:
            loop.load(Path(directory), model)

    def report(metrics: dict[str, float], due: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if due and rank == 0:
                loop.save(Path(folder), model)
            made = train.Checkpoint.from_directory(folder) if due and rank == 0 else None
            train.report(metrics, checkpoint=made)

    data, validation = train.get_dataset_shard("train"), train.get_dataset_shard("validation")
    loop.run(_epochs(data, plan, rank), lambda: _padded(validation, plan), report)


def _epochs(data: Any, plan: _Plan, rank: int) -> Iterable[Iterator[Batch]]:  # noqa: ANN401
    """Yield epochs without end, each in an order of its own."""
    config, pad_id, epoch = plan.config, plan.vocabulary.special_tokens[PAD], 0
    while True:
        rng = np.random.default_rng([config.seed, epoch, rank])
        yield _epoch(data, config.batch_size, pad_id, rng)
        epoch += 1


def _epoch(data: Any, batch_size: int, pad_id: int, rng: np.random.Generator) -> Iterator[Batch]:  # noqa: ANN401
    """Yield one epoch's batches, grouped by length among some dozens of batches that lie together."""
    group = batch_size * _GROUP_BATCHES
    buffer = {"local_shuffle_buffer_size": 2 * group, "local_shuffle_seed": int(rng.integers(1 << 31))}
    for table in data.iter_batches(batch_size=group, batch_format="pyarrow", **buffer):
        rows = TokenRows.from_arrow(table[schema.INPUT_IDS])
        for chosen in length_grouped_batches(rows.lengths, batch_size, rng):
            yield _batch(rows, chosen, pad_id)


def _padded(data: Any, plan: _Plan) -> Iterator[Batch]:  # noqa: ANN401
    """Yield the held-out cells in their own order."""
    for table in data.iter_batches(batch_size=plan.config.batch_size, batch_format="pyarrow"):
        rows = TokenRows.from_arrow(table[schema.INPUT_IDS])
        yield _batch(rows, np.arange(table.num_rows), plan.vocabulary.special_tokens[PAD])


def _batch(rows: TokenRows, chosen: np.ndarray[Any, Any], pad_id: int) -> Batch:
    return Batch(torch.from_numpy(rows.pad(chosen, pad_id)), int(rows.lengths[chosen].sum()))


def _arrow_filesystem(uri: str) -> Any:  # noqa: ANN401  # a pyarrow.fs.FileSystem, or None for Ray's own choice
    """Return the file system Ray Train writes to: ours for object storage, so that both use one configuration."""
    if storage.is_local(uri):
        return None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(storage.filesystem(uri)[0]))
