"""Pairs: whether perturbing two genes together does more, or less, than the two on their own.

In each cell the combined effect is set beside the sum of the individual ones, so a cell counts only where the screen
has all three. Rows are joined by cell: the cells are cut into as many groups as memory needs (`block_rows` rows each,
about 270 bytes a row while joining), each read in one pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.errors import InputError
from cellray.shift_schema import GROUP_MARK
from cellray.statistics import stream as streams
from cellray.statistics.donors import (
    MeanOver,
    donor_groups,
    donor_means,
    donor_notes,
    donor_table,
    require_donors,
)
from cellray.statistics.mixture import ImpactMixture
from cellray.statistics.moments import GroupMoments
from cellray.statistics.rank_sums import false_discovery_rates
from cellray.statistics.sampling import mix64
from cellray.statistics.stream import GeneTable, Options, ShiftStream

Array = NDArray[np.float64]


def pair_interactions(stream: ShiftStream, anchor: str | None, options: Options) -> GeneTable:
    """Compare each pair's combined effect with the sum of its genes' individual effects.

    Official columns: `Anchor_shift`, `Test_token_shift`, `Sum_of_indiv_shifts`, `Combo_shift`, `Combo_minus_sum_shift`
    (means over cells; of similarities a and b the sum is 1 - ((1 - a) + (1 - b))), and the impact component of the
    combined effects. `Pair` is the perturbation as it was done. `Interaction_pval` is Student's test over cells of
    `Combo_minus_sum_shift` against 0.

    Parameters
    ----------
    anchor
        Ensembl ID: only pairs with this gene, which is named as their anchor wherever it stands in them. Without, each
        pair has two rows, one with either gene as its anchor.

    Raises
    ------
    InputError
        No pairs, none whose genes were perturbed alone too, none with the anchor, or too few donors.
    """
    require_donors(stream, options)
    pairs = _Pairs.of(stream, anchor)
    sums = _Sums.over(stream, pairs, options)
    kept, dropped = streams.too_few_detections(sums.combined.count, options.min_detections)
    if not sums.combined.count.any():
        fix = "Screen pairs and single genes in the same cells."
        raise InputError(stream.name, "a pair and both its genes must be perturbed in the same cells", "none", fix)
    streams.require_some(kept, stream, options)
    table = _table(stream, pairs, sums, kept, options)
    impact = _impact(stream, pairs, sums.combined.at(np.flatnonzero(kept)), kept, options)
    table = table.assign(**impact[0], N_Detections=sums.combined.count[kept])
    notes: dict[str, object] = {"mixture": impact[1], "interaction": "Student's t over cells"}
    if stream.donors:
        mean_gd = donor_means(sums.difference)[kept]
        table = pd.concat([table, donor_table("combo_minus_sum_shift", mean_gd, mean_gd, options)], axis=1)
        notes["donors"] = donor_notes(
            options, "a donor's mean of the combined less the summed effect, against 0", sums.difference
        )
    return GeneTable(_ordered(table, anchor, options), streams.counted(pairs.left_out | sums.lost) | dropped, notes)


def _impact(
    stream: ShiftStream, pairs: "_Pairs", combined: GroupMoments, kept: NDArray[np.bool_], options: Options
) -> tuple[dict[str, Any], object]:
    """Return the columns of the mixture over the combined effects, and its description; a lone pair has no mixture."""
    if len(np.unique(combined.mean)) < 2:
        nothing = pd.array([None] * len(combined.mean), dtype="Int64")
        empty = np.full(len(combined.mean), np.nan)
        described = "not fitted: a mixture of two needs pairs that differ in effect"
        return {"Impact_component": nothing, "Impact_component_percent": empty}, described
    mixture = ImpactMixture.fit(combined.mean, options.no_effect, options.mixture_tolerance, stream.name)
    hits = np.zeros(len(stream.genes))
    for row in _joined(stream, pairs, options):
        hits += np.bincount(row.pair, mixture.has_impact(row.combined), len(hits))
    columns = {
        "Impact_component": pd.array(mixture.has_impact(combined.mean), dtype="Int64"),
        "Impact_component_percent": 100 * hits[kept] / combined.count,
    }
    return columns, mixture.notes()


@dataclass(frozen=True)
class _Pairs:
    """Which perturbations are pairs, of which singles. Shape (genes,), -1 = no pair."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    is_pair: NDArray[np.bool_]
    is_single: NDArray[np.bool_]
    left_out: dict[str, int]

    @classmethod
    def of(cls, stream: ShiftStream, anchor: str | None) -> "_Pairs":
        members = [text.split(GROUP_MARK) for text in stream.genes]
        single = {m[0]: i for i, m in enumerate(members) if len(m) == 1}
        size = np.array([len(m) for m in members])
        two = size == 2
        if not two.any():
            raise InputError(
                stream.name, "needs perturbations of two genes", "none", "Screen pairs, or leave out --pairs."
            )
        if anchor is not None:
            two &= np.array([anchor in m for m in members])
            if not two.any():
                raise InputError(
                    stream.name, "some pair must have the anchor", f"no pair with {anchor}", "Correct --anchor."
                )
        ends = [m if len(m) == 2 else ("", "") for m in members]
        first, second = (np.array([single.get(end[i], -1) for end in ends]) for i in (0, 1))
        whole = two & (first >= 0) & (second >= 0)
        if not whole.any():
            fix = "Screen the genes on their own in the same job."
            raise InputError(stream.name, "the genes of a pair must be perturbed alone too", "no such pair", fix)
        left_out = {
            "pairs whose genes were not perturbed alone": int((two & ~whole).sum()),
            "perturbations of more than two genes": int((size > 2).sum()),
        }
        is_single = np.zeros(len(size), bool)
        is_single[np.r_[first[whole], second[whole]]] = True
        return cls(first, second, whole, is_single, left_out)


@dataclass(frozen=True)
class _Joined:
    """Rows of pairs with the effects of their genes alone in the same cell. Shape (rows,)."""

    pair: NDArray[np.int64]
    donor: NDArray[np.int64]
    first: Array
    second: Array
    combined: Array
    alone: int
    lost: int

    def summed(self, no_effect: float) -> Array:
        """Return the sum of the individual effects, on the scale of the measure."""
        return self.first + self.second - no_effect


def _joined(stream: ShiftStream, pairs: _Pairs, options: Options) -> Iterator[_Joined]:
    """Yield the joined rows, one group of cells after the other."""
    groups = max(1, ceil(stream.rows / options.block_rows))
    for group in range(groups):
        frames, lost = [], 0
        for raw in stream.batches([options.measure]):
            batch = raw.take(mix64(raw.cell) % np.uint64(groups) == group) if groups > 1 else raw
            batch, bad = streams.finite(batch)
            lost += bad
            batch = batch.take(pairs.is_pair[batch.gene] | pairs.is_single[batch.gene])
            columns = {"cell": batch.cell, "gene": batch.gene, "donor": batch.donor, "x": batch.value[options.measure]}
            frames.append(pd.DataFrame(columns))
        rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        if len(rows):
            yield _join(rows, pairs, stream.name, lost)


def _join(rows: pd.DataFrame, pairs: _Pairs, subject: str, lost: int) -> _Joined:
    """Put the rows of single genes beside those of the pairs."""
    single = rows.loc[pairs.is_single[rows["gene"]], ["cell", "gene", "x"]]
    if single.duplicated(["cell", "gene"]).any():
        fix = "Give the cells of the corpus' sources names of their own."
        raise InputError(subject, "cells are joined by their names, which must differ", "a name twice", fix)
    pair = rows[pairs.is_pair[rows["gene"]]]
    pair = pair.assign(first=pairs.first[pair["gene"]], second=pairs.second[pair["gene"]])
    found = pair
    for end in ("first", "second"):
        alone = single.rename(columns={"gene": end, "x": f"{end}_x"})
        found = found.merge(alone, on=["cell", end], how="inner", validate="many_to_one")
    first, second, combined = (found[name].to_numpy(np.float64) for name in ("first_x", "second_x", "x"))
    gene, donor = found["gene"].to_numpy(np.int64), found["donor"].to_numpy(np.int64)
    return _Joined(gene, donor, first, second, combined, len(pair) - len(found), lost)


@dataclass
class _Sums:
    """Moments by pair; of the difference by pair and donor."""

    first: GroupMoments
    second: GroupMoments
    summed: GroupMoments
    combined: GroupMoments
    difference: GroupMoments
    lost: dict[str, int] = field(default_factory=dict)

    @classmethod
    def over(cls, stream: ShiftStream, pairs: _Pairs, options: Options) -> "_Sums":
        genes, donors = len(stream.genes), len(stream.donors)
        first, second, both, combined = (GroupMoments.zeros(genes) for _ in range(4))
        made = cls(first, second, both, combined, GroupMoments.zeros(genes, donors + 1))
        alone = lost = 0
        for row in _joined(stream, pairs, options):
            summed = row.summed(options.no_effect)
            for moments, values in zip(
                (made.first, made.second, made.summed, made.combined),
                (row.first, row.second, summed, row.combined),
                strict=True,
            ):
                moments.add(row.pair, values)
            made.difference.add(donor_groups(row.pair, row.donor, donors), row.combined - summed)
            alone, lost = alone + row.alone, lost + row.lost
        made.lost = {"rows of pairs whose genes were not both perturbed alone in that cell": alone}
        made.lost[streams.NOT_A_NUMBER] = lost
        return made


def _table(stream: ShiftStream, pairs: _Pairs, sums: _Sums, kept: NDArray[np.bool_], options: Options) -> pd.DataFrame:
    """Return one row a pair, its first gene as the anchor."""
    names = np.array(stream.genes, object)
    difference = sums.difference.over_last()
    over = MeanOver(difference.count[kept], difference.mean[kept], difference.deviations(1)[kept])
    low, high = over.interval(options.confidence)
    p = np.where(over.count > 1, over.t_p(), np.nan)
    return pd.DataFrame(
        {
            "Pair": names[kept],
            "Anchor_Ensembl_ID": names[pairs.first[kept]],
            "Ensembl_ID": names[pairs.second[kept]],
            "Anchor_shift": sums.first.mean[kept],
            "Test_token_shift": sums.second.mean[kept],
            "Sum_of_indiv_shifts": sums.summed.mean[kept],
            "Combo_shift": sums.combined.mean[kept],
            "Combo_minus_sum_shift": over.mean,
            "Combo_minus_sum_ci_low": low,
            "Combo_minus_sum_ci_high": high,
            "Interaction_pval": p,
            "Interaction_FDR": false_discovery_rates(p),
        }
    )


def _ordered(table: pd.DataFrame, anchor: str | None, options: Options) -> pd.DataFrame:
    """Name the anchor, or give each pair both ways; strongest combined effect first."""
    swapped = table.rename(
        columns={
            "Anchor_Ensembl_ID": "Ensembl_ID",
            "Ensembl_ID": "Anchor_Ensembl_ID",
            "Anchor_shift": "Test_token_shift",
            "Test_token_shift": "Anchor_shift",
        }
    )[table.columns]
    both = pd.concat([table, swapped], ignore_index=True)
    if anchor is not None:
        both = both[both["Anchor_Ensembl_ID"] == anchor]
    both["_far"] = (both["Combo_shift"] - options.no_effect).abs()
    order = ["Impact_component", "_far", "Pair", "Anchor_Ensembl_ID"]
    ordered = both.sort_values(order, ascending=[False, False, True, True], ignore_index=True)
    return ordered.drop(columns="_far")
