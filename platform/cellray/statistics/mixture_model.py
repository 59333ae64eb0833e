"""Mode `mixture_model`: which perturbations have an impact at all, by a mixture over their mean effects.

Two passes: means first, then the share of each perturbation's cells that falls to the impact component.
Memory: one batch and some numbers a gene (and donor).
"""

import numpy as np
import pandas as pd

from cellray.statistics import stream as streams
from cellray.statistics.donors import centred, donor_groups, donor_means, donor_notes, donor_table, require_donors
from cellray.statistics.mixture import ImpactMixture
from cellray.statistics.moments import GroupMoments
from cellray.statistics.stream import GeneTable, Options, ShiftStream


def mixture_model(stream: ShiftStream, options: Options) -> GeneTable:
    """Fit the mixture and tell each perturbation's component.

    `Impact_component` is that of the mean, `Impact_component_percent` the share of the cells.

    Raises
    ------
    InputError
        Fewer than two perturbations that differ, or too few donors.
    """
    require_donors(stream, options)
    genes, donors, measure = len(stream.genes), len(stream.donors), options.measure
    moments, lost_rows = GroupMoments.zeros(genes, donors + 1), 0
    for raw in stream.batches([measure]):
        batch, lost = streams.finite(raw)
        lost_rows += lost
        moments.add(donor_groups(batch.gene, batch.donor, donors), batch.value[measure])
    cells = moments.over_last()
    kept, dropped = streams.too_few_detections(cells.count, options.min_detections)
    streams.require_some(kept, stream, options)
    mixture = ImpactMixture.fit(cells.mean[kept], options.no_effect, options.mixture_tolerance, stream.name)
    with_impact = np.zeros(genes)
    for raw in stream.batches([measure]):
        batch, _ = streams.finite(raw)
        with_impact += np.bincount(batch.gene, mixture.has_impact(batch.value[measure]), genes)
    table = pd.DataFrame(
        {
            "Ensembl_ID": np.array(stream.genes, object)[kept],
            "Test_avg_shift": cells.mean[kept],
            "Impact_component": mixture.has_impact(cells.mean[kept]),
            "Impact_component_percent": 100 * with_impact[kept] / cells.count[kept],
            "N_Detections": cells.count[kept],
        }
    )
    notes: dict[str, object] = {"mixture": mixture.notes()}
    if stream.donors:
        mean_gd = donor_means(moments)
        table = pd.concat([table, donor_table("avg_shift", mean_gd[kept], centred(mean_gd)[kept], options)], axis=1)
        notes["donors"] = donor_notes(
            options, "a donor's mean less its mean over all perturbations, against 0", moments
        )
    table["_far"] = (table["Test_avg_shift"] - options.no_effect).abs()
    order = ["Impact_component", "_far", "Ensembl_ID"]
    table = table.sort_values(order, ascending=[False, False, True], ignore_index=True).drop(columns="_far")
    return GeneTable(table, streams.counted({streams.NOT_A_NUMBER: lost_rows}) | dropped, notes)
