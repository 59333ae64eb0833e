"""A tracker that outlives a tracking server's absence: points and tags wait, and nothing here ends a training run.

While the server does not answer it is asked only now and then, so that training does not wait for it. What is still
unwritten when the run ends is lost, counted and warned of. The state stays in its process: a copy that was sent to
another one has nothing waiting.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellray.tracking.contract import Status
from cellray.tracking.names import metric_name
from cellray.tracking.run import MlflowRun, param_name, param_text
from cellray.tracking.server import in_short, patience

logger = logging.getLogger(__name__)

_MOST_WAITING = 200_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0
_ANSWER_S = 10
_LAST_RETRIES = 3


class PatientTracker:
    """Writes to an MLflow run whenever its server answers.

    Parameters
    ----------
    run
        Where records go.
    params
        What the run has recorded already.
    steps
        Of each metric, the steps that the run has recorded already.
    look_again
        Whether the run may have got more since: a job that is taken over goes on for a moment. Looked up once, at the
        first record, when that job has ended.
    """

    def __init__(
        self,
        run: MlflowRun,
        params: Mapping[str, str] | None = None,
        steps: Mapping[str, set[int]] | None = None,
        *,
        look_again: bool = False,
    ) -> None:
        self.run = run
        self.repeated = 0
        self.cut = 0
        self._params = dict(params or {})
        self._steps = {key: set(each) for key, each in (steps or {}).items()}
        self._look_again = look_again
        self._points: list[Any] = []
        self._tags: dict[str, str] = {}
        self._dropped = 0
        self._failures = 0
        self._not_before = 0.0
        self._lock = threading.RLock()  # reports are recorded by one thread, tags by another

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.run, self._params, self._steps, self._look_again)

    @property
    def lost(self) -> int:
        """Records that could not be written, those still waiting included."""
        return self._dropped + len(self._points) + len(self._tags)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; those that this step has already, as after a resumed training, are left out."""
        now = int(time.time() * 1000)
        with self._lock:
            if self._look_again:
                self._look_again = False
                self._learn_steps()
            for name, value in metrics.items():
                self._add_point(metric_name(name), value, step, now)
            if len(self._points) > _MOST_WAITING:
                self._dropped += len(self._points) - _MOST_WAITING
                del self._points[:-_MOST_WAITING]
            self._write_waiting()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags; the last value counts."""
        with self._lock:
            self._tags |= tags
            self._write_waiting()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record parameters that are not recorded yet; MLflow lets none be changed."""
        new: dict[str, str] = {}
        for name, value in params.items():
            key = param_name(name)
            text, cut = param_text(name, value)
            if cut:
                self.cut += 1
            if (known := self._params.get(key)) is None:
                new[key] = text
            elif text != known and not (text.startswith(known) and len(known) >= 500):  # an old server cut it
                logger.warning("parameter %s was recorded as %.80r and stays so; it is now %.80r", key, known, text)
        if self.cut:
            logger.warning("%s parameters were too long for MLflow and are recorded cut", f"{self.cut:,}")
        if new and self._try(f"{len(new)} parameters", lambda: self.run.log_params(new), count=len(new)):
            self._params |= new

    def log_file(self, path: Path, folder: str = "") -> None:
        """Upload a file to the run's artifacts."""
        self._try(f"artifact {path.name}", lambda: self.run.log_file(path, folder))

    def log_text(self, text: str, name: str) -> None:
        """Upload text to the run's artifacts."""
        self._try(f"artifact {name}", lambda: self.run.log_text(text, name))

    def log_table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Upload columns as CSV to the run's artifacts."""
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"the columns of {name} must have one length")
        self._try(f"artifact {name}", lambda: self.run.log_table(columns, name))

    def log_figure(self, figure: Any, name: str) -> None:  # noqa: ANN401
        """Upload a matplotlib figure to the run's artifacts."""
        self._try(f"artifact {name}", lambda: self.run.log_figure(figure, name))

    def finish(self, status: Status) -> None:
        """Write what waits, close the run, and warn of what was lost."""
        with self._lock:
            self._not_before = 0.0
            self._write_waiting(retries=_LAST_RETRIES)
        self._try(f"the end of the run ({status})", lambda: self.run.finish(status))
        if self.repeated:
            told = "MLflow has %s of the measurements from before the interruption; they are not recorded a second time"
            logger.info(told, f"{self.repeated:,}")
        if self.lost:
            logger.warning(
                "%s record(s) of %s were lost: the tracking server did not take them", f"{self.lost:,}", self.where()
            )

    def where(self) -> str:
        """Name the run and how to see it."""
        return self.run.where()

    def _learn_steps(self) -> None:
        """Look up what the run has recorded; what was known before does if the server does not answer."""
        try:
            with patience(retries=1):
                found = self.run.recorded_steps()
        except Exception as error:  # see `_write_waiting`
            logger.warning("what %s holds could not be looked up again: %s", self.where(), in_short(error))
            return
        for name, steps in found.items():
            self._steps.setdefault(name, set()).update(steps)

    def _add_point(self, key: str, value: float, step: int, time_ms: int) -> None:
        """Let a point wait to be written, unless its step has one."""
        steps = self._steps.setdefault(key, set())
        if step in steps:
            self.repeated += 1
            return
        try:
            self._points.append(self.run.point(key, float(value), step, time_ms))
            steps.add(step)
        except (TypeError, ValueError):
            self._drop(f"metric {key} at step {step:,}", "it is no number")

    def _write_waiting(self, retries: int = 0) -> None:
        """Write points and tags that wait, unless the server failed a moment ago."""
        if time.monotonic() < self._not_before or not (self._points or self._tags):
            return
        points, tags = list(self._points), dict(self._tags)
        try:
            with patience(retries, _ANSWER_S):
                self.run.log_points(points)
                self.run.set_tags(tags)
        except Exception as error:  # whatever a tracking server answers, training goes on
            self._wait(error)
            return
        if self._failures:
            logger.warning("%s is written again: %s records had waited", self.where(), f"{len(points) + len(tags):,}")
        self._failures = 0
        self._points = self._points[len(points) :]
        self._tags = {}

    def _wait(self, error: Exception) -> None:
        """Leave the server alone for a while, longer after each failure."""
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * math.exp2(min(self._failures, 10)))
        self._not_before = time.monotonic() + pause
        self._failures += 1
        waiting = len(self._points) + len(self._tags)
        logger.warning("%s records wait for the tracking server: %s", f"{waiting:,}", in_short(error))

    def _try(self, what: str, write: Callable[[], object], count: int = 1) -> bool:
        """Write at once or count what is lost."""
        try:
            with patience(retries=1):
                write()
        except Exception as error:  # see `_write_waiting`
            self._drop(what, in_short(error), count)
            return False
        return True

    def _drop(self, what: str, why: str, count: int = 1) -> None:
        self._dropped += count
        logger.warning("%s could not be recorded: %s", what, why)


def _remade(
    run: MlflowRun, params: Mapping[str, str], steps: Mapping[str, set[int]], look_again: bool
) -> PatientTracker:
    return PatientTracker(run, params, steps, look_again=look_again)
