"""What the parts of training know of each other: batches, what is learnt, and where a training runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from cellray.train.throughput import StepWork


@dataclass(frozen=True)
class Batch:
    """Token rows of one forward pass of one worker.

    Attributes
    ----------
    input_ids_nl
        Cells x tokens, int64, padded at the end.
    lengths_n
        Tokens of each cell without the padding.
    cells_n
        Number of each cell in the corpus, over all shards in the manifest's order.
    """

    input_ids_nl: Tensor
    lengths_n: NDArray[np.int64]
    cells_n: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Tokens without the padding."""
        return int(self.lengths_n.sum())

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return self.tokens < self.input_ids_nl.numel()


class Objective(Protocol):
    """What is learnt; each worker has its own.

    Attributes
    ----------
    module
        Holds all weights. Called with what `prepare` returned it gives the summed loss and the weight of the sum, two
        scalars, and maybe more; the loop divides by the weight summed over all workers.
    work
        What a step computes.
    vocabulary_head
        Whether the weight of a loss counts positions that a vocabulary head predicted.
    """

    module: nn.Module
    work: StepWork
    vocabulary_head: bool

    def prepare(self, batch: Batch, generator: Generator) -> Any:  # noqa: ANN401  # what the module takes
        """Bring a batch to the device, with what is to be predicted; `generator` is the step's."""
        ...

    def validate(self, module: nn.Module, batches: Iterable[Batch], world_size: int) -> dict[str, float]:
        """Return metrics of this worker's held-out batches and all other workers' together."""
        ...


class Session(Protocol):
    """Where a training runs; it decides what becomes of reports and checkpoints.

    Attributes
    ----------
    rank, world_size
        Which of how many workers this is.
    """

    rank: int
    world_size: int

    def report(
        self, metrics: Mapping[str, float], notes: Sequence[str], earlier: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """Take metrics, with `step`, and what to tell a person; every worker calls it equally often.

        `earlier` are reports from before the checkpoint that training goes on from: some may never have arrived.
        """
        ...

    def leaving(self) -> bool:
        """Tell whether a machine of the group is about to be taken away; every worker calls it equally often."""
        ...
