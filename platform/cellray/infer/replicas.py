"""What stages that run a model over a corpus share: options of the replicas, and what each replica opens.

Knows the corpus, the model's directory and the device; what is computed it does not know.
"""

from dataclasses import dataclass

import torch
from pydantic import Field, field_validator, model_validator

from cellray.config import JobConfig, both_bounds, check_bounds
from cellray.data.corpora.corpus import Corpus
from cellray.data.session import default_threads
from cellray.data.units import ActorPool
from cellray.model.checkpoint import ModelDirectory
from cellray.model.device import compute_device
from cellray.models import ModelReference, open_model

TOKEN_BUDGET = {"cpu": 2048, "gpu": 65536}
"""Default budgets: a CPU is fastest while a batch's activations stay in its caches, a GPU when it is full."""


class ReplicaConfig(JobConfig):
    """Options of a job that runs a model over a corpus."""

    corpus: str = Field(description="token corpus, from jobs.tokenize_corpus")
    model: str = Field(
        description="model directory, ours or an official Geneformer one, or models:/NAME@ALIAS of the registry"
    )
    output: str = Field(description="directory or s3:// URI of the result (parquet)")
    token_budget: int | None = Field(
        None,
        ge=1,
        description="tokens computed at once with padding, default: 2,048 on CPU, 65,536 on GPU [tokens]",
    )
    cells_per_part: int = Field(2048, ge=1, description="most cells of a parquet part [cells]")
    actors: tuple[int, int] = Field(
        (1, 1), description="least and most model replicas, as 1,8; 0: the work is done in this process, without Ray"
    )
    cpus_per_actor: float = Field(1, gt=0, description="CPUs each replica reserves [CPUs]")
    threads: int | None = Field(
        None,
        ge=1,
        description="torch threads of a replica on CPU, default: all cores for one replica, else cpus-per-actor",
    )
    gpus_per_actor: float = Field(
        0, ge=0, description="GPUs each replica reserves; above 0 the model runs on CUDA [GPUs]"
    )
    tracking_uri: str | None = Field(
        None,
        description="MLflow that knows models:/ names; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db",
    )

    _one_number = field_validator("actors", mode="before")(both_bounds)

    @model_validator(mode="after")
    def _least_and_most(self) -> "ReplicaConfig":
        if self.actors != (0, 0):
            check_bounds("--actors", self.actors)
        return self

    @property
    def budget(self) -> int:
        """Tokens computed at once."""
        return self.token_budget or TOKEN_BUDGET["gpu" if self.gpus_per_actor else "cpu"]

    @property
    def pool(self) -> ActorPool:
        """What the replicas take of the cluster."""
        return ActorPool(*self.actors, num_cpus=self.cpus_per_actor, num_gpus=self.gpus_per_actor)

    @property
    def _threads_of_a_process_of_its_own(self) -> int | None:
        return default_threads(self.actors[1], self.cpus_per_actor) if self.actors[1] else None

    def replica(self, corpus: Corpus, model: ModelReference) -> "Replica":
        """Return what each replica is told."""
        return Replica(
            corpus=corpus.uri,
            model=model,
            token_budget=self.budget,
            threads=self.threads or self._threads_of_a_process_of_its_own,
            gpu=self.gpus_per_actor > 0,
        )


@dataclass(frozen=True)
class Replica:
    """What every replica needs; small, since it travels to each of them.

    `threads` None leaves torch's own setting alone, as in a process that is not ours.
    """

    corpus: str
    model: ModelReference
    token_budget: int
    threads: int | None
    gpu: bool

    def open(self) -> tuple[Corpus, ModelDirectory, torch.device]:
        """Open corpus and model on the machine of the replica.

        Raises
        ------
        InputError
            The model has other weights than when the job began, or there is no GPU.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = compute_device(gpu=self.gpu, option="--gpus-per-actor")
        return Corpus.open(self.corpus), self.model.open(), device


def open_pair(config: ReplicaConfig) -> tuple[Corpus, ModelDirectory, ModelReference]:
    """Open the corpus and the model of a job; return the name of the model for good, too.

    Raises
    ------
    InputError
        One of them is unfinished, or they do not fit together.
    """
    corpus, (model, reference) = Corpus.open(config.corpus), open_model(config.model, config.tracking_uri)
    model.require_vocabulary(corpus.vocabulary, f"corpus {corpus.uri}", corpus.manifest.encoding.input_size)
    return corpus, model, reference
