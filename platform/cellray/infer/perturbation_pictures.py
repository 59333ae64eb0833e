"""Pictures of finished statistics: which columns of which table are drawn how."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray import plots, storage
from cellray.infer.perturbation_stats import read_table
from cellray.shift_schema import StatisticsManifest
from cellray.statistics.aggregates import value_name
from cellray.statistics.naming import CALLED

Array = NDArray[np.float64]
ALPHA = 0.05
HEATMAP = (30, 40)
"""Most perturbed and most affected genes drawn."""


_INTERVALS = (
    *("Donor_shift_to_goal_end", "Donor_test_vs_null_shift", "Donor_avg_shift"),
    "Shift_to_goal_end",
)
"""Intervals of mean effects: over donors where there are any, else over cells."""

_DETECTIONS = ("N_Detections", "N_Detections_test")
"""Columns of how many cells a perturbation was measured in."""


@dataclass(frozen=True)
class Drawing:
    """What pictures are made from: the table, its manifest, and how a picture is written."""

    table: pd.DataFrame
    manifest: StatisticsManifest
    write: Callable[[str, Callable[[Path], None]], None]

    def column(self, name: str) -> Array:
        """Return a column of numbers."""
        return self.table[name].to_numpy(np.float64, na_value=np.nan)

    def interval(self, name: str) -> Array | None:
        """Return the intervals `NAME_ci_low` and `NAME_ci_high`, if the table has them."""
        ends = [f"{name}_ci_low", f"{name}_ci_high"]
        if not set(ends) <= set(self.table):
            return None
        return np.stack([self.column(end) for end in ends], axis=1)

    def labels(self, symbol: str = "Gene_name", gene: str = "Ensembl_ID") -> list[str]:
        """Return the user's names of perturbations, where there are none symbols, else Ensembl IDs."""
        names = self.table[symbol].fillna(self.table[gene])
        called = gene == "Ensembl_ID" and CALLED in self.table and "Pair" not in self.table
        return [str(name) for name in (self.table[CALLED].fillna(names) if called else names)]


def draw_statistics(output: str, folder: str) -> list[str]:
    """Draw what a finished table has to show; return a line for each picture.

    Raises
    ------
    InputError
        There are no finished statistics.
    """
    manifest, table = StatisticsManifest.load(storage.absolute(output)), read_table(output)
    made: list[str] = []

    def write(name: str, draw: Callable[[Path], None]) -> None:
        with storage.atomic_file(storage.join(storage.absolute(folder), f"{name}.png")) as path:
            draw(path)
        made.append(f"{folder}/{name}.png")

    DRAWERS[_kind(manifest)](Drawing(table, manifest, write))
    return made


def _kind(manifest: StatisticsManifest) -> str:
    return "pairs" if manifest.options.get("pairs") else manifest.mode


def _goal(drawing: Drawing) -> None:
    shift, names = drawing.column("Shift_to_goal_end"), drawing.labels()
    label = "mean shift to the goal state"
    _ranked(drawing, shift, drawing.column("Goal_end_FDR") < ALPHA, "Shifts to the goal state", label)
    for name, column, fdr in (
        ("volcano", "Goal_end_FDR", "FDR against all genes"),
        ("volcano_matched", "Matched_FDR", "FDR against genes of the same ranks"),
        ("volcano_donors", "Donor_FDR", "FDR over donors"),
    ):
        if column in drawing.table and drawing.table[column].notna().any():
            rates = drawing.column(column)
            drawing.write(name, partial(_volcano, shift, rates, names, "Shifts to the goal state", label, fdr))


def _null(drawing: Drawing) -> None:
    shift, rates = drawing.column("Test_vs_null_avg_shift"), drawing.column("Test_vs_null_FDR")
    label, names = f"mean {drawing.manifest.options['measure']}, test - null", drawing.labels()
    tested = ~np.isnan(shift)
    drawing = Drawing(drawing.table[tested], drawing.manifest, drawing.write)
    _ranked(drawing, shift[tested], rates[tested] < ALPHA, "Test against null cells", label)
    drawing.write("volcano", partial(_volcano, shift, rates, names, "Test against null cells", label, "FDR"))


def _volcano(shift: Array, rates: Array, names: list[str], title: str, label: str, fdr: str, path: Path) -> None:
    plots.volcano_png(shift, rates, names, path, title, label=label, fdr_label=fdr)


def _mixture(drawing: Drawing) -> None:
    impact = drawing.table["Impact_component"].to_numpy() == 1
    _ranked(
        drawing,
        drawing.column("Test_avg_shift"),
        impact,
        "Impact of perturbations",
        _measure(drawing),
        ("no impact", "impact"),
    )


def _data(drawing: Drawing) -> None:
    column = next(name for name in map(str, drawing.table) if name.endswith("_mean"))
    none = np.zeros(len(drawing.table), bool)
    _ranked(drawing, drawing.column(column), none, "Effects of perturbations", _measure(drawing), ("no test", ""))


def _measure(drawing: Drawing) -> str:
    measure = drawing.manifest.options["measure"]
    return "mean cosine similarity" if measure == "similarity" else f"mean {measure}"


def _ranked(
    drawing: Drawing,
    shift: Array,
    hit: NDArray[np.bool_],
    title: str,
    label: str,
    verdicts: tuple[str, str] = ("FDR ≥ 0.05", "FDR < 0.05"),
) -> None:
    reference = 1.0 if label == "mean cosine similarity" else 0.0
    of_measure = f"Donor_{value_name(str(drawing.manifest.options['measure']))}_mean"
    name = next((name for name in (*_INTERVALS, of_measure) if drawing.interval(name) is not None), "")
    share, unit = drawing.manifest.options["confidence"], "donors" if name.startswith("Donor") else "cells"
    if unit == "donors":  # points and bars must be of one kind
        known = ~np.isnan(drawing.column(name))
        drawing, hit = Drawing(drawing.table[known], drawing.manifest, drawing.write), hit[known]
        shift, label = drawing.column(name), f"{label}, over donors"
        title += f"; {int((~known).sum()):,} without donors left out" if not known.all() else ""
    intervals = drawing.interval(name)
    bars = "" if intervals is None else f"{share:.0%} intervals over {unit}"
    counts, counted = _counts(drawing, donors=unit == "donors")
    drawing.write(
        "ranked_shifts",
        lambda path: plots.ranked_shifts_png(
            shift, drawing.labels(), hit, path, title, label=label, interval_g2=intervals, reference=reference,
            verdicts=verdicts, interval_label=bars, single=f"one {unit[:-1]}", counts=counts, counted=counted,
        ),
    )  # fmt: skip


def _counts(drawing: Drawing, *, donors: bool) -> tuple[list[str], str]:
    """Return in how many cells, and donors where effects are over donors, each perturbation was measured."""
    cells = next((name for name in _DETECTIONS if name in drawing.table), None)
    columns = {"cells": cells, "donors": "N_Donors" if donors and "N_Donors" in drawing.table else None}
    there = {unit: drawing.table[name] for unit, name in columns.items() if name is not None}
    numbers = zip(*there.values(), strict=True)
    return [", ".join(f"{int(n):,}" for n in row) for row in numbers], ", ".join(there)


def _effects(drawing: Drawing) -> None:
    """Draw the perturbations that move other genes most, and the genes they move most."""
    genes = drawing.table[drawing.table["Affected_Ensembl_ID"].notna()]
    labels = Drawing(genes, drawing.manifest, drawing.write)
    shown = pd.DataFrame(
        {
            "perturbed": labels.labels(),
            "affected": labels.labels("Affected_gene_name", "Affected_Ensembl_ID"),
            "similarity": labels.column("Cosine_sim_mean"),
        }
    )
    rows = shown.groupby("perturbed")["similarity"].mean().nsmallest(HEATMAP[0]).index
    of_rows = shown[shown["perturbed"].isin(rows)]
    columns = of_rows.groupby("affected")["similarity"].min().nsmallest(HEATMAP[1]).index
    matrix = of_rows.pivot_table(index="perturbed", columns="affected", values="similarity").reindex(
        index=rows, columns=columns
    )
    count = shown["perturbed"].nunique(), shown["affected"].nunique()
    title = (
        f"Gene effects: {len(rows)} of {count[0]:,} perturbed, the {len(columns)} most affected of {count[1]:,} genes"
    )
    drawing.write(
        "gene_effects",
        lambda path: plots.gene_effects_png(matrix.to_numpy(np.float64), list(rows), list(columns), path, title),
    )


def _pairs(drawing: Drawing) -> None:
    """Draw each pair once."""
    table = drawing.table.drop_duplicates("Pair")
    once = Drawing(table, drawing.manifest, drawing.write)
    names = [f"{a} + {b}" for a, b in zip(once.labels("Anchor_name", "Anchor_Ensembl_ID"), once.labels(), strict=True)]
    column = "Donor_FDR" if "Donor_FDR" in table and table["Donor_FDR"].notna().any() else "Interaction_FDR"
    drawing.write(
        "pairs",
        lambda path: plots.pairs_png(
            once.column("Sum_of_indiv_shifts"), once.column("Combo_shift"), names, once.column(column) < ALPHA, path,
            "Pairs: combined against summed effects", label=_measure(drawing),
            interval_p2=once.interval("Combo_minus_sum"),
        ),
    )  # fmt: skip


DRAWERS: dict[str, Callable[[Drawing], None]] = {
    "goal_state_shift": _goal,
    "vs_null": _null,
    "mixture_model": _mixture,
    "aggregate_data": _data,
    "aggregate_gene_shifts": _effects,
    "pairs": _pairs,
}
