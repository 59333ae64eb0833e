"""What a person is told of a training."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from cellray.train.loop import LoopConfig
from cellray.train.planning import warn_of_warmup
from cellray.train.reports import Recorder, Report, draw_training, told


class Kept:
    """Takes metrics as a tracker does."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((metrics, step))


def test_few_figures_are_told() -> None:
    report = {
        "train_loss": 0.51234,
        "grad_norm": 3.0,
        "cells_per_s": 1234.5,
        "tokens_per_s": 1e5,
        "data_wait_share": 0.04,
        "learning_rate": 1e-3,
        "type/accuracy": 0.75,
        "type/ece": 0.1,
    }
    assert told(report) == ["train_loss 0.5123", "type/accuracy 0.75", "1,234 cells/s"]
    assert told({"train_loss": 1.0, "validation_loss": float("nan")}) == ["train_loss 1"]  # nothing to validate on
    assert told({"cells_per_s": 12.0, "data_wait_share": 0.3}) == ["12 cells/s", "30% of the time waiting for data"]


def test_a_quick_training_is_told_of_seldom_and_recorded_whole(caplog: pytest.LogCaptureFixture) -> None:
    """Of a hundred reports in an instant: the first, one with a validation and the last."""
    kept = Kept()
    recorder = Recorder(kept, 100, "fold 1")  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "cellray"):
        for step in range(1, 101):
            more = {"validation_loss": 2.0} if step == 50 else {}
            recorder.take(Report(0, {"step": step, "train_loss": 1.0, "cells_per_s": 10.0, **more}, []))
    assert len(kept.logged) == 100
    assert recorder.history == {"train_loss": (list(range(1, 101)), [1.0] * 100), "validation_loss": ([50], [2.0])}
    assert [message.split(";")[0] for message in caplog.messages] == [
        "fold 1, step 1 of 100: train_loss 1, 10 cells/s",
        "fold 1, step 50 of 100: train_loss 1, validation_loss 2, 10 cells/s",
        "fold 1, step 100 of 100: train_loss 1, 10 cells/s",
    ]


def test_the_course_of_all_folds_is_drawn(tmp_path: Path) -> None:
    recorders = [Recorder(Kept(), 40, f"fold {fold}") for fold in range(5)]  # type: ignore[arg-type]
    assert draw_training(recorders, tmp_path / "none.png", "kinds") is None
    for fold, recorder in enumerate(recorders):
        for step in range(1, 41):
            more = {"validation_loss": 2.0 - step / 40 + fold / 20, "accuracy": step / 50} if step % 10 == 0 else {}
            recorder.take(Report(0, {"step": step, "train_loss": 2 - step / 30, "age/mae": 1e3, **more}, []))
    path = draw_training(recorders, tmp_path / "training.png", "kinds")
    assert path is not None
    assert path.stat().st_size > 10_000


def test_a_warm_up_that_never_ends_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    loop = LoopConfig(
        steps=126, schedule="linear", warmup_steps=500, max_grad_norm=1.0, validate_every=50, log_every=5, seed=0
    )
    warn_of_warmup(replace(loop, warmup_steps=10))
    assert caplog.messages == []
    warn_of_warmup(loop)
    assert caplog.messages == [
        "the learning rate rises for 500 of 126 steps: it never gets to its peak; see --warmup-steps"
    ]
