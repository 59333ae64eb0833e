"""ASHA, driven by hand with what trials report: a bad one is stopped, a good one goes on. Without Ray's processes."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.tune.schedulers import TrialScheduler

from cellray.tracking import NullTracker
from cellray.train.search.ledger import Ledger
from cellray.train.search.options import SearchConfig
from cellray.train.search.space import Range, Space
from cellray.train.search.study import StudyPlace, open_study, state_of
from cellray.train.search.tuner import _scheduler

SPACE = Space({"dropout": Range(kind="uniform", low=0, high=0.5)})
CONFIG = {"corpus": "c", "model": "m", "task": "t", "output": "o", "space": "s"}


@dataclass(frozen=True)
class Named:
    """A trial as Tune names it."""

    trial_id: str


def report(validation: int, value: float) -> dict[str, object]:
    return {"value_0": value, "validation": validation, "step": validation, "metrics": []}


@pytest.mark.parametrize(("objective", "sign"), [("macro_f1", 1), ("validation_loss", -1)])
def test_a_trial_that_falls_behind_is_stopped_and_one_that_leads_goes_on(
    tmp_path: Path, objective: str, sign: int
) -> None:
    """Trials of an earlier run count: six of them reached 0.1 .. 0.6 at their first and their third validation."""
    config = SearchConfig.model_validate({**CONFIG, "objectives": (objective,), "reduction_factor": 2})
    study = open_study(StudyPlace("s", f"sqlite:///{tmp_path}/study.db"), [objective], "request")
    ledger = Ledger(study, SPACE, [objective], 9, lambda *_: NullTracker())

    def run(value: float) -> int:
        """Run a trial as Tune does; return its validations."""
        scheduler, trial = _scheduler(config, study), study.ask(SPACE.distributions())
        own = Named(str(trial.number))
        ledger.started(own.trial_id, trial)
        scheduler.on_trial_add(None, own)
        for validation in range(1, 5):
            told = report(validation, sign * value)
            if scheduler.on_trial_result(None, own, told) == TrialScheduler.STOP:
                ledger.finished(own.trial_id, told)  # Tune does not tell of the report at which it stops
                return validation
            ledger.reported(own.trial_id, told)
        ledger.finished(own.trial_id, {**told, "ended": True, "error": ""})
        return 4

    for tenths in range(1, 7):
        assert run(tenths / 10) == 4  # each is better than all before
    assert run(0.05) == 1
    assert run(0.9) == 4
    assert [state_of(trial) for trial in study.trials] == ["complete"] * 6 + ["stopped early", "complete"]
    assert study.trials[6].value == sign * 0.05


def test_nothing_is_stopped_with_several_objectives_or_without_asha(tmp_path: Path) -> None:
    study = open_study(StudyPlace("s", f"sqlite:///{tmp_path}/study.db"), ["macro_f1"], "request")
    for changes in ({"asha": False}, {"objectives": ("macro_f1", "ece")}):
        scheduler = _scheduler(SearchConfig.model_validate(CONFIG | changes), study)
        for number in range(9):
            own = Named(str(number))
            scheduler.on_trial_add(None, own)
            assert scheduler.on_trial_result(None, own, report(1, -number)) == TrialScheduler.CONTINUE
