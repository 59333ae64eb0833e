"""Studies: what counts, what is repeated, which trial is best; and what the driver writes down. Without Ray."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from cellray.errors import InputError
from cellray.tracking import NullTracker
from cellray.train.search.ledger import Ledger
from cellray.train.search.options import SearchConfig
from cellray.train.search.report import winner_of
from cellray.train.search.space import Range, Space
from cellray.train.search.study import (
    REASON,
    StudyPlace,
    best_trials,
    count_states,
    ended,
    folder_of,
    importances,
    make_sampler,
    open_study,
    place_of,
    require_one_success,
    retry_interrupted,
    trial_table,
)

SPACE = Space({"dropout": Range(kind="uniform", low=0, high=0.5)})
WIDE = Range(kind="uniform", low=0, high=0.5)


@pytest.fixture
def place(tmp_path: Path) -> StudyPlace:
    return StudyPlace("s", f"sqlite:///{tmp_path}/study.db")


def ledger_of(study: optuna.Study, *objectives: str) -> Ledger:
    return Ledger(study, SPACE, objectives or ("macro_f1",), 9, lambda *_: NullTracker())


def report(validation: int, *values: float, **more: object) -> dict[str, object]:
    told = {f"value_{i}": value for i, value in enumerate(values)}
    return {**told, "step": 10 * validation, "validation": validation, "metrics": [("train_loss", 1.0)], **more}


def test_a_study_that_was_cut_off_goes_on(place: StudyPlace, caplog: pytest.LogCaptureFixture) -> None:
    """One trial of each end; the driver is killed while two run, one of which had failed already."""
    caplog.set_level("INFO", logger="cellray")
    study = open_study(place, ["macro_f1"], "request")
    ledger = ledger_of(study)
    trials = [study.ask(SPACE.distributions()) for _ in range(5)]
    for trial in trials:
        values, folder = ledger.started(f"key{trial.number}", trial)
        assert values == trial.params
        assert folder == f"0000{trial.number}"
    ledger.reported("key0", report(1, 0.5))
    ledger.reported("key0", report(2, 0.75))
    ledger.finished("key0", {"value_0": 0.75, "step": 20, "ended": True, "error": ""})
    ledger.reported("key1", report(1, 0.25))
    ledger.finished("key1", report(1, 0.25))
    ledger.finished("key2", {"value_0": float("nan"), "ended": True, "error": "the loss became nan"})
    trials[4].set_user_attr(REASON, "out of memory")
    del study, ledger, trials

    study = open_study(place, ["macro_f1"], "request")
    assert retry_interrupted(study) == 1
    assert count_states(study) == {"complete": 1, "stopped early": 1, "failed": 2, "interrupted": 1}
    assert len(ended(study)) == 4
    again = study.ask(SPACE.distributions())
    assert (again.number, folder_of(again)) == (5, "00003")
    table = trial_table(study, ["macro_f1"], SPACE.decode).set_index("trial")
    assert table.loc[5, "retry_of"] == 3
    assert table.loc[5, "dropout"] == table.loc[3, "dropout"]
    assert list(table["state"]) == ["complete", "stopped early", "failed", "interrupted", "failed", "running"]
    assert table.loc[[0, 1], "macro_f1"].to_list() == [0.75, 0.25]
    assert table.loc[0, ["steps", "validations"]].to_list() == [20, 2]
    assert table.loc[2, "reason"] == "the loss became nan"
    assert (
        "trial 2: failed: the loss became nan; 3 of 9 trials done; best so far: trial 0, macro_f1 0.75" in caplog.text
    )

    again.set_user_attr("half", 1)  # it is cut off once more
    study = open_study(place, ["macro_f1"], "request")
    assert retry_interrupted(study) == 1
    assert folder_of(study.ask(SPACE.distributions())) == "00003"
    assert len(ended(study)) == 4


def test_means_and_spread_over_inner_folds_stand_in_the_study(place: StudyPlace) -> None:
    """The second trial is stopped after its first fold, whose spread is not known."""
    study = open_study(place, ["macro_f1"], "request")
    ledger = ledger_of(study)
    for number in range(2):
        ledger.started(str(number), study.ask(SPACE.distributions()))
        ledger.reported(str(number), report(1, 0.5, folds=1, best_steps=[7]))
    told = {"folds": 2, "spread": [0.125], "best_steps": [7, 9], "metrics": [("macro_f1_std", 0.125)], "step": 30}
    ledger.finished("0", {"value_0": 0.625, "ended": True, "error": "", **told})
    ledger.finished("1", report(1, 0.5, folds=1, best_steps=[7]))
    table = trial_table(study, ["macro_f1"], SPACE.decode)
    assert list(table["state"]) == ["complete", "stopped early"]
    assert list(table["macro_f1"]) == [0.625, 0.5]
    assert list(table["folds"]) == [2, 1]
    assert table["validations"].isna().all()
    np.testing.assert_array_equal(table["macro_f1_std"], [0.125, np.nan])
    winner = winner_of(study, SPACE, ["macro_f1"])
    assert (winner.number, winner.reached, winner.spread) == (0, {"macro_f1": 0.625}, {"macro_f1": 0.125})
    assert study.trials[0].user_attrs["best_steps"] == [7, 9]


def test_what_a_trial_came_to_is_in_the_table_however_it_ends(place: StudyPlace) -> None:
    """The objective counts at the best step; the last validation may be worse. Failed trials have no objective.

    The last row is the repetition of the one that was cut off: it goes on from there.
    """
    study = open_study(place, ["macro_f1"], "request")
    ledger = ledger_of(study)

    def told(validation: int, best: float, last: float) -> dict[str, object]:
        return report(validation, best) | {"metrics": [("train_loss", 1.0), ("macro_f1", last)]}

    for key in ("complete", "stopped", "failed", "interrupted", "at once"):
        ledger.started(key, study.ask(SPACE.distributions()))
    for key in ("complete", "stopped", "failed", "interrupted"):
        ledger.reported(key, told(1, 0.5, 0.5))
    ledger.reported("complete", told(2, 0.5, 0.25))
    ledger.finished("complete", {"value_0": 0.5, "step": 20, "ended": True, "error": ""})
    ledger.finished("stopped", told(2, 0.5, 0.125))  # a report that only the end tells of, as Tune does it
    ledger.failed("failed", "the loss became nan")
    ledger.finished("at once", told(1, 0.0625, float("nan")))
    retry_interrupted(study)
    table = trial_table(study, ["macro_f1"], SPACE.decode)
    assert list(table.columns[:4]) == ["trial", "state", "macro_f1", "macro_f1_last_value"]
    nan = np.nan
    np.testing.assert_array_equal(table["macro_f1"], [0.5, 0.5, nan, nan, 0.0625, nan])
    np.testing.assert_array_equal(table["macro_f1_last_value"], [0.25, 0.125, 0.5, 0.5, nan, 0.5])
    assert study.trials[1].intermediate_values == {1: 0.5, 2: 0.5}  # by which a search that goes on knows it


def test_few_trials_tell_nothing_about_importance() -> None:
    study, wide = optuna.create_study(), Space({"dropout": SPACE.parameters["dropout"], "weight_decay": WIDE})
    rng = np.random.default_rng(0)
    for number in range(1, 12):
        params = dict(zip(wide.parameters, rng.random(2) / 2, strict=True))
        made = optuna.trial.create_trial(params=params, distributions=wide.distributions(), value=params["dropout"])
        study.add_trial(made)
        if number < 10:
            assert importances(study, 0) == {}
    shares = importances(study, 0)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["dropout"] > 0.7


def test_a_study_belongs_to_one_search(place: StudyPlace) -> None:
    open_study(place, ["macro_f1"], "request")
    with pytest.raises(InputError, match="belongs to one search"):
        open_study(place, ["macro_f1"], "another")


def test_many_open_a_new_database_at_once(tmp_path: Path) -> None:
    """Optuna makes tables and a version's row without waiting for another process that makes them."""
    at_once = threading.Barrier(6)

    def open_(folder: Path) -> int:
        place = StudyPlace("s", f"sqlite:///{folder}/study.db")
        at_once.wait()
        return open_study(place, ["macro_f1"], "request")._study_id

    with ThreadPoolExecutor(6) as pool:
        for number in range(4):
            folder = tmp_path / str(number)
            folder.mkdir()
            assert set(pool.map(open_, [folder] * 6)) == {1}


def test_passwords_are_not_told() -> None:
    place = StudyPlace("s", "postgresql+nodriver://me:hunter2@host/db?password=hunter3")
    with pytest.raises(InputError) as caught:
        place.open_storage()
    assert "hunter" not in repr(place) + str(caught.value)


def test_a_study_needs_a_disk_or_a_database() -> None:
    values = {"corpus": "c", "model": "m", "task": "dir/cells.toml", "output": "s3://bucket/o", "space": "s"}
    with pytest.raises(InputError, match="Name a database with --study-storage"):
        place_of(SearchConfig(**values), "f" * 64)  # type: ignore[arg-type]
    named = place_of(SearchConfig(**values, study_storage="postgresql://host/db"), "f" * 64)  # type: ignore[arg-type]
    assert named == StudyPlace("cells-ffffffffffff", "postgresql://host/db")


def test_a_search_that_goes_on_draws_other_numbers() -> None:
    drawn = []
    for trials in (0, 3):
        study = optuna.create_study(sampler=make_sampler("tpe", 7, trials))
        drawn.append([study.ask(SPACE.distributions()).params["dropout"] for _ in range(3)])
    assert not set(drawn[0]) & set(drawn[1])
    again = optuna.create_study(sampler=make_sampler("tpe", 7, 0))
    assert [again.ask(SPACE.distributions()).params["dropout"] for _ in range(3)] == drawn[0]


def test_the_best_trial_comes_to_its_end_where_one_does(place: StudyPlace) -> None:
    study = open_study(place, ["macro_f1"], "request")
    with pytest.raises(InputError, match="none was run"):
        require_one_success(study)
    ledger = ledger_of(study)
    for value, done in ((0.9, False), (0.4, True), (0.6, True), (0.6, True)):
        trial = study.ask(SPACE.distributions())
        ledger.started(str(trial.number), trial)
        ledger.reported(str(trial.number), report(1, value))
        ledger.finished(str(trial.number), report(1, value, ended=done))
        expected = {0: 0, 1: 1, 2: 2, 3: 2}[trial.number]
        assert [best.number for best in best_trials(study)] == [expected]
    assert study.trials[0].value == 0.9
    assert study.trials[0].state == TrialState.PRUNED


def test_the_front_is_what_no_trial_beats(place: StudyPlace) -> None:
    """Against brute force and Optuna's own front; macro F1 goes up, ECE goes down."""
    study = open_study(place, ["macro_f1", "ece"], "request")
    rng = np.random.default_rng(0)
    ledger = ledger_of(study, "macro_f1", "ece")
    points = [(float(f1), float(ece)) for f1, ece in rng.integers(0, 6, (25, 2)) / 10]
    for f1, ece in points:
        trial = study.ask(SPACE.distributions())
        ledger.started("key", trial)
        ledger.reported("key", report(1, f1, ece))
        ledger.finished("key", {"value_0": f1, "value_1": ece, "step": 10, "ended": True, "error": ""})
    beaten = {
        i
        for (i, (f1, ece)), (other, error) in itertools.product(enumerate(points), points)
        if other >= f1 and error <= ece and (other, error) != (f1, ece)
    }
    front = [trial.number for trial in best_trials(study)]
    assert set(front) == set(range(25)) - beaten == {trial.number for trial in study.best_trials}
    ranks = {
        i: sum(other > f1 for other, _ in points) + sum(error < ece for _, error in points)
        for i, (f1, ece) in enumerate(points)
    }
    assert ranks[front[0]] == min(ranks[i] for i in front)


def test_all_trials_failing_is_one_error(place: StudyPlace) -> None:
    study = open_study(place, ["macro_f1"], "request")
    ledger = ledger_of(study)
    for reason in ("the loss became nan", "the loss became nan", "out of memory"):
        ledger.started("key", study.ask(SPACE.distributions()))
        ledger.failed("key", reason)
    with pytest.raises(InputError) as caught:
        require_one_success(study)
    assert "3 failed: 'out of memory', 'the loss became nan'" in str(caught.value)
