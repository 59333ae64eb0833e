"""Options that pretraining and fine-tuning share."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cellray.config import JobConfig, both_bounds, check_bounds
from cellray.train.precision import Precision


class OptimiserOptions(JobConfig):
    """How the weights are changed."""

    usual_epochs: ClassVar[float] = 3
    epochs: float | None = Field(
        None, gt=0, description="times each cell is seen, default: 3, or as many as --max-steps takes [epochs]"
    )
    max_steps: int | None = Field(
        None, ge=1, description="optimiser steps to train; with --epochs: stop after so many [steps]"
    )
    batch_size: int = Field(12, ge=1, description="cells of a step, over all workers [cells]")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "polynomial", "constant_with_warmup"] = Field(
        "linear", description="learning rate after the warm-up: linear, cosine, polynomial or constant_with_warmup"
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="steps with a rising learning rate; outweighs the ratio [steps]"
    )
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="share of the steps with a rising learning rate")
    weight_decay: float = Field(0.001, ge=0, description="AdamW weight decay, biases and LayerNorm spared")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    seed: int = Field(0, ge=0, description="of weights, split, masks and order")
    precision: Precision = Field("auto", description="auto (bf16 on GPUs that have it), float32 or bf16")
    validate_every: int | None = Field(
        1000,
        ge=1,
        description="steps between validations, each with a checkpoint [steps]",
    )

    @model_validator(mode="before")
    @classmethod
    def _how_long(cls, value: Any) -> Any:  # noqa: ANN401  # what was given
        """Without a number of steps, training takes the usual number of epochs."""
        if isinstance(value, Mapping) and value.get("epochs") is None and value.get("max_steps") is None:
            return {**value, "epochs": cls.usual_epochs}
        return value

    def warmup(self, steps: int) -> int:
        """Return the steps of rising learning rate of a training of so many steps."""
        return self.warmup_steps if self.warmup_steps is not None else int(self.warmup_ratio * steps)


class GroupOptions(JobConfig):
    """Where training runs; none of these decides which cells a step is made of."""

    num_workers: tuple[int, int] = Field(
        (1, 1), description="training processes; MIN,MAX: as many as the cluster has room for, changing as it does"
    )
    use_gpu: bool = Field(False, description="train on GPUs, one a worker")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs each worker reserves [CPUs]")
    threads: int | None = Field(
        None, ge=1, description="torch threads of a worker on CPU, default: all cores for one, else its CPUs"
    )
    pass_tokens: int | None = Field(
        None,
        ge=1,
        description="most tokens of a forward pass, padding included; a step takes as many passes as it needs;"
        " default: 2,048 on CPU, 65,536 on a GPU [tokens]",
    )
    sharding: Literal["none", "full"] = Field(
        "none", description="none: each worker holds the whole model; full: its weights are cut among them (FSDP2)"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations twice to hold fewer of them")
    packing: Literal["auto", "on", "off"] = Field(
        "auto", description="pretraining without padding, cells in one row; auto: on GPUs that compute in bf16"
    )
    compile: bool = Field(False, description="compile the model with torch.compile")
    resize_interval: float = Field(
        60.0, gt=0, description="between looks for room for more workers, where --num-workers has a range [s]"
    )
    max_failures: int = Field(2, ge=0, description="times lost workers are replaced before giving up")
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="longest time between checkpoints, which every validation takes too [min]"
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept, beside the best one")
    log_every: int = Field(20, ge=1, description="most steps between reports of the training loss [steps]")

    _one_number = field_validator("num_workers", mode="before")(both_bounds)

    @model_validator(mode="after")
    def _check_workers(self) -> "GroupOptions":
        check_bounds("--num-workers", self.num_workers)
        return self


GROUP_FIELDS = frozenset(GroupOptions.model_fields)
"""Options that are no part of what was asked for: a run may go on with others."""
