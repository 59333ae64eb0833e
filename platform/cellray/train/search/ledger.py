"""What a search's driver writes down of its trials: into the study, into MLflow, on the log; it alone writes there.

Is told of trials by whoever runs them; knows no Ray.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cellray.tracking import Tracker
from cellray.train.reports import STEP
from cellray.train.search.fold_results import BEST_STEPS, FOLDS, METRICS, SPREAD, VALUE
from cellray.train.search.options import plain
from cellray.train.search.space import Space
from cellray.train.search.study import (
    COMPLETE,
    FAILED,
    INTERRUPTED,
    LAST,
    REASON,
    RETRY_OF,
    RUNNING,
    SECONDS,
    STEPS,
    STOPPED,
    VALIDATIONS,
    best_trials,
    ended,
    folder_of,
    state_of,
)
from cellray.train.search.trial import DONE, ERROR, VALIDATION

if TYPE_CHECKING:
    from optuna import Study, Trial

logger = logging.getLogger(__name__)

StartRun = Callable[[str, str, Mapping[str, object]], Tracker]
"""Starts a trial's MLflow run, given its name, its folder and its options."""
TRIAL_STATE, TRIAL_NUMBER, TRIAL_RETRY_OF = "cellray.trial_state", "cellray.trial_number", "cellray.trial_retry_of"
"""Tags of a trial's run: how it ended, and its numbers, all as in the table of trials."""


@dataclass
class _Running:
    trial: "Trial"
    tracker: Tracker
    began: float
    last: dict[str, Any] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)


class Ledger:
    """Records trials.

    Parameters
    ----------
    study
        Takes their ends; a trial that is not in it never was.
    space
        Names the options.
    objectives
        Names of the study's values.
    trials
        How many there shall be in all.
    start_run
        Starts a trial's run.
    """

    def __init__(
        self, study: "Study", space: Space, objectives: tuple[str, ...], trials: int, start_run: StartRun
    ) -> None:
        self._study, self._space, self._objectives, self._trials = study, space, objectives, trials
        self._start_run = start_run
        self._running: dict[str, _Running] = {}

    def started(self, key: str, trial: "Trial") -> tuple[dict[str, Any], str]:
        """Take a trial that begins, under a key of the caller's; returns its options and the name of its folder."""
        values, folder = self._space.decode(trial.params), folder_of(trial)
        retry_of = trial.user_attrs.get(RETRY_OF)
        name = f"trial {trial.number}" + ("" if retry_of is None else f" (retry of {retry_of})")
        tracker = self._start_run(name, folder, values)
        tags = {TRIAL_NUMBER: str(trial.number), TRIAL_STATE: RUNNING}
        tracker.set_tags(tags if retry_of is None else tags | {TRIAL_RETRY_OF: str(retry_of)})
        self._running[key] = _Running(trial, tracker, time.monotonic())
        logger.info("trial %s begins: %s", f"{trial.number:,}", plain(values))
        return values, folder

    def reported(self, key: str, report: Mapping[str, Any]) -> None:
        """Take a validation that a trial reports; its end, and what was told already, are passed over."""
        running = self._running.get(key)
        if running is None or report.get(DONE) or report.get(VALIDATION) in {None, running.last.get(VALIDATION)}:
            return
        running.last = dict(report)
        running.tracker.log_metrics(dict(report[METRICS]), int(report[STEP]))
        self._keep_last(running.trial, report)
        validation, value = int(report[VALIDATION]), float(report[VALUE.format(0)])
        if len(self._objectives) == 1 and validation not in running.told and math.isfinite(value):
            running.trial.report(value, validation)  # Optuna takes these for one objective only
            running.told.add(validation)

    def finished(self, key: str, report: Mapping[str, Any]) -> None:
        """Take the last report of a trial that ended by itself or, if it does not say so, was stopped.

        Whoever stops a trial at a report need not have told of that report before: Tune does not.
        """
        self.reported(key, report)
        if report.get(ERROR):
            self.failed(key, str(report[ERROR]), report)
            return
        values = [float(report.get(VALUE.format(i), math.nan)) for i in range(len(self._objectives))]
        if not all(map(math.isfinite, values)):
            self.failed(key, "stopped before anything was measured", report)
            return
        running = self._take(key, report)
        stopped = not report.get(DONE)
        best = self._named(values) | dict(report[METRICS] if FOLDS in report else ())  # with the spread over folds
        running.tracker.log_metrics({f"best/{name}": v for name, v in best.items()}, int(report[STEP]))
        running.tracker.set_tags({TRIAL_STATE: STOPPED if stopped else COMPLETE})
        running.tracker.finish("FINISHED")
        # the study last: a trial that it does not know to have ended is repeated and its run continued
        if stopped and len(values) == 1:
            self._study.tell(running.trial, state=_state("PRUNED"))  # its value is the last one reported
        else:
            self._study.tell(running.trial, values)
        self._tell(running, plain(self._named(values)) + (f", {STOPPED}" if stopped else ""))

    def failed(self, key: str, reason: str, report: Mapping[str, Any] | None = None) -> None:
        """Take a trial that failed."""
        if key not in self._running:
            return
        running = self._take(key, report or {})
        running.trial.set_user_attr(REASON, reason)
        running.tracker.set_tags({REASON: reason, TRIAL_STATE: FAILED})
        running.tracker.finish("FAILED")
        self._study.tell(running.trial, state=_state("FAIL"))
        self._tell(running, f"failed: {reason}")

    def close(self) -> None:
        """Close the runs of trials that are cut off; they stay unfinished in the study and are repeated."""
        for running in self._running.values():
            running.tracker.set_tags({TRIAL_STATE: INTERRUPTED})
            running.tracker.finish("KILLED")
        self._running.clear()

    def _take(self, key: str, report: Mapping[str, Any]) -> _Running:
        """Take a trial off the list and write down its extent, before the study closes it."""
        running = self._running.pop(key)
        running.trial.set_user_attr(SECONDS, round(time.monotonic() - running.began, 1))
        for name, source in ((STEPS, STEP), (VALIDATIONS, VALIDATION)):
            known = report.get(source, running.last.get(source))
            if known is not None:
                running.trial.set_user_attr(name, int(known))
        for name in (FOLDS, SPREAD, BEST_STEPS):  # of a trial over several inner folds
            if name in (told := running.last | dict(report)):
                running.trial.set_user_attr(name, told[name])
        if report.get(DONE):  # over inner folds; else the last validation told it
            self._keep_last(running.trial, report)
        return running

    def _keep_last(self, trial: "Trial", report: Mapping[str, Any]) -> None:
        """Write the objectives of a validation into the study at once: the trial may never come to its end."""
        if metrics := dict(report.get(METRICS, ())):
            values = [float(metrics.get(name, math.nan)) for name in self._objectives]
            trial.set_user_attr(LAST, [value if math.isfinite(value) else None for value in values])

    def _named(self, values: list[float]) -> dict[str, float]:
        return dict(zip(self._objectives, values, strict=True))

    def _tell(self, running: _Running, text: str) -> None:
        """Log one line: what a trial reached, and the best so far."""
        count = len(ended(self._study))
        if best := best_trials(self._study):
            front = f" (of {len(best)} that none beats in all)" if len(self._objectives) > 1 else ""
            reached = plain(self._named(list(best[0].values)))
            so_far = f"best so far: trial {best[0].number:,}{front}, {reached}"
            so_far += f", {STOPPED}" if state_of(best[0]) == STOPPED else ""
        else:
            so_far = "none succeeded so far"
        number, total = f"{running.trial.number:,}", f"{self._trials:,}"
        logger.info("trial %s: %s; %s of %s trials done; %s", number, text, f"{count:,}", total, so_far)


def _state(name: str) -> Any:  # noqa: ANN401
    from optuna.trial import TrialState

    return TrialState[name]
