"""From options to the numbers of a training: steps, warm-up, and what decides them."""

import logging
import math

from cellray.errors import InputError
from cellray.train.loop import LoopConfig
from cellray.train.options import GroupOptions, OptimiserOptions
from cellray.train.order import TrainingOrder

logger = logging.getLogger(__name__)

LOWER_IS_BETTER = ("loss", "brier", "ece", "mae", "rmse")
"""Endings of the names of metrics that are better when smaller."""


def loop_config(
    options: OptimiserOptions,
    group: GroupOptions,
    steps: int,
    epoch: int,
    monitor: str = "validation_loss",
    patience: int | None = None,
) -> LoopConfig:
    """Return the loop's numbers for a training of so many steps, given those of an epoch."""
    return LoopConfig(
        steps=steps,
        schedule=options.schedule,
        warmup_steps=options.warmup(steps),
        max_grad_norm=options.max_grad_norm,
        validate_every=options.validate_every or epoch,
        log_every=min(group.log_every, max(1, steps // 10)),
        seed=options.seed,
        monitor=monitor,
        higher_is_better=not monitor.endswith(LOWER_IS_BETTER),
        patience=patience,
        checkpoint_minutes=group.checkpoint_minutes,
    )


def count_steps(order: TrainingOrder, options: OptimiserOptions) -> int:
    """Return the steps to train: those of all epochs, or as many of them as are asked for."""
    if options.epochs is None:
        assert options.max_steps is not None, "one of them is always known"
        return options.max_steps
    whole, part = divmod(options.epochs, 1)
    steps = 0
    for epoch in range(int(whole)):
        steps += order.steps(epoch)
        if options.max_steps is not None and steps >= options.max_steps:  # however many epochs are still to come
            return options.max_steps
    steps += math.ceil(part * order.steps(int(whole)))
    return min(steps, options.max_steps or steps)


def check_share(batch_size: int, cells: int, group: GroupOptions) -> None:
    """Check that each step has a cell for each worker; a step has at least half of `batch_size`, or all cells.

    Raises
    ------
    InputError
        It may not.
    """
    workers = group.num_workers[1]
    if workers > 1 and batch_size < 2 * workers:
        found = f"{batch_size} cells for {workers} workers"
        raise InputError("--batch-size", "a step must have two cells for each worker", found, "Use more cells.")
    if cells < workers:
        found = f"{cells} cells for {workers} workers"
        raise InputError("--num-workers", "there must be a cell to train on for each", found, "Use fewer workers.")


def warn_of_warmup(loop: LoopConfig) -> None:
    """Warn of a learning rate that never gets to what was asked for: small data with a recipe for large ones."""
    if loop.warmup_steps >= loop.steps:
        told = f"{loop.warmup_steps:,} of {loop.steps:,} steps"
        logger.warning("the learning rate rises for %s: it never gets to its peak; see --warmup-steps", told)
