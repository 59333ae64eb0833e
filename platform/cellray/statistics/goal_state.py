"""Mode `goal_state_shift`: which perturbations move cells towards the goal more than perturbations do on average.

Two passes. The first gathers means and a sample of all shifts (the pool), the second places every shift in the pool:
the sum of a gene's placements is all its rank-sum test needs, so no gene's rows are ever held together.
Memory: the pools, one batch, and per measure 24 bytes for each gene and donor.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.errors import InputError
from cellray.shift_schema import States, shift_column
from cellray.statistics import stream as streams
from cellray.statistics.donors import (
    MeanOver,
    centred,
    donor_groups,
    donor_means,
    donor_notes,
    donor_table,
    p_over_donors,
    require_donors,
)
from cellray.statistics.matched import MatchedPool, rank_bin
from cellray.statistics.moments import GroupMoments
from cellray.statistics.naming import gene_digests
from cellray.statistics.rank_sums import false_discovery_rates, normal_quantile, placements, rank_sum_p
from cellray.statistics.sampling import BottomSample, row_keys
from cellray.statistics.stream import GeneTable, Options, ShiftBatch, ShiftStream

Array = NDArray[np.float64]
ALPHA = 0.05


def goal_state_shift(stream: ShiftStream, states: States | None, options: Options) -> GeneTable:
    """Test each perturbation's shifts to the goal (and to alternatives) against all perturbations' shifts.

    Official columns: `Shift_to_goal_end` is the mean over cells, `Goal_end_vs_random_pval` the rank-sum test against
    the pool (which holds the gene's own cells too), `Goal_end_FDR` Benjamini and Hochberg's, `Sig` FDR < 0.05. Up to
    `pool_size` rows the pool is all rows, as in the official statistics; beyond, the sample is another than theirs.

    Raises
    ------
    InputError
        No goal state, a single perturbation, or too few donors.
    """
    measures = _measures(stream, states)
    require_donors(stream, options)
    first = _FirstPass.over(stream, measures, options)
    count_g = first.moments[0].over_last().count
    if (count_g > 0).sum() < 2:
        fix = "Use --mode aggregate_data, or vs_null with a screen to compare with."
        raise InputError(stream.name, "needs several perturbations: their shifts are the pool", "one", fix)
    kept, dropped = streams.too_few_detections(count_g, options.min_detections)
    streams.require_some(kept, stream, options)
    second = _SecondPass.over(stream, measures, first)
    table = _official(stream, measures, first, second, kept)
    parts = [table, _effect(first, second, kept, options), _matched(first, second, kept)]
    notes: dict[str, object] = {"pool": first.pool_sizes(), "effect": "rank-biserial; intervals over cells"}
    notes["matched"] = f"rank-sum stratified by {options.rank_bins} bins of rank quantiles and one of inserted genes"
    if stream.donors:
        parts.append(_donors(first, second, kept, options))
        notes["donors"] = donor_notes(
            options, "a donor's mean less its mean over all perturbations, against 0", first.moments[0]
        )
    joined = pd.concat(parts, axis=1)
    order = ["Sig", "Shift_to_goal_end", "Goal_end_FDR", "Ensembl_ID"]
    joined = joined.sort_values(order, ascending=[False, False, True, True], ignore_index=True)
    return GeneTable(joined, streams.counted({streams.NOT_A_NUMBER: first.lost}) | dropped, notes)


def _measures(stream: ShiftStream, states: States | None) -> list[str]:
    """Return the columns of shifts: to the goal, then to the alternatives."""
    if states is None or states.goal is None:
        found = "none" if states is None else f"only the start state {states.start!r}"
        fix = "Run the screen with states, or use --mode mixture_model or vs_null."
        raise InputError(stream.name, "goal_state_shift needs a screen with a goal state", found, fix)
    return [shift_column(state) for state in (states.goal, *states.alternatives)]


@dataclass
class _FirstPass:
    """Means of each measure by gene and donor, and the pools."""

    moments: list[GroupMoments]
    pool: BottomSample
    matched: MatchedPool
    lost: int = 0

    @classmethod
    def over(cls, stream: ShiftStream, measures: list[str], options: Options) -> "_FirstPass":
        shape = (len(stream.genes), len(stream.donors) + 1)
        matched = MatchedPool(options.rank_bins, options.pool_size)
        made = cls(
            [GroupMoments.zeros(*shape) for _ in measures], BottomSample(options.pool_size, len(measures)), matched
        )
        digest_g = gene_digests(stream.genes)
        for raw in stream.batches(measures):
            batch, lost = streams.finite(raw)
            made.lost += lost
            group_n = donor_groups(batch.gene, batch.donor, len(stream.donors))
            for moments, measure in zip(made.moments, measures, strict=True):
                moments.add(group_n, batch.value[measure])
            key_n = row_keys(batch.cell, batch.gene, digest_g, options.seed)
            made.pool.add(key_n, np.stack([batch.value[m] for m in measures], axis=1))
            made.matched.add(key_n, batch, batch.value[measures[0]])
        return made

    def pool_sizes(self) -> dict[str, object]:
        """Describe the pools for the manifest."""
        return {"shifts": len(self.pool.sorted_columns()[0]), "by rank": [len(pool) for pool in self.matched.pools]}


@dataclass
class _SecondPass:
    """Places of the shifts in the pools."""

    u: list[Array]
    pool_size: int
    shares: GroupMoments
    matched: GroupMoments
    count_gb: NDArray[np.int64]

    @classmethod
    def over(cls, stream: ShiftStream, measures: list[str], first: _FirstPass) -> "_SecondPass":
        pools = first.pool.sorted_columns()
        genes, shape = len(stream.genes), (len(stream.genes), len(stream.donors) + 1)
        count_gb = np.zeros((genes, first.matched.bins + 1), np.int64)
        u = [np.zeros(genes) for _ in measures]
        made = cls(u, len(pools[0]), GroupMoments.zeros(genes), GroupMoments.zeros(*shape), count_gb)
        for raw in stream.batches(measures):
            batch, _ = streams.finite(raw)
            for i, (pool, measure) in enumerate(zip(pools, measures, strict=True)):
                place_n = placements(batch.value[measure], pool)
                u[i] += np.bincount(batch.gene, place_n, genes)
                if i == 0:
                    made.shares.add(batch.gene, place_n / len(pool))
            made._add_matched(batch, batch.value[measures[0]], first.matched, len(stream.donors))
        return made

    def _add_matched(self, batch: ShiftBatch, value_n: Array, pool: MatchedPool, donors: int) -> None:
        self.matched.add(donor_groups(batch.gene, batch.donor, donors), pool.shares(batch, value_n))
        cells = batch.gene * (pool.bins + 1) + rank_bin(batch.quantile, pool.bins)
        self.count_gb += np.bincount(cells, minlength=self.count_gb.size).reshape(self.count_gb.shape)


def _official(
    stream: ShiftStream, measures: list[str], first: _FirstPass, second: _SecondPass, kept: NDArray[np.bool_]
) -> pd.DataFrame:
    """Return the official columns, in their order."""
    ends = ["goal_end", *(f"alt_end_{m.split(':', 1)[1]}" for m in measures[1:])]
    over_cells = [moments.over_last() for moments in first.moments]
    count_g = over_cells[0].count[kept]
    size = np.full(len(count_g), float(second.pool_size))
    shift = {f"Shift_to_{end}": cells.mean[kept] for end, cells in zip(ends, over_cells, strict=True)}
    p = [rank_sum_p(u[kept], count_g.astype(np.float64), size) for u in second.u]
    alternatives = [end.removeprefix("alt_end_") for end in ends[1:]]
    p_names = ["Goal_end_vs_random_pval", *(f"Alt_end_vs_random_pval_{name}" for name in alternatives)]
    fdr_names = ["Goal_end_FDR", *(f"Alt_end_FDR_{name}" for name in alternatives)]
    table = pd.DataFrame({"Ensembl_ID": np.array(stream.genes, object)[kept], **shift})
    for name, values in zip(p_names, p, strict=True):
        table[name] = values
    for name, values in zip(fdr_names, p, strict=True):
        table[name] = false_discovery_rates(values)
    table["N_Detections"] = count_g
    table["Sig"] = (table["Goal_end_FDR"] < ALPHA).astype(np.int64)
    return table


def _effect(first: _FirstPass, second: _SecondPass, kept: NDArray[np.bool_], options: Options) -> pd.DataFrame:
    """Return the mean shift's interval over cells, and the rank-biserial correlation with the pool, taken as given."""
    cells = first.moments[0].over_last()
    low, high = MeanOver(cells.count, cells.mean, cells.deviations(1)).interval(options.confidence)
    shares = second.shares
    effect = 2 * shares.mean - 1
    error = shares.deviations(1) / np.sqrt(np.maximum(shares.count, 1))
    reach = 2 * normal_quantile(options.confidence) * error
    return pd.DataFrame(
        {
            "Shift_to_goal_end_ci_low": low[kept],
            "Shift_to_goal_end_ci_high": high[kept],
            "Rank_biserial": effect[kept],
            "Rank_biserial_ci_low": np.clip(effect - reach, -1, 1)[kept],
            "Rank_biserial_ci_high": np.clip(effect + reach, -1, 1)[kept],
        }
    )


def _matched(first: _FirstPass, second: _SecondPass, kept: NDArray[np.bool_]) -> pd.DataFrame:
    """Return the comparison with random genes of the same rank range."""
    shares = second.matched.over_last()
    p = first.matched.p_values(shares, second.count_gb)[kept]
    effect = 2 * shares.mean[kept] - 1
    return pd.DataFrame({"Matched_rank_biserial": effect, "Matched_pval": p, "Matched_FDR": false_discovery_rates(p)})


def _donors(first: _FirstPass, second: _SecondPass, kept: NDArray[np.bool_], options: Options) -> pd.DataFrame:
    """Return the tests over donors: against the donor's average perturbation, and against matched genes."""
    mean_gd = donor_means(first.moments[0])
    table = donor_table("shift_to_goal_end", mean_gd[kept], centred(mean_gd)[kept], options)
    p, _ = p_over_donors(donor_means(second.matched)[kept] - 0.5, options)
    return table.assign(Donor_matched_pval=p, Donor_matched_FDR=false_discovery_rates(p))
