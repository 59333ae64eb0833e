"""What a trial reached in the inner folds it is through with; kept beside its checkpoints, so that it can go on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cellray import storage
from cellray.train.reports import STEP
from cellray.train.worker import Outcome

VALUE, METRICS = "value_{}", "metrics"
FOLDS, SPREAD, BEST_STEPS = "folds", "spread", "best_steps"
_FILE = "folds.json"


@dataclass(frozen=True)
class _Fold:
    values: list[float]
    best_step: int
    steps: int


class FoldResults:
    """Objectives at the best step of each finished fold.

    Parameters
    ----------
    objectives
        Their names.
    folder
        URI of the trial's folder; what it holds from before an interruption is known again.
    """

    def __init__(self, objectives: Sequence[str], folder: str) -> None:
        self._objectives, self._uri = tuple(objectives), storage.join(folder, _FILE)
        known = storage.read_json(self._uri)["folds"] if storage.exists(self._uri) else []
        self._folds = [_Fold(**each) for each in known]

    def __len__(self) -> int:
        """Return the number of finished folds."""
        return len(self._folds)

    def add(self, values: Mapping[str, float], outcome: Outcome) -> None:
        """Take a fold's objectives, by `VALUE`, and how it ended."""
        reached = [values[VALUE.format(i)] for i in range(len(self._objectives))]
        self._folds.append(_Fold(reached, outcome.best_step or outcome.steps, outcome.steps))
        told = {"folds": [asdict(each) for each in self._folds]}
        storage.write_bytes(self._uri, json.dumps(told).encode())

    def report(self) -> dict[str, Any]:
        """Return means over the folds, by `VALUE`; their standard deviations (n - 1), best steps, and the rest.

        With one fold there is no standard deviation, and `SPREAD` is not in the report.
        """
        value_ko = np.array([each.values for each in self._folds])
        mean_o = value_ko.mean(axis=0)
        spread_o = value_ko.std(axis=0, ddof=1) if len(self) > 1 else value_ko[0, :0]
        named = [*zip(self._objectives, mean_o.tolist(), strict=True)]
        named += [(f"{name}_std", std) for name, std in zip(self._objectives, spread_o.tolist(), strict=False)]
        return {
            **{VALUE.format(i): mean for i, mean in enumerate(mean_o.tolist())},
            STEP: sum(each.steps for each in self._folds),
            FOLDS: len(self),
            BEST_STEPS: [each.best_step for each in self._folds],
            METRICS: named,
            **({SPREAD: spread_o.tolist()} if len(self) > 1 else {}),
        }
