"""What the statistics read: the rows of a screen, in batches, as often as needed.

Knows nothing of files; whoever implements `ShiftStream` reads the parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.errors import InputError

NO_DONOR = -1
NOT_A_NUMBER = "rows without a number"


@dataclass(frozen=True)
class ShiftBatch:
    """Some rows of a screen. All arrays have shape (rows,).

    Attributes
    ----------
    gene
        Index of the perturbation in the stream's `genes`.
    cell
        A 64-bit digest of the cell's name.
    donor
        Index in the stream's `donors`, `NO_DONOR` where unknown.
    quantile
        Rank of the gene divided by the number of genes of the cell, 0 to 1; negative where the gene was inserted.
    value
        Each measure that was asked for.
    """

    gene: NDArray[np.int64]
    cell: NDArray[np.uint64]
    donor: NDArray[np.int64]
    quantile: NDArray[np.float64]
    value: Mapping[str, NDArray[np.float64]]

    def take(self, chosen_n: NDArray[Any]) -> "ShiftBatch":
        """Return some of the rows."""
        value = {name: x[chosen_n] for name, x in self.value.items()}
        return ShiftBatch(
            self.gene[chosen_n], self.cell[chosen_n], self.donor[chosen_n], self.quantile[chosen_n], value
        )


class ShiftStream(Protocol):
    """A screen."""

    @property
    def name(self) -> str:
        """What error messages call it."""
        ...

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def genes(self) -> Sequence[str]:
        """Perturbations, sorted: Ensembl IDs, joined by `|` where perturbed together."""
        ...

    @property
    def donors(self) -> Sequence[str]:
        """Donors, sorted; none if no donor column was named."""
        ...

    def batches(self, measures: Sequence[str]) -> Iterator[ShiftBatch]:
        """Yield all rows with some measures."""
        ...


DonorTest = Literal["auto", "t", "wilcoxon"]


@dataclass(frozen=True)
class Options:
    """What the statistics may be told.

    Attributes
    ----------
    measure
        Column that `vs_null`, `mixture_model` and `aggregate_data` look at.
    pool_size
        Most shifts in the pool that each gene is compared with.
    rank_bins
        Bins of rank quantiles within which the matched test compares.
    min_detections
        Genes with fewer cells are left out of the table (not of the pool).
    min_donors
        A gene with fewer donors gets no donor-level test.
    donor_test
        `auto`: signed-rank from 20 donors on, below that Student's t.
    confidence
        Level of the intervals.
    block_rows
        Most rows held at once, where a mode must hold rows.
    mixture_tolerance
        Where the fit of the mixture stops; scikit-learn's default is the official one.
    seed
        Of the pool's sample.
    """

    measure: str = "similarity"
    pool_size: int = 100_000
    rank_bins: int = 10
    min_detections: int = 1
    min_donors: int = 3
    donor_test: DonorTest = "auto"
    confidence: float = 0.95
    block_rows: int = 10_000_000
    mixture_tolerance: float = 1e-3
    seed: int = 42

    @property
    def no_effect(self) -> float:
        """Value of the measure where a perturbation does nothing."""
        return 1.0 if self.measure == "similarity" else 0.0


@dataclass(frozen=True)
class GeneTable:
    """Result of a mode.

    Attributes
    ----------
    table
        One row a gene (pair, affected gene); `Ensembl_ID` holds the perturbation.
    dropped
        What is not in the table: reason to number.
    notes
        What was fitted and which tests were done.
    """

    table: pd.DataFrame
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def counted(found: Mapping[str, int]) -> dict[str, int]:
    """Return what was dropped, without what was not."""
    return {reason: int(n) for reason, n in found.items() if n}


def finite(batch: ShiftBatch) -> tuple[ShiftBatch, int]:
    """Return the rows whose measures are all numbers, and how many are not (a zero vector has no direction)."""
    bad = np.zeros(len(batch.gene), bool)
    for values in batch.value.values():
        bad |= ~np.isfinite(values)
    lost = int(bad.sum())
    return (batch.take(~bad) if lost else batch), lost


def too_few_detections(count_g: NDArray[np.int64], least: int) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Return which genes stay, and what leaves: genes and their cells."""
    kept = count_g >= max(least, 1)
    gone = ~kept & (count_g > 0)
    reason = f"with fewer than {least} detections"
    found = {f"genes {reason}": int(gone.sum()), f"rows of genes {reason}": int(count_g[gone].sum())}
    return kept, counted(found)


def require_some(kept_g: NDArray[np.bool_], stream: ShiftStream, options: Options) -> None:
    """Check that a gene is left.

    Raises
    ------
    InputError
        None has enough detections.
    """
    if not kept_g.any():
        rule = f"some perturbation must have {options.min_detections:,} cells or more"
        raise InputError(stream.name, rule, "none", "Lower --min-detections, or screen more cells.")


def gene_blocks(count_g: NDArray[np.int64], most_rows: int) -> list[tuple[int, int]]:
    """Cut the genes into ranges whose rows fit into memory together; a gene with more rows is a range of its own."""
    blocks, start, held = [], 0, 0
    for gene, rows in enumerate(count_g.tolist()):
        if held and held + rows > most_rows:
            blocks.append((start, gene))
            start, held = gene, 0
        held += rows
    return [*blocks, (start, len(count_g))]
