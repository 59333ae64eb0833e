"""Mode `vs_null`: each perturbation in test cells against the same perturbation in null cells.

One pass gathers means and counts. The rank sums need a gene's rows of both screens at once, so the genes are cut into
ranges whose rows fit into memory (`block_rows`, about 110 bytes a row while they are ranked), each read in one pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.errors import InputError, listing
from cellray.statistics import stream as streams
from cellray.statistics.donors import donor_groups, donor_means, donor_notes, donor_table
from cellray.statistics.moments import GroupMoments
from cellray.statistics.rank_sums import TwoSamples, compare_groups, false_discovery_rates, rank_sum_p
from cellray.statistics.stream import GeneTable, Options, ShiftBatch, ShiftStream

ALPHA = 0.05


def vs_null(test: ShiftStream, null: ShiftStream, options: Options) -> GeneTable:
    """Test each perturbation's values in one screen against its values in another.

    A perturbation that the null screen lacks has p = 1, as in the official statistics. Interval of the rank-biserial
    effect by DeLong's variance. Over donors, those of both screens are paired by name.

    Raises
    ------
    InputError
        No perturbation is in both screens, or too few donors are.
    """
    screens = (_Screen.whole(test, test), _Screen.whole(null, test))
    common = np.isin(null.genes, test.genes)
    if not common.any():
        found = f"{listing(test.genes[:100], 3)} there, {listing(null.genes[:100], 3)} in the test"
        raise InputError(null.name, "the null screen must perturb genes of the test screen", found, "Check --null.")
    _require_common_donors(test, null, options)
    moments = [screen.moments(options.measure) for screen in screens]
    over_cells = [of_screen.over_last() for of_screen in moments]
    kept, dropped = streams.too_few_detections(over_cells[0].count, options.min_detections)
    streams.require_some(kept, test, options)
    compared = _compare(screens, over_cells[0].count + over_cells[1].count, options)
    parts = [_official(test, over_cells, compared, kept), _effect(compared, kept, options)]
    notes: dict[str, object] = {"effect": "rank-biserial; interval by DeLong's variance over cells"}
    if test.donors and null.donors:
        test_gd, null_gd = donor_means(moments[0])[kept], donor_means(moments[1])[kept]
        parts.append(donor_table("test_vs_null_shift", test_gd - null_gd, test_gd - null_gd, options))
        notes["donors"] = donor_notes(options, "a donor's mean in test less its mean in null, against 0", moments[0])
    table = pd.concat(parts, axis=1)
    order = ["Sig", "Test_vs_null_avg_shift", "Test_vs_null_FDR", "Ensembl_ID"]
    table = table.sort_values(order, ascending=[False, False, True, True], ignore_index=True)
    lost = {streams.NOT_A_NUMBER: sum(screen.lost for screen in screens)}
    alone = {"perturbations of the null screen alone": int((~common).sum())}
    return GeneTable(table, streams.counted(lost | alone) | dropped, notes)


@dataclass
class _Screen:
    """A screen with the genes and donors numbered as in the test screen; genes it does not know are left out."""

    stream: ShiftStream
    genes: int
    donors: int
    gene_of: NDArray[np.int64]
    donor_of: NDArray[np.int64]
    lost: int = 0

    @classmethod
    def whole(cls, stream: ShiftStream, test: ShiftStream) -> "_Screen":
        gene_of = _places(stream.genes, test.genes)
        donor_of = np.append(_places(stream.donors, test.donors), streams.NO_DONOR)  # the last one is index -1
        return cls(stream, len(test.genes), len(test.donors), gene_of, donor_of)

    def batches(self, measure: str) -> Iterator[ShiftBatch]:
        for raw in self.stream.batches([measure]):
            batch, lost = streams.finite(raw)
            self.lost += lost
            gene, donor = self.gene_of[batch.gene], self.donor_of[batch.donor]
            numbered = ShiftBatch(gene, batch.cell, donor, batch.quantile, batch.value)
            yield numbered.take(gene >= 0)

    def moments(self, measure: str) -> GroupMoments:
        moments = GroupMoments.zeros(self.genes, self.donors + 1)
        for batch in self.batches(measure):
            moments.add(donor_groups(batch.gene, batch.donor, self.donors), batch.value[measure])
        return moments

    def rows(self, measure: str, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return genes, from `start`, and values of the rows of a range of genes."""
        lost, gene, value = self.lost, [np.empty(0, np.int64)], [np.empty(0)]
        for batch in self.batches(measure):
            inside = (batch.gene >= start) & (batch.gene < stop)
            gene.append(batch.gene[inside] - start)
            value.append(batch.value[measure][inside])
        self.lost = lost  # they were counted in the first pass
        return np.concatenate(gene), np.concatenate(value)


def _places(names: Sequence[str], among: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of each name among others, -1 where it is none of them."""
    place = pd.Index(np.array(among, object)).get_indexer(pd.Index(np.array(names, object)))
    return np.asarray(place, np.int64)


def _compare(screens: tuple[_Screen, _Screen], count_g: NDArray[np.int64], options: Options) -> TwoSamples:
    """Compare the two screens, one range of genes after the other."""
    found = []
    for start, stop in streams.gene_blocks(count_g, options.block_rows):
        (gene_t, value_t), (gene_n, value_n) = (screen.rows(options.measure, start, stop) for screen in screens)
        is_test = np.r_[np.ones(len(gene_t), bool), np.zeros(len(gene_n), bool)]
        found.append(compare_groups(np.r_[gene_t, gene_n], np.r_[value_t, value_n], is_test, stop - start))
    names = ("u", "n_test", "n_null", "variance")
    return TwoSamples(*(np.concatenate([getattr(each, name) for each in found]) for name in names))


def _official(
    test: ShiftStream, over_cells: list[GroupMoments], compared: TwoSamples, kept: NDArray[np.bool_]
) -> pd.DataFrame:
    """Return the official columns, in their order."""
    in_test, in_null = (cells.means()[kept] for cells in over_cells)
    p = rank_sum_p(compared.u, compared.n_test, compared.n_null)[kept]
    p = np.where(np.isnan(p), 1.0, p)
    fdr = false_discovery_rates(p)
    return pd.DataFrame(
        {
            "Ensembl_ID": np.array(test.genes, object)[kept],
            "Test_avg_shift": in_test,
            "Null_avg_shift": in_null,
            "Test_vs_null_avg_shift": in_test - in_null,
            "Test_vs_null_pval": p,
            "Test_vs_null_FDR": fdr,
            "N_Detections_test": over_cells[0].count[kept],
            "N_Detections_null": over_cells[1].count[kept],
            "Sig": (fdr < ALPHA).astype(np.int64),
        }
    )


def _effect(compared: TwoSamples, kept: NDArray[np.bool_], options: Options) -> pd.DataFrame:
    effect, low, high = compared.rank_biserial(options.confidence)
    return pd.DataFrame(
        {"Rank_biserial": effect[kept], "Rank_biserial_ci_low": low[kept], "Rank_biserial_ci_high": high[kept]}
    )


def _require_common_donors(test: ShiftStream, null: ShiftStream, options: Options) -> None:
    """Check that tests over donors have enough of them.

    Raises
    ------
    InputError
        Too few donors are in both screens.
    """
    common = set(test.donors) & set(null.donors)
    if test.donors and len(common) < options.min_donors:
        rule = f"tests over donors need {options.min_donors} donors or more that are in both screens"
        raise InputError(null.name, rule, f"{len(common)}", "Leave out --donor, or screen cells of the same donors.")
