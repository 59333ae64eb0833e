"""The official statistics' own numbers, and where ours differ because theirs are wrong."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.mixture import GaussianMixture

from cellray.statistics.aggregates import aggregate_data, aggregate_gene_shifts
from cellray.statistics.goal_state import goal_state_shift
from cellray.statistics.mixture_model import mixture_model
from cellray.statistics.stream import Options
from cellray.statistics.vs_null import vs_null
from tests.statistics.screens import STATES, MemoryEffects, MemoryStream

RPL18 = "ENSG00000063177"


@cache
def values(shared: Path) -> pd.DataFrame:
    table = pd.read_parquet(shared / "golden" / "perturbation.parquet")
    table = table.astype({name: object for name in table.columns if name != "value"})
    return table[table["model"] == "v1"]


def screen(shared: Path, kind: str, genes: str = "all", mode: str = "cell") -> MemoryStream:
    """Return the values of one kind of perturbation as the rows of a screen."""
    table = values(shared)
    table = table[(table["perturb_type"] == kind) & (table["genes"] == genes) & (table["emb_mode"] == mode)]
    table = table[table["affected"] == "cell_emb"]
    table["state"] = table["state"].map({"": "similarity", "A": "shift:A", "B": "shift:B", "C": "shift:C"})
    wide = table.pivot_table(index=["cell_id", "perturbed"], columns="state", values="value", sort=False).reset_index()
    wide = wide.rename(columns={"perturbed": "genes"}).sample(frac=1, random_state=0, ignore_index=True)
    rank = wide.groupby("cell_id").cumcount()
    return MemoryStream(wide.assign(rank=rank, cell_genes=rank.max() + 1), cuts=(1, 700, 700, 2000))


def golden(shared: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(shared / "golden" / "stats" / f"{name}.csv", index_col=0)


def assert_equal(ours: pd.DataFrame, theirs: pd.DataFrame, without: tuple[str, ...] = ()) -> None:
    """Compare all official columns, rows by gene."""
    columns = [c for c in theirs.columns if c not in {"Gene", "Gene_name", *without}]
    ours, theirs = (t[columns].set_index("Ensembl_ID").sort_index() for t in (ours, theirs))
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, rtol=0, atol=1e-9, check_index_type=False)


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_goal_state_shift(shared: Path, kind: str) -> None:
    ours = goal_state_shift(screen(shared, kind), STATES, Options()).table
    theirs = golden(shared, f"goal_state_shift_{kind}")
    assert_equal(ours, theirs)
    assert list(ours.columns)[: len(theirs.columns) - 2] == [c for c in theirs if c not in ("Gene", "Gene_name")]
    np.testing.assert_allclose(ours["Shift_to_goal_end"], theirs["Shift_to_goal_end"], rtol=0, atol=1e-9)  # the order


@pytest.mark.parametrize("block_rows", [20_000_000, 300])
def test_vs_null(shared: Path, block_rows: int) -> None:
    options = Options(block_rows=block_rows)
    ours = vs_null(screen(shared, "delete"), screen(shared, "overexpress"), options).table
    theirs = golden(shared, "vs_null")
    assert_equal(ours, theirs)
    assert list(ours["Ensembl_ID"])[:200] == list(theirs["Ensembl_ID"])[:200]


def test_the_mixture_has_its_components_in_order(shared: Path) -> None:
    """The official table calls the first component the impact; here the fit puts the other one first."""
    ours = mixture_model(screen(shared, "delete"), Options())
    theirs = golden(shared, "mixture_model")
    assert_equal(ours.table, theirs, without=("Impact_component", "Impact_component_percent"))
    by_gene = theirs.sort_values("Ensembl_ID")  # the order in which the official code fits
    fitted = GaussianMixture(2, random_state=0).fit(by_gene[["Test_avg_shift"]].to_numpy())
    first, second = fitted.means_[:, 0]
    assert first > second  # nearer to 1 = no effect: the official "impact component" is the one without impact
    # their rule, with the components the wrong way round, leaves a bare threshold at the lower mean
    assert (by_gene["Impact_component"] == (by_gene["Test_avg_shift"] < second)).all()
    mean = by_gene["Test_avg_shift"].to_numpy()
    right = np.where(mean > first, 0, np.where(mean < second, 1, fitted.predict(mean[:, None]) == 1))
    merged = ours.table.set_index("Ensembl_ID").loc[by_gene["Ensembl_ID"]]
    assert (merged["Impact_component"].to_numpy() == right).all()
    assert (merged["Impact_component"].to_numpy() != by_gene["Impact_component"].to_numpy()).sum() == 421
    assert ours.notes["mixture"]["mean"]["impact"] == pytest.approx(second, abs=1e-9)
    cells = screen(shared, "delete").frame
    x = cells["similarity"].to_numpy(np.float64)
    hit = np.where(x > first, 0, np.where(x < second, 1, fitted.predict(x[:, None]) == 1))
    percent = 100 * pd.Series(hit).groupby(cells["genes"]).mean()
    np.testing.assert_allclose(merged["Impact_component_percent"], percent.loc[merged.index], atol=1e-9)


def test_aggregates(shared: Path) -> None:
    whole = screen(shared, "delete", RPL18)
    summed = aggregate_data(whole, Options()).table
    cells = golden(shared, "aggregate_data")["Cosine_sim"]
    assert summed["N_Detections"].tolist() == [5]
    assert summed["Cosine_sim_mean"][0] == pytest.approx(cells.mean(), abs=1e-7)
    assert summed["Cosine_sim_stdev"][0] == pytest.approx(cells.std(ddof=0), abs=1e-7)


def test_aggregate_gene_shifts(shared: Path) -> None:
    table = values(shared)
    table = table[
        (table["genes"] == RPL18) & (table["emb_mode"] == "cell_and_gene") & (table["affected"] != "cell_emb")
    ]
    effects = table.rename(columns={"value": "similarity"}).assign(genes=table["perturbed"])
    cells = screen(shared, "delete", RPL18, "cell_and_gene")
    ours = aggregate_gene_shifts(cells, MemoryEffects(effects), Options()).table
    theirs = golden(shared, "aggregate_gene_shifts")
    theirs["Affected_Ensembl_ID"] = theirs["Affected_Ensembl_ID"].fillna("cell_emb")
    assert (ours["Affected_Ensembl_ID"][0], theirs["Affected_Ensembl_ID"].iloc[0]) == ("cell_emb", "cell_emb")
    np.testing.assert_allclose(ours["Cosine_sim_mean"], theirs["Cosine_sim_mean"], rtol=0, atol=1e-9)  # the order
    ours, theirs = (t.set_index("Affected_Ensembl_ID").sort_index() for t in (ours, theirs))
    for name in ("Cosine_sim_mean", "Cosine_sim_stdev", "N_Detections"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-9)
