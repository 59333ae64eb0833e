"""Runs a training plan on Ray Train: starts the workers, replaces lost ones, passes their reports on.

Checkpoints are this library's own (`cellray.train.checkpoints`), not Ray Train's: a worker that starts, for whatever
reason, goes on from the newest sound one.
"""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from cellray import storage
from cellray.data.session import default_threads, ensure_ray
from cellray.errors import InputError
from cellray.tracking import Tracker
from cellray.train.options import GroupOptions
from cellray.train.reports import NOTES, report_relay, shown
from cellray.train.worker import Outcome, TrainPlan, run_plan

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A training that cannot come to its end, however often it is tried."""


class RaySession:
    """A worker's place in a Ray Train group; see `cellray.train.contracts.Session`."""

    def __init__(self) -> None:
        from ray import train

        context = train.get_context()
        self.rank, self.world_size = int(context.get_world_rank()), int(context.get_world_size())
        self._left: set[str] = set()

    def report(self, metrics: Mapping[str, float], notes: Sequence[str]) -> None:
        """Send metrics and notes to the driver."""
        from ray import train

        train.report({**metrics, NOTES: list(notes)})

    def leaving(self) -> bool:
        """Tell, once for each machine, whether one is about to be taken away."""
        from ray import train

        info = train.get_preemption_info()
        fresh = set(info.preempted_node_ids) - self._left if info else set()
        self._left |= fresh
        return bool(fresh)


def train_worker(settings: dict[str, Any]) -> Outcome:
    """Train on one worker of the group; Ray Train calls it with the plan."""
    from ray.train import torch as ray_torch

    return run_plan(settings["plan"], RaySession(), ray_torch.get_device())


def threads_of(group: GroupOptions) -> int:
    """Return the torch threads of a worker on CPU."""
    return group.threads or default_threads(group.num_workers[1], group.cpus_per_worker)


def check_resources(group: GroupOptions) -> None:
    """Refuse to start what would wait for ever on one machine.

    Raises
    ------
    InputError
        The workers do not fit.
    """
    import ray

    ensure_ray()
    have, wanted = ray.cluster_resources(), {"CPU": group.num_workers[0] * group.cpus_per_worker}
    if group.use_gpu:
        wanted["GPU"] = group.num_workers[0]
    for kind, number in wanted.items():
        if not os.environ.get("RAY_ADDRESS") and number > have.get(kind, 0):
            raise InputError(
                "--num-workers",
                "workers must fit on the machine",
                f"{group.num_workers[0]} workers that take {number:g} {kind}s on a machine with {have.get(kind, 0):g}",
                "Use fewer workers, or a smaller --cpus-per-worker, as 0.5.",
            )


def fit(plan: TrainPlan, tracker: Tracker, folder: str) -> Outcome:
    """Run a plan to its end.

    Parameters
    ----------
    tracker
        Records the run.
    folder
        URI of a folder for what Ray Train keeps of the run.

    Raises
    ------
    TrainingError
        The loss is not a finite number.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    group, (low, high) = plan.group, plan.group.num_workers
    filesystem, storage_path = _arrow_filesystem(folder)
    lines, callback = report_relay(tracker, plan.loop.steps)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan},
        scaling_config=ScalingConfig(
            num_workers=low if low == high else (low, high),
            use_gpu=group.use_gpu,
            resources_per_worker={"CPU": group.cpus_per_worker} | ({"GPU": 1} if group.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=f"run-{secrets.token_hex(4)}",  # a new one each time: nothing is to be restored by Ray Train
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=group.max_failures),
            callbacks=[callback],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    with shown(lines):
        outcome = trainer.fit().return_value
    assert isinstance(outcome, Outcome)
    for note in outcome.notes:
        logger.info("%s", note)
    if outcome.error:
        raise TrainingError(outcome.error)
    return outcome


def _arrow_filesystem(uri: str) -> tuple[Any, str]:
    """Return the file system Ray Train writes to and the path in it: ours for object storage, Ray's own for disks."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = storage.filesystem(uri)
    return (None, uri) if storage.is_local(uri) else (PyFileSystem(FSSpecHandler(fs)), path)
