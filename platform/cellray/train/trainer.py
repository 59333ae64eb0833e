"""Runs a training plan on Ray Train: starts the workers, replaces lost ones, passes their reports on.

Checkpoints are this library's own (`cellray.train.checkpoints`), not Ray Train's: a worker that starts, for whatever
reason, goes on from the newest sound one.
"""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cellray import storage
from cellray.data.session import default_threads, ensure_ray, own_error_within
from cellray.errors import InputError, TrainingError
from cellray.train.interrupts import interruptible
from cellray.train.options import GroupOptions
from cellray.train.reports import STEP, Recipient, Report, loss_of, loss_relay, report_queue, send, shown
from cellray.train.turn import Turn
from cellray.train.worker import Outcome, TrainPlan, run_plan

logger = logging.getLogger(__name__)

_RUN = "run-"


class RaySession:
    """A worker's place in a Ray Train group, for one of its plans; see `cellray.train.contracts.Session`."""

    def __init__(self, plan: int, reports: Any) -> None:  # noqa: ANN401  # a ray.util.queue.Queue
        from ray import train

        self._plan, self._reports = plan, reports
        context = train.get_context()
        self.rank, self.world_size = int(context.get_world_rank()), int(context.get_world_size())
        self._left: set[str] = set()

    def report(
        self, metrics: Mapping[str, float], notes: Sequence[str], earlier: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """Send a report to the driver, from the first worker."""
        if self.rank == 0:
            send(self._reports, Report(self._plan, dict(metrics), list(notes), list(earlier)))

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
        session = RaySession(number, settings["reports"])
        outcomes.append(run_plan(plan.following(outcomes), session, ray_torch.get_device()))
        if outcomes[-1].error or outcomes[-1].leaving:
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


def fit(plans: Sequence[TrainPlan], recorders: Sequence[Recipient], turn: Turn) -> list[Outcome]:
    """Run plans to their end, one after the other, by one group of workers.

    Parameters
    ----------
    plans
        At least one; all for the same kind of group.
    recorders
        Each takes the reports of one plan.
    turn
        At the folder of the checkpoints, where Ray Train keeps something too.

    Raises
    ------
    TrainingError
        The loss is not a finite number, the last checkpoint could not be written, another job took over, or workers
        were lost more often than they are to be replaced.
    """
    for left in storage.glob(storage.join(turn.folder, f"{_RUN}*")):  # of jobs that were killed
        storage.remove_directory(left)
    queue, group = report_queue(), plans[0].group
    settings = {"plans": [replace(plan, turn=turn) for plan in plans], "reports": queue}
    with shown(queue, recorders, turn, group.max_failures):
        outcomes = _fit_once(settings, group, turn.folder)
        while outcomes[-1].leaving:
            logger.warning("a machine is about to be taken away: training goes on elsewhere, as soon as there is room")
            outcomes = _fit_once(settings, group, turn.folder)
    for outcome, recorder in zip(outcomes, recorders, strict=False):  # those after an error were not begun
        recorder.record({STEP: outcome.steps + 1, **outcome.figures})  # the last step has those of the one before
        for note in outcome.notes:
            logger.info("%s", note)
        if outcome.error:
            raise TrainingError(outcome.error)
    return outcomes


def _fit_once(settings: dict[str, Any], group: GroupOptions, folder: str) -> list[Outcome]:
    """Let Ray Train run a group, and replace lost workers, until it is done."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    low, high = group.num_workers
    filesystem, storage_path = _arrow_filesystem(folder)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=low if low == high else (low, high),
            use_gpu=group.use_gpu,
            resources_per_worker={"CPU": group.cpus_per_worker} | ({"GPU": 1} if group.use_gpu else {}),
            elastic_resize_monitor_interval_s=group.resize_interval,
        ),
        run_config=RunConfig(
            name=f"{_RUN}{secrets.token_hex(4)}",  # a new one each time: nothing is to be restored by Ray Train
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=group.max_failures),
            callbacks=[loss_relay(settings["reports"])],
            logging_config=LoggingConfig(log_level="ERROR"),  # lost workers are told of in `cellray.train.reports`
        ),
    )
    try:
        with interruptible():
            outcomes: list[Outcome] = trainer.fit().return_value
            return outcomes
    except TrainingFailedError as error:
        if own_error_within(error) is not None or not (failures := getattr(error, "worker_failures", None)):
            raise
        why = loss_of(failures).why
    times = f"workers stopped {group.max_failures + 1} time(s), and --max-failures allows {group.max_failures}"
    raise TrainingError(f"{times}; the last time: {why}. Run the same command again to go on from the last checkpoint.")


def _arrow_filesystem(uri: str) -> tuple[Any, str]:
    """Return the file system Ray Train writes to and the path in it: ours for object storage, Ray's own for disks."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = storage.filesystem(uri)
    return (None, uri) if storage.is_local(uri) else (PyFileSystem(FSSpecHandler(fs)), path)
