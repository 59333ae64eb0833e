"""Options of a search: those of a fine-tuning, which a trial may change, and how many trials run where."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cellray import storage
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError, listing
from cellray.models import ModelReference
from cellray.tracking import OFF
from cellray.tracking.options import TrackingOptions
from cellray.train.finetune import FinetuneConfig
from cellray.train.folds import VALIDATION
from cellray.train.options import GROUP_FIELDS
from cellray.train.planning import LOWER_IS_BETTER
from cellray.train.search.space import Space
from cellray.train.tasks.contract import Task
from cellray.train.tasks.table import TaskConfig

_FIRST_OBJECTIVE = "objective"


class _Trials(JobConfig):
    """What is searched for, and by how many trials."""

    space: str = Field(description="TOML file of the options to search and their bounds")
    objectives: tuple[str, ...] = Field(
        ("validation_loss",), description="metrics of the validation part to make better; of several, the Pareto front"
    )
    trials: int = Field(20, ge=1, description="trials in all, failed ones and those of earlier runs included")
    concurrent: int = Field(1, ge=1, description="trials at once")
    cpus_per_trial: float = Field(1, gt=0, description="CPUs a trial of one process reserves [CPUs]")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPUs a trial of one process reserves, 0.5: two share one; default: 1 with --use-gpu"
    )
    time_limit: float | None = Field(None, gt=0, description="start no trial after so many seconds [s]")


class _Method(JobConfig):
    """How the next trial is chosen, where that is remembered, and when a trial is given up."""

    study: str | None = Field(None, description="name of the Optuna study; default: from what is asked for")
    study_storage: str | None = Field(
        None, description="database of the study, an SQLAlchemy URL; default: sqlite:///OUTPUT.search/study.db"
    )
    sampler: Literal["tpe", "nsga2", "random"] = Field(
        "tpe", description="tpe (one or several objectives), nsga2 (several, hundreds of trials) or random"
    )
    asha: bool = Field(True, description="stop trials that fall behind (ASHA); never with several objectives")
    grace_validations: int = Field(
        1, ge=1, description="validations, or with several inner folds folds, before a trial may be stopped"
    )
    reduction_factor: float = Field(3, gt=1, description="of trials that come so far, one in so many goes on")


class SearchConfig(_Trials, _Method, FinetuneConfig):
    """Search for good options of a fine-tuning, publish the best trial's model, and say which options they were.

    Trials never see the test part. With one split (folds = 1 in the task file) they are judged on the validation part,
    and the best one's model is tested once and published. With several folds all but the test part (test_fraction) is
    cut into so many inner folds: a trial is judged by the mean over them, the best options are trained anew on all of
    them and tested, and the published model is then trained on all cells. With several --num-workers each trial is
    trained by a group.
    """

    monitor: str = Field(
        _FIRST_OBJECTIVE, description="metric that chooses a trial's best step; default: the first objective"
    )

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name one metric or several, each once")
        return value

    @model_validator(mode="after")
    def _sampler_fits(self) -> "SearchConfig":
        if self.sampler == "nsga2" and len(self.objectives) == 1:
            raise ValueError("--sampler nsga2 is for several objectives")
        return self

    @property
    def distributed(self) -> bool:
        """Whether a trial is trained by a group of workers."""
        return self.num_workers[1] > 1

    @property
    def gpus(self) -> float:
        """GPUs of a trial of one process."""
        return float(self.use_gpu) if self.gpus_per_trial is None else self.gpus_per_trial

    @property
    def folder(self) -> str:
        """Where the search keeps what it needs to go on."""
        return f"{storage.absolute(self.output)}.search"

    def base(self) -> FinetuneConfig:
        """Return the options of a fine-tuning, as a trial without any changes has them; without secrets.

        Paths are absolute: trials run in folders of their own.
        """
        own = self.model_dump(include=set(FinetuneConfig.model_fields))
        if self.monitor == _FIRST_OBJECTIVE:
            own["monitor"] = self.objectives[0]
        places = {name: storage.absolute(own[name]) for name in ("corpus", "task", "output")}
        return FinetuneConfig.model_validate(own | {**places, "tracking_uri": OFF, "register_as": None})


_NOT_ASKED = {"corpus", "output", "model", "task", "space", "trials", "concurrent", "cpus_per_trial", "gpus_per_trial"}
_NOT_ASKED |= {"time_limit", "study", "study_storage", *GROUP_FIELDS, *TrackingOptions.model_fields}


def search_asked(
    config: SearchConfig, corpus: Corpus, parent: ModelReference, task: TaskConfig, space: Space
) -> dict[str, Any]:
    """Return what was asked for; how many trials there are, and where they run, does not count."""
    contents = {"corpus": corpus.manifest.digest, "model": parent.digest, "task": task.model_dump()}
    return contents | _asked(config) | {"space": space.to_json()}


def _asked(config: SearchConfig) -> dict[str, Any]:
    """Return the options that decide a search; a default of 3 is the same as a 3.0 that was given."""
    return SearchConfig.model_validate(config.model_dump()).model_dump(exclude=_NOT_ASKED)


def check_objectives(config: SearchConfig, task: Task) -> None:
    """Check that the objectives are measured, on a validation part.

    Raises
    ------
    InputError
        They are not.
    """
    measured = ["validation_loss", *task.metric_names()]
    for name, option in [*((each, "--objectives") for each in config.objectives), (config.base().monitor, "--monitor")]:
        if name not in measured:
            found = f"{name!r}; measured: {listing(measured, limit=60)}"
            raise InputError(option, "what is made better must be measured", found, "Choose one of those.")
    if not len(task.folds.rows(0, VALIDATION)):
        fix = "Set validation_fraction above 0 in the task file."
        raise InputError(config.task, "a search needs a validation part", "none", fix)


def lower_is_better(objective: str) -> bool:
    """Tell from a metric's name which way is better."""
    return objective.endswith(LOWER_IS_BETTER)


def plain(values: Mapping[str, Any]) -> str:
    """Return values for a line of a log: `learning_rate 0.00012, schedule linear`."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
