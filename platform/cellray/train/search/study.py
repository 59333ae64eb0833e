"""The study of a search: which trials there were, what they reached, what is left to do, and which one is best.

Kept by Optuna in a database that outlives the process. Knows no Ray and no training; one process writes to a study.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellray import storage
from cellray.errors import InputError, listing
from cellray.tracking.masking import mask_text
from cellray.train.search.fold_results import FOLDS, SPREAD
from cellray.train.search.options import SearchConfig, lower_is_better

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

REQUEST, FOLDER, RETRY_OF, REASON, STEPS, VALIDATIONS, SECONDS, LAST = (
    "request",
    "folder",
    "retry_of",
    "reason",
    "steps",
    "validations",
    "seconds",
    "last_values",
)
COMPLETE, STOPPED, FAILED, INTERRUPTED, RUNNING = "complete", "stopped early", "failed", "interrupted", "running"
_DATABASE = "study.db"
_LOCK_S = 60
FEWEST = 10
"""Complete trials below which importances of options are chance: two trials make one option explain everything."""


@dataclass(frozen=True)
class StudyPlace:
    """Where a study is kept.

    Attributes
    ----------
    name
        In its database.
    url
        Of the database, with its password.
    """

    name: str
    url: str

    def __repr__(self) -> str:
        return f"study {self.name!r} in {mask_text(self.url)}"

    def open_storage(self) -> "RDBStorage":
        """Open the database; its tables are made if need be.

        Raises
        ------
        InputError
            It cannot be opened.
        """
        logging.getLogger("optuna").setLevel(logging.WARNING)
        try:
            return self._storage()
        except Exception as error:  # each database has errors of its own
            found = mask_text(" ".join(str(error).split()))[:300].replace(self.url, mask_text(self.url))
            fix = "Check the URL (as postgresql://user:password@host/name) and that the database's driver is installed."
            raise InputError("--study-storage", "the database must open", found, fix) from None

    def _storage(self) -> "RDBStorage":
        """Open the database again where another process makes its tables at the same time: Optuna does not wait."""
        from optuna.storages import RDBStorage
        from sqlalchemy.exc import DBAPIError, IntegrityError

        waits = {"connect_args": {"timeout": _LOCK_S}} if self.url.startswith("sqlite") else {}
        for pause_s in (0.1, 0.2, 0.4, 0.8, 1.6):
            try:
                return RDBStorage(self.url, engine_kwargs=waits)
            except DBAPIError as error:
                if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                    raise
            time.sleep(pause_s)
        return RDBStorage(self.url, engine_kwargs=waits)


def place_of(config: SearchConfig, request: str) -> StudyPlace:
    """Return where a search's study is.

    Raises
    ------
    InputError
        The output is in object storage, where no database can lie beside it.
    """
    name = config.study or f"{Path(config.task).stem}-{request[:12]}"
    if config.study_storage is not None:
        return StudyPlace(name, config.study_storage)
    if not storage.is_local(config.folder):
        found, fix = f"--output {config.output}", "Name a database with --study-storage."
        raise InputError("--study-storage", "a study beside its output needs a local disk", found, fix)
    Path(config.folder).mkdir(parents=True, exist_ok=True)
    return StudyPlace(name, f"sqlite:///{config.folder}/{_DATABASE}")


def open_study(place: StudyPlace, objectives: Sequence[str], request: str) -> "Study":
    """Open a study, or begin it.

    Raises
    ------
    InputError
        It belongs to another search.
    """
    import optuna
    from optuna.study import StudyDirection

    directions = [StudyDirection.MINIMIZE if lower_is_better(each) else StudyDirection.MAXIMIZE for each in objectives]
    study = optuna.create_study(
        storage=place.open_storage(), study_name=place.name, load_if_exists=True, directions=directions
    )
    known = study.user_attrs.get(REQUEST)
    if known is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(REQUEST, request)
    elif known != request:
        fix = "Choose another --study, or the options it was begun with."
        raise InputError(repr(place), "a study belongs to one search", "trials of another search", fix)
    return study


def make_sampler(kind: str, seed: int, trials: int) -> "BaseSampler":
    """Return what draws the next trial.

    Parameters
    ----------
    kind
        tpe, nsga2 or random.
    seed
        Of the search.
    trials
        Already in the study: a search that goes on must not draw the same numbers again.
    """
    from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

    drawn = int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])
    made: dict[str, Callable[..., BaseSampler]] = {"tpe": TPESampler, "nsga2": NSGAIISampler, "random": RandomSampler}
    return made[kind](seed=drawn)


def state_of(trial: "FrozenTrial") -> str:
    """Return how a trial ended, in words; one that failed without a reason was cut off with the whole search."""
    if trial.state.name == "FAIL":
        return FAILED if REASON in trial.user_attrs else INTERRUPTED
    return {"COMPLETE": COMPLETE, "PRUNED": STOPPED}.get(trial.state.name, RUNNING)


def ended(study: "Study") -> "list[FrozenTrial]":
    """Return the trials that count: those that came to an end of their own, well or badly."""
    return [trial for trial in study.get_trials(deepcopy=False) if state_of(trial) in {COMPLETE, STOPPED, FAILED}]


def count_states(study: "Study") -> dict[str, int]:
    """Return the number of trials by how they ended."""
    states = [state_of(trial) for trial in study.get_trials(deepcopy=False)]
    return {state: states.count(state) for state in (COMPLETE, STOPPED, FAILED, INTERRUPTED) if state in states}


def retry_interrupted(study: "Study") -> int:
    """Mark the trials that ran when the search was cut off, and put them first in the queue again.

    A trial whose reason is known had failed; it is not repeated. A repeated one goes on from its own checkpoints.

    Returns
    -------
    int
        Trials to be repeated.
    """
    from optuna.trial import TrialState

    repeated = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if REASON not in trial.user_attrs and trial.params:
            attributes = {FOLDER: folder_of(trial), RETRY_OF: trial.number}
            attributes |= {LAST: trial.user_attrs[LAST]} if LAST in trial.user_attrs else {}
            study.enqueue_trial(trial.params, user_attrs=attributes)
            repeated += 1
    return repeated


def folder_of(trial: Any) -> str:  # noqa: ANN401  # a Trial or a FrozenTrial
    """Return the name of a trial's folder: that of the trial it repeats, else its own."""
    return str(trial.user_attrs.get(FOLDER, f"{trial.number:05d}"))


def best_trials(study: "Study") -> "list[FrozenTrial]":
    """Return the best trial, or those of the Pareto front, the one to be published first.

    Trials that were stopped early are taken only if none came to its end. Of a front the one with the smallest sum of
    its ranks in the objectives is first; where two are equal, the better one in the first objective, then the earlier.
    """
    trials = study.get_trials(deepcopy=False)
    finished = [t for t in trials if state_of(t) == COMPLETE] or [t for t in trials if state_of(t) == STOPPED]
    finished = [trial for trial in finished if trial.values]
    if not finished:
        return []
    signs = np.array([1.0 if direction.name == "MINIMIZE" else -1.0 for direction in study.directions])
    cost_to = np.array([trial.values for trial in finished], np.float64) * signs  # trials x objectives, small is good
    beaten_t = [bool((np.all(cost_to <= own, axis=1) & np.any(cost_to < own, axis=1)).any()) for own in cost_to]
    rank_t = pd.DataFrame(cost_to).rank(method="min").sum(axis=1).to_numpy()
    front = [i for i, beaten in enumerate(beaten_t) if not beaten]
    front.sort(key=lambda i: (rank_t[i], cost_to[i, 0], finished[i].number))
    return [finished[i] for i in (front if len(signs) > 1 else front[:1])]


def trial_table(study: "Study", objectives: Sequence[str], decode: Any) -> pd.DataFrame:  # noqa: ANN401
    """Return a row for each trial: its options, what it reached, how it ended, its steps and seconds.

    Under an objective's name stands what counts, the value at the best step so far; under `NAME_last_value` the one of
    the last validation, which trials that failed or were cut off may have, too.

    Parameters
    ----------
    study
        The study.
    objectives
        Names of its values.
    decode
        Turns what Optuna drew into options: `Space.decode`.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.values or [math.nan] * len(objectives)
        row: dict[str, Any] = {"trial": trial.number, "state": state_of(trial)}
        row |= dict(zip(objectives, values, strict=True))
        last = trial.user_attrs.get(LAST, [None] * len(objectives))
        row |= {f"{name}_last_value": math.nan if v is None else v for name, v in zip(objectives, last, strict=True)}
        row |= decode(trial.params)
        row |= {key: trial.user_attrs.get(key) for key in (STEPS, VALIDATIONS, SECONDS, RETRY_OF, REASON)}
        row |= {f"{name}_std": std for name, std in spread_of(trial, objectives).items()}
        if FOLDS in trial.user_attrs:
            row |= {FOLDS: trial.user_attrs[FOLDS], VALIDATIONS: None}  # reports are one a fold
        rows.append(row)
    table = pd.DataFrame(rows)
    whole = {name: "Int64" for name in (STEPS, VALIDATIONS, RETRY_OF, FOLDS) if name in table}
    return table.astype(whole)


def spread_of(trial: "FrozenTrial", objectives: Sequence[str]) -> dict[str, float]:
    """Return the standard deviation over inner folds of each objective, nothing where there is none."""
    return dict(zip(objectives, trial.user_attrs.get(SPREAD, ()), strict=False))


def require_one_success(study: "Study") -> None:
    """Check that there is a trial to publish.

    Raises
    ------
    InputError
        All trials failed; the reasons are told, each once.
    """
    if best_trials(study):
        return
    reasons = [str(trial.user_attrs[REASON]) for trial in ended(study)]
    found = f"{len(reasons)} failed: {listing(dict.fromkeys(reasons), limit=3)}" if reasons else "none was run"
    fix = "Correct the task or the space; a changed space is a new search."
    raise InputError("search", "at least one trial must come to its end", found, fix)


def importances(study: "Study", objective: int) -> Mapping[str, float]:
    """Return how much of the objective's variance each option explains (fANOVA, Hutter et al. 2014).

    Empty where fewer than `FEWEST` trials came to their end, or they do not differ.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    finished = [t for t in study.get_trials(deepcopy=False) if state_of(t) == COMPLETE and t.values]
    if len(finished) < FEWEST or len({trial.values[objective] for trial in finished}) < 2:
        return {}
    try:
        return get_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), target=lambda trial: trial.values[objective]
        )
    except (ValueError, RuntimeError) as error:
        logger.info("no importances of options: %s", error)
        return {}
