"""The columns of the official tables, picked from ours, which have more."""

import re
from pathlib import Path

import pandas as pd

from cellray import schema
from cellray.compat.geneformer.states import CellStates
from cellray.data.corpora.corpus import read_rows
from cellray.infer.shift_tables import ShiftTable
from cellray.safe_pickle import load_plain_dict
from cellray.shift_schema import GENES, shift_column

_GENE = ("Gene", "Gene_name", "Ensembl_ID")
_PAIR = ("Anchor", "Anchor_name", "Anchor_Ensembl_ID")
COLUMNS: dict[str, tuple[str, ...]] = {
    "goal_state_shift": (
        *_GENE,
        "Shift_to_goal_end",
        "Shift_to_alt_end_.*",
        "Goal_end_vs_random_pval",
        "Alt_end_vs_random_pval_.*",
        "Goal_end_FDR",
        "Alt_end_FDR_.*",
        "N_Detections",
        "Sig",
    ),
    "vs_null": (
        *_GENE,
        *("Test_avg_shift", "Null_avg_shift", "Test_vs_null_avg_shift", "Test_vs_null_pval", "Test_vs_null_FDR"),
        *("N_Detections_test", "N_Detections_null", "Sig"),
    ),
    "mixture_model": (
        *_PAIR,
        *_GENE,
        *("Test_avg_shift", "Anchor_shift", "Test_token_shift", "Sum_of_indiv_shifts", "Combo_shift"),
        *("Combo_minus_sum_shift", "Impact_component", "Impact_component_percent", "N_Detections"),
    ),
    "aggregate_data": ("Cosine_(sim|shift)", "Gene"),
    "aggregate_gene_shifts": (
        *("Perturbed", "Gene_name", "Ensembl_ID", "Affected", "Affected_gene_name", "Affected_Ensembl_ID"),
        *("Cosine_sim_mean", "Cosine_sim_stdev", "N_Detections"),
    ),
}
"""Mode to the official columns in their order, as patterns; those a table has not are left out."""


def official(table: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Return the official columns of a table."""
    patterns = [re.compile(pattern) for pattern in COLUMNS[mode]]
    return table[[name for pattern in patterns for name in table if pattern.fullmatch(str(name))]]


def shifts_of_cells(screen: ShiftTable, genes: str, states: CellStates) -> pd.DataFrame:
    """Return the shifts of single cells under one perturbation: what `goal_state_shift` of a list is."""
    columns = {shift_column(states.goal): "Shift_to_goal_end"}
    columns |= {shift_column(name): f"Shift_to_alt_end_{name}" for name in states.alternatives}
    wanted = [schema.CELL_ID, GENES, *columns]
    parts = [read_rows(p.uri_in(screen.uri), 0, p.rows, wanted) for p in screen.manifest.parts if p.rows]
    table = pd.concat([part.to_pandas() for part in parts], ignore_index=True)
    found: pd.DataFrame = table[table[GENES] == genes].drop(columns=GENES).rename(columns=columns)
    return found.reset_index(drop=True)


def symbols_file(given: str | Path, target: str) -> str:
    """Return a table of symbols that our statistics read; a released pickle becomes one at `target`."""
    if not str(given).endswith(".pkl"):
        return str(given)
    pairs = load_plain_dict(Path(given))
    pd.DataFrame({"ensembl_id": list(pairs.values()), "symbol": list(pairs)}).to_csv(target, index=False)
    return target
