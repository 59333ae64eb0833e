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
from cellray.train.options import GroupOptions
from cellray.train.reports import NOTES, PLAN, Recipient, report_relay, shown
from cellray.train.worker import Outcome, TrainPlan, run_plan

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A training that cannot come to its end, however often it is tried."""


class RaySession:
    """A worker's place in a Ray Train group, for one of its plans; see `cellray.train.contracts.Session`."""

    def __init__(self, plan: int) -> None:
        from ray import train

        self._plan = plan

        context = train.get_context()
        self.rank, self.world_size = int(context.get_world_rank()), int(context.get_world_size())
        self._left: set[str] = set()

    def report(self, metrics: Mapping[str, float], notes: Sequence[str]) -> None:
        """Send metrics and notes to the driver."""
        from ray import train

        train.report({**metrics, NOTES: list(notes), PLAN: self._plan})

    def leaving(self) -> bool:
        """Tell, once for each machine, whether one is about to be taken away."""
        from ray import train

        info = train.get_preemption_info()
        fresh = set(info.preempted_node_ids) - self._left if info else set()
        self._left |= fresh
        return bool(fresh)


def train_worker(settings: dict[str, Any]) -> list[Outcome]:
    """Train on one worker of the group, one plan after the other; Ray Train calls it with the plans."""
    from ray.train import torch as ray_torch

    outcomes: list[Outcome] = []
    for number, plan in enumerate(settings["plans"]):
        outcomes.append(run_plan(plan.following(outcomes), RaySession(number), ray_torch.get_device()))
        if outcomes[-1].error:
            break
    return outcomes


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


def fit(plans: Sequence[TrainPlan], recorders: Sequence[Recipient], folder: str) -> list[Outcome]:
    """Run plans to their end, one after the other, by one group of workers.

    Parameters
    ----------
    plans
        At least one; all for the same kind of group.
    recorders
        Each takes the reports of one plan.
    folder
        URI of a folder for what Ray Train keeps of the run.

    Raises
    ------
    TrainingError
        The loss is not a finite number.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    group, (low, high) = plans[0].group, plans[0].group.num_workers
    filesystem, storage_path = _arrow_filesystem(folder)
    reports, callback = report_relay(recorders)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plans": list(plans)},
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
    with shown(reports):
        outcomes: list[Outcome] = trainer.fit().return_value
    for outcome in outcomes:
        for note in outcome.notes:
            logger.info("%s", note)
        if outcome.error:
            raise TrainingError(outcome.error)
    return outcomes


def _arrow_filesystem(uri: str) -> tuple[Any, str]:
    """Return the file system Ray Train writes to and the path in it: ours for object storage, Ray's own for disks."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = storage.filesystem(uri)
    return (None, uri) if storage.is_local(uri) else (PyFileSystem(FSSpecHandler(fs)), path)
