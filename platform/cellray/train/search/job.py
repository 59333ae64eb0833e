"""A whole search: checks what was asked for, runs the trials that are missing, publishes and tests the best model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from cellray import schema, storage
from cellray.data.corpora.corpus import Corpus
from cellray.data.session import plain_errors
from cellray.errors import InputError, TrainingError
from cellray.model.checkpoint import ModelDirectory
from cellray.model.device import compute_device
from cellray.models import ModelReference
from cellray.tracking import NullTracker, Tracker, start_run
from cellray.tracking.masking import mask_text
from cellray.train.finetune import METRICS, open_parent, provenance, publish
from cellray.train.finetune_plan import FinetunePlan, ModelOptions
from cellray.train.recording import made_before, recorded, register
from cellray.train.reports import Recorder
from cellray.train.search.fold_results import BEST_STEPS
from cellray.train.search.ledger import Ledger
from cellray.train.search.options import SearchConfig, check_objectives, search_asked
from cellray.train.search.plans import TrialJob, final_task, trial_task
from cellray.train.search.report import Winner, winner_of, write_search_report
from cellray.train.search.space import Space, read_space
from cellray.train.search.study import (
    StudyPlace,
    count_states,
    ended,
    folder_of,
    open_study,
    place_of,
    require_one_success,
    retry_interrupted,
)
from cellray.train.search.task_fields import check_task_fields, with_task_fields
from cellray.train.search.trial import SilentSession
from cellray.train.search.tuner import check_trial_resources, run_trials
from cellray.train.tasks.contract import Task
from cellray.train.tasks.table import TaskConfig, read_task
from cellray.train.trainer import fit
from cellray.train.turn import Turn
from cellray.train.unfinished import Asked
from cellray.train.worker import Outcome, run_plan

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

_TRIALS = "trials"


@dataclass(frozen=True)
class SearchResult:
    """What a search made.

    Attributes
    ----------
    uri, report
        The best trial's model directory; table, pictures, best options and test figures.
    study
        Name of the study.
    counts
        Trials by how they ended.
    winner
        The best trial: `trial`, `parameters`, `objectives`, `spread` (over inner folds), `front`, `rule`.
    heads
        Figures of the test part, by head.
    tracked
        Where the run is recorded.
    """

    uri: str
    report: str
    study: str
    counts: dict[str, int]
    winner: dict[str, Any]
    heads: dict[str, dict[str, float | None]]
    tracked: str


@dataclass(frozen=True)
class _Opened:
    """What a search is about, opened."""

    config: SearchConfig
    corpus: Corpus
    parent: ModelReference
    task_config: TaskConfig
    task: Task
    space: Space
    asked: Asked
    output: str

    @property
    def request(self) -> str:
        return self.asked.request

    @property
    def job(self) -> TrialJob:
        config = self.config
        return TrialJob(
            base=config.base(),
            model=self.parent,
            task=self.task_config,
            objectives=config.objectives,
            folder=storage.join(config.folder, _TRIALS),
            request=self.request,
            gpu=config.gpus > 0,
            threads=config.threads or max(1, int(config.cpus_per_trial)),
            distributed=config.distributed,
        )


@plain_errors()
def search(config: SearchConfig) -> SearchResult:
    """Run a search, or what is left of it, and publish the best trial's model.

    A search that was broken off goes on: trials that ended are known from the study, those that were running are
    repeated from their own checkpoints. A finished one is returned as it is.

    Raises
    ------
    InputError
        Corpus, model, task, space and options do not fit; the output or the study hold something else, or beside the
        output lies an unfinished search with other options; all trials failed.
    """
    opened = _open(config)
    if (done := _finished(opened)) is not None:
        register(config, opened.output, opened.request, opened.corpus, None)
        return done
    opened.asked.require_search(opened.job.folder)
    _check_models(opened)
    check_trial_resources(config)
    place = place_of(config, opened.request)
    study = open_study(place, config.objectives, opened.request)
    opened.asked.write()
    facts = {"study_name": place.name, **_flat(opened.space)}
    name = f"search {config.task.rsplit('/', 1)[-1].removesuffix('.toml')}"
    with recorded(config, name, opened.request, opened.corpus, opened.parent, facts) as tracker:
        _run(opened, study, place, tracker)
        require_one_success(study)
        winner = winner_of(study, opened.space, config.objectives)
        _promote(opened, study, place, winner, tracker)
        tracker.set_tags({"model": opened.output, "best_trial": str(winner.number)})
        register(config, opened.output, opened.request, opened.corpus, tracker)
    storage.remove_directory(opened.job.folder)
    return _read_result(opened.output)


def _open(config: SearchConfig) -> _Opened:
    """Open and check everything that can be checked before anything starts."""
    corpus, task_config, space = Corpus.open(config.corpus), read_task(config.task), read_space(config.space)
    space.check(config.base())
    check_task_fields(space.parameters, task_config, set(config.objectives), config.space)
    parent = open_parent(config, corpus)
    options = search_asked(config, corpus, parent, task_config, space)
    request = schema.request_digest(**options)
    asked = Asked(
        config.folder, request, options | {"study": config.study}
    )  # trials of two studies have the same names
    check_objectives(config, trial_task(task_config).open(corpus))
    task: Task = final_task(task_config).open(corpus)
    return _Opened(config, corpus, parent, task_config, task, space, asked, storage.absolute(config.output))


def _check_models(opened: _Opened) -> None:
    """Build, once each, the models that the space's bounds ask for: the parent may have fewer layers, or no `<cls>`.

    Raises
    ------
    InputError
        A value does not fit the model.
    """
    for name, parameter in opened.space.parameters.items():
        for value in parameter.probes() if name in ModelOptions.model_fields else []:
            try:
                opened.job.plans({name: value}, "checked")[0].initial(opened.corpus)
            except InputError as error:
                rule = f"[{name}] must fit the model: {error.subject}: {error.rule}"
                raise InputError(opened.config.space, rule, f"{value!r}: {error.found}", error.fix) from None


def _run(opened: _Opened, study: "Study", place: StudyPlace, tracker: Tracker) -> None:
    """Run the trials that are missing."""
    config, before = opened.config, len(ended(study))
    repeated = retry_interrupted(study)
    if before or repeated:
        logger.info("%s: %s trials are done, %s were cut off and are repeated", place, f"{before:,}", repeated)
    if (number := config.trials - before) <= 0:
        return
    start = partial(_start_trial_run, opened, tracker)
    ledger = Ledger(study, opened.space, config.objectives, config.trials, start)
    logger.info("%s: %s trials to run, %s at once", place, f"{number:,}", config.concurrent)
    run_trials(config, opened.job, opened.space, study, place, ledger, number)


def _start_trial_run(opened: _Opened, parent: Tracker, name: str, folder: str, values: Mapping[str, object]) -> Tracker:
    """Start a trial's run below the search's; a repeated trial goes on with the run of the one that was cut off."""
    config = opened.config
    key = f"{opened.request}trial{folder}"
    return start_run(config.tracking_uri, config.experiment, name, values, {}, key=key, parent=parent, retry=True)


def _promote(opened: _Opened, study: "Study", place: StudyPlace, winner: Winner, tracker: Tracker) -> None:
    """Test the winner's model once, write the report, and publish the model last."""
    config, trial = opened.config, study.get_trials(deepcopy=False)[winner.number]
    plans = _concluding(opened, winner.values, trial)
    answers = _answers(opened, plans)
    facts: dict[str, Any] = {"study": place.name, "storage": mask_text(place.url), "states": count_states(study)}
    facts |= {"trials": len(ended(study)), "space": opened.space.to_json()}
    report = f"{opened.output}.report"
    write_search_report(
        report, config, opened.corpus, opened.space, study, winner, opened.task, answers, facts, tracker
    )
    task = with_task_fields(opened.task_config, winner.values)
    made = provenance(opened.job.base, opened.corpus, opened.parent, opened.request, task)
    made |= {"run": tracker.where(), "search": winner.to_json() | facts}
    publish(plans[-1], opened.corpus, made, opened.output)


def _concluding(opened: _Opened, values: Mapping[str, Any], trial: "FrozenTrial") -> list[FinetunePlan]:
    """Return the plans that follow a search: the first answers in the test part, the last one is published.

    With one split both are the trial's own. After inner folds the best options are trained anew, for as many steps as
    were best in the folds.
    """
    folder = folder_of(trial)
    if opened.task_config.split.folds == 1:
        return [opened.job.plans(values, folder)[0].concluding()]
    steps = max(1, round(median(trial.user_attrs[BEST_STEPS])))
    logger.info("training with the options of trial %s for %s steps", f"{trial.number:,}", f"{steps:,}")
    return opened.job.final_plans(values, folder, steps)


def _answers(opened: _Opened, plans: Sequence[FinetunePlan]) -> Any:  # noqa: ANN401
    """Train what is left to train, where and as trials are, and return the first plan's answers in the test part."""
    import ray

    if opened.config.distributed:
        recorders = [Recorder(NullTracker(), plan.loop.steps, plan.title) for plan in plans]
        fit(plans, recorders, Turn.take(f"{plans[0].checkpoints}.ray"))
    else:
        options = {"num_cpus": opened.config.cpus_per_trial, "num_gpus": opened.config.gpus}
        for plan in plans:
            ended = ray.get(ray.remote(**options)(_conclude).remote(plan, opened.job.gpu))
            if ended.error:
                raise TrainingError(ended.error)
    return plans[0].answers()


def _conclude(plan: FinetunePlan, gpu: bool) -> Outcome:
    return run_plan(plan, SilentSession(), compute_device(gpu=gpu, option="--gpus-per-trial"))


def _finished(opened: _Opened) -> SearchResult | None:
    """Return what this very search published before; refuse an output that holds anything else."""
    output, trials = opened.output, opened.config.trials
    if (made := made_before(output, opened.request)) is None:
        return None
    if (had := made["search"]["trials"]) < trials and not opened.config.time_limit:
        study = made["search"]["study"]
        fix = f"To go on, choose another --output with --study {study} and the --study-storage of this search."
        raise InputError(output, "a published search has an end", f"{had} trials where {trials} are asked for", fix)
    storage.remove_directory(opened.job.folder)
    return _read_result(output)


def _read_result(output: str) -> SearchResult:
    made, report = ModelDirectory.open(output).provenance, f"{output}.report"
    found = made["search"]
    heads = storage.read_json(storage.join(report, METRICS))["heads"]
    return SearchResult(
        uri=output,
        report=report,
        study=found["study"],
        counts=found["states"],
        winner={key: found[key] for key in ("trial", "parameters", "objectives", "spread", "front", "rule")},
        heads={name: head["mean"] for name, head in heads.items()},
        tracked=made["run"],
    )


def _flat(space: Space) -> dict[str, object]:
    """Return the space as parameters of a run."""
    return {f"searched.{name}": str(parameter) for name, parameter in space.parameters.items()}
