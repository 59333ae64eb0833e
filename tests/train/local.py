"""A session without a cluster, and plans over a small corpus: what training tests run on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from cellray.data.corpora.corpus import Corpus
from cellray.models import open_model
from cellray.train.pretrain import PretrainConfig, make_plan
from cellray.train.pretrain_plan import PretrainPlan
from cellray.train.worker import Outcome, run_plan

CPU = torch.device("cpu")


class StopError(Exception):
    """Ends a training as a lost worker would."""


@dataclass
class LocalSession:
    """One worker alone; keeps what is reported.

    Attributes
    ----------
    stop_at
        Step at whose report the worker is lost.
    leave_at
        Step at whose report its machine is about to be taken away.
    """

    stop_at: int | None = None
    leave_at: int | None = None
    rank: int = 0
    world_size: int = 1
    reports: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    earlier: list[dict[str, float]] = field(default_factory=list)
    asked: int = 0

    def report(
        self, metrics: Mapping[str, float], notes: Sequence[str], earlier: Sequence[Mapping[str, float]] = ()
    ) -> None:
        self.notes += notes
        self.earlier += [dict(each) for each in earlier]
        if len(metrics) > 1:  # more than where training goes on from
            self.reports.append(dict(metrics))
        if metrics["step"] == self.stop_at:
            raise StopError

    def leaving(self) -> bool:
        self.asked += 1
        return self.leave_at is not None and self.asked == self.leave_at

    def history(self, name: str) -> dict[int, float]:
        """Return the values of a metric by step."""
        return {int(report["step"]): report[name] for report in self.reports if name in report}


def plan_of(config: PretrainConfig) -> PretrainPlan:
    parent = open_model(config.model)[1] if config.model else None
    return make_plan(config, Corpus.open(config.corpus), parent, "0" * 12)


def train(config: PretrainConfig, session: LocalSession | None = None) -> Outcome:
    return run_plan(plan_of(config), session or LocalSession(), CPU)
