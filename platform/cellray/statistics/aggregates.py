"""Modes `aggregate_data` and `aggregate_gene_shifts`: mean, standard deviation and count, without a test.

Standard deviations are those of the official tables: divided by n, so 0 for a single cell.
Memory: some numbers for each perturbation (and donor), or for each perturbation and affected gene.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.shift_schema import BEFORE_PREFIX, SHIFT_PREFIX, SIMILARITY
from cellray.statistics import stream as streams
from cellray.statistics.donors import donor_groups, donor_means, donor_notes, donor_table, require_donors
from cellray.statistics.moments import GroupMoments
from cellray.statistics.stream import GeneTable, Options, ShiftStream

CELL = "cell_emb"
"""Stands for the cell itself among the affected genes (official name)."""
Array = NDArray[np.float64]


def aggregate_data(stream: ShiftStream, options: Options) -> GeneTable:
    """Return mean, standard deviation and number of cells of each perturbation, the largest mean effect first.

    Raises
    ------
    InputError
        Too few donors.
    """
    require_donors(stream, options)
    moments, lost = _by_donor(stream, options.measure)
    cells = moments.over_last()
    kept, dropped = streams.too_few_detections(cells.count, options.min_detections)
    streams.require_some(kept, stream, options)
    name = value_name(options.measure)
    table = pd.DataFrame(
        {
            "Ensembl_ID": np.array(stream.genes, object)[kept],
            f"{name}_mean": cells.mean[kept],
            f"{name}_stdev": cells.deviations(0)[kept],
            "N_Detections": cells.count[kept],
        }
    )
    notes: dict[str, object] = {}
    if stream.donors:
        mean_gd = donor_means(moments)[kept]
        over_donors = donor_table(f"{name}_mean", mean_gd, mean_gd - options.no_effect, options)
        tested = f"a donor's mean less {options.no_effect:g} (no effect), against 0"
        if options.measure.startswith(BEFORE_PREFIX):  # there was no edit yet, so there is no effect to test
            over_donors = over_donors[
                ["N_Donors", *(each for each in over_donors if str(each).startswith(f"Donor_{name}"))]
            ]
            tested = "nothing: what a cell was before the edit is no effect"
        table = pd.concat([table, over_donors], axis=1)
        notes["donors"] = donor_notes(options, tested, moments)
    largest = np.argsort(-np.abs(cells.mean[kept] - options.no_effect), kind="stable")
    table = table.iloc[largest].reset_index(drop=True)
    return GeneTable(table, streams.counted({streams.NOT_A_NUMBER: lost}) | dropped, notes)


def value_name(measure: str) -> str:
    """Return what the official tables call a measure; those they do not know keep their names."""
    official = {SIMILARITY: "Cosine_sim", SHIFT_PREFIX: "Cosine_shift"}
    return next((name for start, name in official.items() if measure.startswith(start)), measure)


def _by_donor(stream: ShiftStream, measure: str) -> tuple[GroupMoments, int]:
    moments, lost_rows = GroupMoments.zeros(len(stream.genes), len(stream.donors) + 1), 0
    for raw in stream.batches([measure]):
        batch, lost = streams.finite(raw)
        lost_rows += lost
        moments.add(donor_groups(batch.gene, batch.donor, len(stream.donors)), batch.value[measure])
    return moments, lost_rows


@dataclass(frozen=True)
class EffectBatch:
    """Some gene effects, shape (rows,): indices of perturbation and affected gene, cosine similarity."""

    gene: NDArray[np.int64]
    affected: NDArray[np.int64]
    similarity: Array


class EffectStream(Protocol):
    """Gene effects of a screen."""

    @property
    def genes(self) -> Sequence[str]:
        """Perturbations, sorted."""
        ...

    @property
    def affected(self) -> Sequence[str]:
        """Affected genes, sorted."""
        ...

    def batches(self) -> Iterator[EffectBatch]:
        """Yield all rows."""
        ...


class KeyedMoments:
    """Moments of groups that are too many to number: kept are those that occur.

    Memory: 32 bytes a group that occurs, about three times as much while batches are merged.
    """

    def __init__(self) -> None:
        self._merged = (np.empty(0, np.int64), GroupMoments.zeros(0))
        self._waiting: list[tuple[NDArray[np.int64], GroupMoments]] = []

    def add(self, key_n: NDArray[np.int64], value_n: Array) -> None:
        """Add numbers to their groups."""
        keys, group = np.unique(key_n, return_inverse=True)
        moments = GroupMoments.zeros(len(keys))
        moments.add(group, value_n)
        self._waiting.append((keys, moments))
        if sum(len(keys) for keys, _ in self._waiting) > max(len(self._merged[0]), 1 << 20):
            self.result()

    def result(self) -> tuple[NDArray[np.int64], GroupMoments]:
        """Return the groups that occur, ascending, and their moments."""
        pieces = [self._merged, *self._waiting]
        keys, group = np.unique(np.concatenate([keys for keys, _ in pieces]), return_inverse=True)
        total, start = GroupMoments.zeros(len(keys)), 0
        for piece, moments in pieces:
            place = group[start : start + len(piece)]
            total.merge_at(place, moments)
            start += len(piece)
        self._merged, self._waiting = (keys, total), []
        return self._merged


def aggregate_gene_shifts(stream: ShiftStream, effects: EffectStream, options: Options) -> GeneTable:
    """Return mean, standard deviation and number of cells for each perturbation and affected gene.

    The affected `cell_emb` is the cell itself; it stands first among a perturbation's rows, the genes follow, most
    affected first.
    """
    cells, lost = _by_donor(stream, "similarity")
    of_cells = cells.over_last()
    gathered, width = KeyedMoments(), len(effects.affected)
    for batch in effects.batches():
        good = np.isfinite(batch.similarity)
        lost += int((~good).sum())
        gathered.add(batch.gene[good] * width + batch.affected[good], batch.similarity[good])
    keys, of_genes = gathered.result()
    shown = np.flatnonzero(of_cells.count)
    table = pd.concat(
        [
            _rows(np.array(stream.genes, object)[shown], np.full(len(shown), CELL, object), of_cells.at(shown)),
            _rows(np.array(effects.genes, object)[keys // max(width, 1)], _names(effects.affected, keys), of_genes),
        ],
        ignore_index=True,
    )
    few = table["N_Detections"] < options.min_detections
    dropped = {f"perturbed and affected genes with fewer than {options.min_detections} detections": int(few.sum())}
    table = table[~few].assign(_cell=table["Affected_Ensembl_ID"] != CELL)
    order = ["Ensembl_ID", "_cell", "Cosine_sim_mean", "Affected_Ensembl_ID"]
    table = table.sort_values(order, ignore_index=True).drop(columns="_cell")
    return GeneTable(table, streams.counted({streams.NOT_A_NUMBER: lost} | dropped))


def _names(affected: Sequence[str], keys: NDArray[np.int64]) -> NDArray[np.object_]:
    return np.array(affected, object)[keys % max(len(affected), 1)]


def _rows(genes: NDArray[np.object_], affected: NDArray[np.object_], moments: GroupMoments) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Ensembl_ID": genes,
            "Affected_Ensembl_ID": affected,
            "Cosine_sim_mean": moments.mean,
            "Cosine_sim_stdev": moments.deviations(0),
            "N_Detections": moments.count,
        }
    )
