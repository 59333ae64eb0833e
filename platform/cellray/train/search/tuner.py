"""Runs trials on Ray Tune: the study draws them, ASHA stops those that fall behind, the ledger writes it all down.

Tune keeps nothing that is needed again: the study and the trials' checkpoints are the state of a search.
"""

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellray.errors import InputError
from cellray.train.search.fold_results import VALUE
from cellray.train.search.ledger import Ledger
from cellray.train.search.options import SearchConfig, lower_is_better
from cellray.train.search.plans import TrialJob
from cellray.train.search.space import Space
from cellray.train.search.study import INTERRUPTED, StudyPlace, make_sampler, state_of
from cellray.train.search.trial import VALIDATION, run_trial

if TYPE_CHECKING:
    from optuna import Study

logger = logging.getLogger(__name__)

_NO_END = 10**9  # validations: a trial ends by itself, not by ASHA
_COORDINATOR_CPUS = 0.01  # of a distributed trial, whose workers reserve their own; Tune refuses 0


@dataclass(frozen=True)
class _Past:
    """A trial of an earlier run of the search, as far as a scheduler asks for it."""

    trial_id: str


def run_trials(
    config: SearchConfig, job: TrialJob, space: Space, study: "Study", place: StudyPlace, ledger: Ledger, number: int
) -> None:
    """Run trials until there are as many more as asked for, or the time is over.

    Parameters
    ----------
    config
        How many at once, on what, and until when.
    job
        What a trial does.
    space, study, place
        Where trials come from.
    ledger
        Is told what happens.
    number
        Trials still to run.
    """
    from ray import tune

    def trainable(settings: dict[str, Any]) -> None:
        run_trial(job, settings["values"], settings["folder"], tune.report)

    resources = {"CPU": _COORDINATOR_CPUS} if job.distributed else {"CPU": config.cpus_per_trial, "GPU": config.gpus}
    sampler = make_sampler(config.sampler, config.seed, len(study.get_trials(deepcopy=False)))
    names = [VALUE.format(i) for i in range(len(config.objectives))]
    modes = ["min" if lower_is_better(each) else "max" for each in config.objectives]
    deadline = None if config.time_limit is None else time.monotonic() + config.time_limit
    searcher = _searcher(space, names, modes, sampler, place, ledger, deadline)
    with tempfile.TemporaryDirectory(prefix="cellray-tune-") as scratch, _quiet_tune(), _closing(ledger):
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                num_samples=number,
                max_concurrent_trials=config.concurrent,
                search_alg=searcher,
                scheduler=_scheduler(config, study),
                trial_name_creator=lambda trial: f"trial_{trial.trial_id}",
                trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",  # options make too long a name
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.max_failures),  # lost processes, nothing else
                callbacks=[_loss_watch(ledger)],
            ),
        )
        tuner.fit()


def _searcher(
    space: Space,
    names: list[str],
    modes: list[str],
    sampler: Any,  # noqa: ANN401  # Optuna's
    place: StudyPlace,
    ledger: Ledger,
    deadline: float | None,
) -> Any:  # noqa: ANN401
    """Return Ray's OptunaSearch, with a ledger in place of its own records."""
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    class StudySearch(OptunaSearch):  # type: ignore[misc]
        """Draws trials from a named study."""

        def suggest(self, trial_id: str) -> Any:  # noqa: ANN401
            if deadline is not None and time.monotonic() > deadline:
                logger.info("the time is over: no more trials are started")
                return Searcher.FINISHED
            super().suggest(trial_id)
            values, folder = ledger.started(trial_id, self._ot_trials[trial_id])
            return {"values": values, "folder": folder}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            ledger.reported(trial_id, result)

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:  # noqa: ANN401
            if not error:  # why a process was lost is told to the callback only
                ledger.finished(trial_id, result or {})

        def save(self, checkpoint_path: str) -> None:
            """Save nothing: the study is in its database, whose password belongs in no file."""
            Path(checkpoint_path).touch()

        def __reduce__(self) -> tuple[Any, ...]:
            return str, ()  # Tune writes it down, too

    single = len(names) == 1
    return StudySearch(
        space.distributions(),
        metric=names[0] if single else names,
        mode=modes[0] if single else modes,
        sampler=sampler,
        study_name=place.name,
        storage=place.open_storage(),
    )


def _loss_watch(ledger: Ledger) -> Any:  # noqa: ANN401
    """Return a Tune callback that tells the ledger of trials whose process was lost too often."""
    from ray import tune

    class LossWatch(tune.Callback):  # type: ignore[misc]
        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401
            error = trial.get_error()
            text = " ".join(str(error).split()) if error else "no reason is known"
            ledger.failed(trial.trial_id, f"its process was lost ({text[:300]})")

        def __reduce__(self) -> tuple[Any, ...]:
            return tune.Callback, ()  # Tune writes its callbacks down; ledgers know passwords

    return LossWatch()


def _scheduler(config: SearchConfig, study: "Study") -> Any:  # noqa: ANN401
    """Return ASHA, knowing what earlier runs of the search reached; or one that stops nothing."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    if not config.asha or len(config.objectives) > 1:
        return FIFOScheduler()
    metric = VALUE.format(0)
    scheduler = AsyncHyperBandScheduler(
        time_attr=VALIDATION,
        metric=metric,
        mode="min" if lower_is_better(config.objectives[0]) else "max",
        max_t=_NO_END,
        grace_period=config.grace_validations,
        reduction_factor=config.reduction_factor,
    )
    for trial in study.get_trials(deepcopy=False):
        if state_of(trial) == INTERRUPTED:
            continue  # its repetition reports the same again
        past = _Past(f"past-{trial.number}")
        scheduler.on_trial_add(None, past)
        for validation, value in sorted(trial.intermediate_values.items()):
            scheduler.on_trial_result(None, past, {VALIDATION: validation, metric: value})
    return scheduler


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keep Tune from writing result files of its own, from printing, and from taking Ctrl-C for a success."""
    wanted = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    wanted["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints even when it is told not to
    before = {name: os.environ.get(name) for name in wanted}
    log = logging.getLogger("ray.tune")
    level = log.level
    log.setLevel(logging.CRITICAL)  # failed trials are ours to tell
    os.environ.update(wanted)
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _closing(ledger: Ledger) -> Iterator[None]:
    try:
        yield
    finally:
        ledger.close()


def check_trial_resources(config: SearchConfig) -> None:
    """Refuse trials that would wait for ever on one machine.

    Raises
    ------
    InputError
        Not even one fits.
    """
    import ray

    from cellray.data.session import ensure_ray
    from cellray.train.trainer import check_resources

    if config.distributed:
        check_resources(config)
        return
    ensure_ray()
    have = ray.cluster_resources()
    for kind, option, wanted in (
        ("CPU", "--cpus-per-trial", config.cpus_per_trial),
        ("GPU", "--gpus-per-trial", config.gpus),
    ):
        if not os.environ.get("RAY_ADDRESS") and wanted > have.get(kind, 0):
            found = f"{wanted:g} {kind}s on a machine with {have.get(kind, 0):g}"
            raise InputError(option, "a trial must fit on the machine", found, "Give it less.")
