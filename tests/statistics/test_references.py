"""Each number against scipy, statsmodels or a plain loop."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from cellray.statistics.aggregates import aggregate_data
from cellray.statistics.donors import MeanOver, centred, p_over_donors, signed_rank_p
from cellray.statistics.goal_state import goal_state_shift
from cellray.statistics.matched import rank_bin
from cellray.statistics.mixture import ImpactMixture
from cellray.statistics.pairs import pair_interactions
from cellray.statistics.rank_sums import compare_groups, false_discovery_rates
from cellray.statistics.sampling import BottomSample
from cellray.statistics.stream import Options
from cellray.statistics.vs_null import vs_null
from tests.statistics.screens import STATES, MemoryStream, gene, random_screen


def by_gene(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index("Ensembl_ID").sort_index()


def test_goal_state_is_scipys_rank_sum_gene_by_gene() -> None:
    frame = random_screen()
    table = by_gene(goal_state_shift(MemoryStream(frame), STATES, Options()).table)
    for measure, p_name, fdr_name in (
        ("shift:B", "Goal_end_vs_random_pval", "Goal_end_FDR"),
        ("shift:C", "Alt_end_vs_random_pval_C", "Alt_end_FDR_C"),
    ):
        pool = frame[measure].to_numpy(np.float64)
        p = [stats.ranksums(pool, x.to_numpy(np.float64)).pvalue for _, x in frame.groupby("genes")[measure]]
        np.testing.assert_allclose(table[p_name], p, rtol=1e-12)
        np.testing.assert_allclose(table[fdr_name], multipletests(p, method="fdr_bh")[1], rtol=1e-12)
    assert (table["Sig"] == (table["Goal_end_FDR"] < 0.05)).all()
    assert 0 < table["Sig"].sum() < len(table)


def test_effect_sizes_of_the_goal_state() -> None:
    frame = random_screen()
    table = by_gene(goal_state_shift(MemoryStream(frame), STATES, Options()).table)
    pool = frame["shift:B"].to_numpy(np.float64)
    for name, rows in frame.groupby("genes")["shift:B"]:
        x = rows.to_numpy(np.float64)
        share = ((x[:, None] > pool) + (x[:, None] == pool) / 2).mean(axis=1)
        low, high = stats.norm.interval(0.95, 2 * share.mean() - 1, 2 * share.std(ddof=1) / np.sqrt(len(x)))
        found = table.loc[name]
        assert found["Rank_biserial"] == pytest.approx(2 * share.mean() - 1)
        assert (found["Rank_biserial_ci_low"], found["Rank_biserial_ci_high"]) == pytest.approx((low, high))
        interval = stats.t.interval(0.95, len(x) - 1, x.mean(), x.std(ddof=1) / np.sqrt(len(x)))
        assert (found["Shift_to_goal_end_ci_low"], found["Shift_to_goal_end_ci_high"]) == pytest.approx(interval)


def test_one_bin_of_ranks_makes_the_matched_test_the_ordinary_one() -> None:
    table = goal_state_shift(MemoryStream(random_screen()), STATES, Options(rank_bins=1)).table
    np.testing.assert_allclose(table["Matched_pval"], table["Goal_end_vs_random_pval"], rtol=1e-9)
    np.testing.assert_allclose(table["Matched_rank_biserial"], table["Rank_biserial"], atol=1e-12)


def test_matched_controls_are_of_the_same_ranks() -> None:
    """Shifts that depend on the rank alone: a gene of high ranks stands out among all, not among its like."""
    rng = np.random.default_rng(1)
    frame = random_screen(genes=20, cells=200)
    code = frame["perturbation"].to_numpy()
    frame["rank"] = np.where(code == 0, rng.integers(0, 10, len(frame)), rng.integers(0, 100, len(frame)))
    frame["shift:B"] = (1 - frame["rank"] // 10 / 10 + rng.normal(0, 0.01, len(frame))).astype(np.float32)
    table = by_gene(goal_state_shift(MemoryStream(frame), STATES, Options()).table)
    assert table.loc[gene(0), "Goal_end_vs_random_pval"] < 1e-50
    assert table.loc[gene(0), "Matched_pval"] > 0.01
    assert abs(table.loc[gene(0), "Matched_rank_biserial"]) < 0.15
    raised = frame.assign(**{"shift:B": frame["shift:B"] + np.float32(0.02) * (code == 3)})
    table = by_gene(goal_state_shift(MemoryStream(raised), STATES, Options()).table)
    assert table["Matched_pval"].idxmin() == gene(3)
    assert table.loc[gene(3), "Matched_FDR"] < 1e-9
    assert table.loc[gene(3), "Goal_end_FDR"] > 1e-3


def test_stratified_p_values_are_uniform_where_nothing_differs() -> None:
    frame = random_screen(genes=400, cells=60)
    noise = np.random.default_rng(5).normal(frame["rank"], 1).astype(np.float32)
    table = goal_state_shift(MemoryStream(frame.assign(**{"shift:B": noise})), STATES, Options()).table
    assert stats.kstest(table["Matched_pval"], "uniform").pvalue > 0.01


def test_rank_bins() -> None:
    found = rank_bin(np.array([-1.0, 0.0, 0.099, 0.1, 0.95, 1.0]), 10)
    assert found.tolist() == [10, 0, 0, 1, 9, 9]


def test_vs_null_is_scipys_rank_sum_gene_by_gene() -> None:
    test, null = random_screen(seed=1), random_screen(genes=11, seed=2)
    result = vs_null(MemoryStream(test), MemoryStream(null), Options(block_rows=40))
    for name, found in by_gene(result.table).iterrows():
        x, y = (t.loc[t["genes"] == name, "similarity"].to_numpy(np.float64) for t in (test, null))
        assert (found["N_Detections_test"], found["N_Detections_null"]) == (len(x), len(y))
        assert found["Test_avg_shift"] == pytest.approx(x.mean())
        if not len(y):
            assert found["Test_vs_null_pval"] == 1
            assert np.isnan(found["Rank_biserial"])
            continue
        assert found["Test_vs_null_pval"] == pytest.approx(stats.ranksums(x, y).pvalue, rel=1e-12)
        u = stats.mannwhitneyu(x, y).statistic
        assert found["Rank_biserial"] == pytest.approx(2 * u / (len(x) * len(y)) - 1)


def test_delongs_variance_by_hand() -> None:
    x, y = np.array([3.0, 1.0, 4.0, 1.0]), np.array([2.0, 1.0, 0.5])
    wins = (x[:, None] > y) + (x[:, None] == y) / 2
    variance = wins.mean(axis=1).var(ddof=1) / 4 + wins.mean(axis=0).var(ddof=1) / 3
    found = compare_groups(np.zeros(7, np.int64), np.r_[x, y], np.arange(7) < 4, 2)
    assert found.variance[0] == pytest.approx(variance)
    assert found.u[0] == wins.sum()
    assert np.isnan(found.variance[1])


def test_false_discovery_rates_ignore_what_was_not_tested() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.2])
    expected = multipletests(p[~np.isnan(p)], method="fdr_bh")[1]
    np.testing.assert_allclose(false_discovery_rates(p)[[0, 2, 3, 4]], expected)
    assert np.isnan(false_discovery_rates(p)[1])
    assert np.isnan(false_discovery_rates(np.full(2, np.nan))).all()


@pytest.mark.parametrize("ties", [False, True])
def test_signed_ranks_are_scipys(ties: bool) -> None:
    rng = np.random.default_rng(0)
    x_gd = rng.normal(0.3, 1, (40, 60))
    x_gd[rng.random(x_gd.shape) < 0.5] = np.nan
    x_gd[1:4, 30:] = np.nan
    if ties:
        x_gd = np.round(x_gd, 1)
    expected = []
    for row in x_gd:
        x = row[~np.isnan(row)]
        plain = len(set(np.abs(x))) == len(x) and (x != 0).all()
        expected.append(stats.wilcoxon(x, method="exact" if plain and len(x) <= 50 else "asymptotic").pvalue)
    np.testing.assert_allclose(signed_rank_p(x_gd), expected, rtol=1e-10)


def test_t_test_and_effect_over_donors() -> None:
    rng = np.random.default_rng(0)
    x_gd = rng.normal(0.5, 1, (6, 9))
    x_gd[0, 2:] = np.nan  # two donors: too few
    x_gd[1, 4:] = np.nan
    p, name = p_over_donors(x_gd, Options())
    assert name.tolist() == [None, "t", "t", "t", "t", "t"]
    assert np.isnan(p[0])
    over = MeanOver.of(x_gd)
    for i in range(1, 6):
        x = x_gd[i][~np.isnan(x_gd[i])]
        n = len(x)
        assert p[i] == pytest.approx(stats.ttest_1samp(x, 0).pvalue)
        interval = stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x))
        assert (over.interval(0.95)[0][i], over.interval(0.95)[1][i]) == pytest.approx(interval)
        d = x.mean() / x.std(ddof=1)
        j = 1 - 3 / (4 * (n - 1) - 1)
        reach = 1.959964 * j * np.sqrt(1 / n + d**2 / (2 * n))
        found = [values[i] for values in over.standardised(0.95)]
        assert found == pytest.approx([j * d, j * d - reach, j * d + reach], rel=1e-6)
    assert np.isnan(MeanOver.of(np.ones((1, 4))).t_p()[0])  # equal donors have no spread to judge by
    assert p_over_donors(x_gd, Options(donor_test="wilcoxon"))[1].tolist() == [None, *["wilcoxon"] * 5]
    many = rng.normal(0, 1, (2, 20))
    assert p_over_donors(many, Options())[1].tolist() == ["wilcoxon"] * 2


def test_donor_level_of_the_goal_state_by_a_loop() -> None:
    frame = random_screen(donors=6)
    frame.loc[frame["cell_id"] == "cell3", "donor"] = None
    table = by_gene(goal_state_shift(MemoryStream(frame, donor="donor"), STATES, Options()).table)
    means = frame.assign(x=frame["shift:B"].astype(float)).pivot_table(index="genes", columns="donor", values="x")
    difference = means - means.mean(axis=0)
    np.testing.assert_allclose(centred(means.to_numpy()), difference)
    np.testing.assert_allclose(table["Donor_shift_to_goal_end"], means.mean(axis=1), atol=1e-12)
    p = [stats.ttest_1samp(row.dropna(), 0).pvalue for _, row in difference.iterrows()]
    np.testing.assert_allclose(table["Donor_pval"], p, rtol=1e-8)
    np.testing.assert_allclose(table["Donor_FDR"], multipletests(p, method="fdr_bh")[1], rtol=1e-8)
    assert (table["N_Donors"] == means.notna().sum(axis=1)).all()
    assert set(table["Donor_test"]) == {"t"}
    whole = by_gene(goal_state_shift(MemoryStream(frame), STATES, Options()).table)
    official = [c for c in whole if c.startswith(("Goal", "Alt", "Shift", "N_"))]
    pd.testing.assert_frame_equal(table[official], whole[official])  # cells without a donor still count as cells


def test_cells_of_one_donor_do_not_fool_the_donor_test() -> None:
    """One of four donors, with most cells, reacts to a gene: over cells all but certain, over donors not."""
    frame = random_screen(genes=30, cells=400, donors=1)
    cell = frame["cell_id"].str.removeprefix("cell").astype(int)
    frame["donor"] = np.where(cell < 280, "big", "d" + (cell % 3).astype(str))
    hit = (frame["genes"] == gene(7)) & (frame["donor"] == "big")
    noise = np.random.default_rng(0).normal(0, 0.02, len(frame))
    frame["shift:B"] = (noise + 0.02 * hit).astype(np.float32)
    table = by_gene(goal_state_shift(MemoryStream(frame, donor="donor"), STATES, Options()).table)
    assert table.loc[gene(7), "Goal_end_FDR"] < 1e-6
    assert table.loc[gene(7), "Donor_FDR"] > 0.05


def test_the_impact_is_the_component_further_from_no_effect() -> None:
    rng = np.random.default_rng(0)
    for no_effect, impact in ((1.0, 0.7), (0.0, 0.4), (0.0, -0.4)):
        few = rng.permutation(np.r_[rng.normal(no_effect, 0.01, 80), rng.normal(impact, 0.01, 20)])
        mixture = ImpactMixture.fit(few, no_effect, 1e-3, "screen")
        far = 10 * (impact - no_effect) + no_effect
        assert mixture.has_impact(np.array([no_effect, impact, far, 2 * no_effect - impact])).tolist() == [0, 1, 1, 0]
        assert mixture.has_impact(few).sum() == 20
        assert mixture.notes()["mean"]["impact"] == pytest.approx(impact, abs=0.01)


def pairs_screen(order: tuple[int, int] = (1, 2)) -> pd.DataFrame:
    """Return deletions of genes 1, 2, 3 and pairs of them in ten cells; 1 and 2 together do 0.1 more than their sum."""
    rng = np.random.default_rng(3)
    rows = []
    for i in range(10):
        alone = dict(zip((1, 2, 3), 1 - rng.uniform(0.01, 0.1, 3), strict=True))
        rows.extend((i, gene(k), x) for k, x in alone.items())
        for a, b, more in ((*order, 0.1), (1, 3, 0.0)):
            noise = rng.normal(0, 1e-4)
            rows.append((i, f"{gene(a)}|{gene(b)}", alone[a] + alone[b] - 1 - more + noise))
    frame = pd.DataFrame(rows, columns=["cell", "genes", "similarity"])
    frame["cell_id"] = "c" + frame.pop("cell").astype(str)
    donor = "d" + (frame.index // 5 % 4).astype(str)
    return frame.assign(
        perturbation=0, rank=0, cell_genes=10, donor=donor, similarity=frame["similarity"].astype(np.float32)
    )


@pytest.mark.parametrize("block_rows", [10_000, 7])
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_pairs(order: tuple[int, int], block_rows: int) -> None:
    frame = pairs_screen(order)
    gone = (frame["cell_id"] == "c4") & (frame["genes"] == gene(3))
    stream = MemoryStream(frame[~gone].sample(frac=1, random_state=0), cuts=(3, 20), donor="donor")
    found = pair_interactions(stream, None, Options(block_rows=block_rows))
    wide = frame.astype({"similarity": float}).pivot_table(index="cell_id", columns="genes", values="similarity")
    assert len(found.table) == 4  # two pairs, each with either gene as the anchor
    assert found.dropped == {"rows of pairs whose genes were not both perturbed alone in that cell": 1}
    for _, row in found.table.iterrows():
        here = wide.drop(index="c4") if gene(3) in row["Pair"] else wide
        anchor, test = here[row["Anchor_Ensembl_ID"]], here[row["Ensembl_ID"]]
        summed = 1 - ((1 - anchor) + (1 - test))
        assert row["Anchor_shift"] == pytest.approx(anchor.mean())
        assert row["Test_token_shift"] == pytest.approx(test.mean())
        assert row["Sum_of_indiv_shifts"] == pytest.approx(summed.mean())
        assert row["Combo_shift"] == pytest.approx(here[row["Pair"]].mean())
        difference = here[row["Pair"]] - summed
        assert row["Combo_minus_sum_shift"] == pytest.approx(difference.mean())
        assert row["Interaction_pval"] == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, rel=1e-6)
        strong = gene(3) not in row["Pair"]
        assert (row["Impact_component"], row["N_Detections"]) == (int(strong), 10 if strong else 9)
    only = pair_interactions(stream, gene(2), Options()).table
    assert only[["Anchor_Ensembl_ID", "Ensembl_ID"]].to_numpy().tolist() == [[gene(2), gene(1)]]


def test_what_heads_tell_keeps_its_name_and_what_was_before_is_not_tested() -> None:
    changed, before = "change:disease.probability.sick", "before:disease.probability.sick"
    frame = random_screen(donors=4).rename(columns={"shift:B": changed, "shift:C": before})
    stream = MemoryStream(frame, donor="donor")
    table = aggregate_data(stream, Options(measure=changed)).table
    assert [f"{changed}_mean", f"{changed}_stdev"] == [str(name) for name in table][1:3]
    assert {f"Donor_{changed}_mean", "Donor_pval"} <= set(table)
    found = aggregate_data(stream, Options(measure=before))
    own = [f"Donor_{before}_mean{end}" for end in ("", "_ci_low", "_ci_high")]
    assert list(found.table)[4:] == ["N_Donors", *own]
    assert found.notes["donors"]["tested"].startswith("nothing: ")  # type: ignore[index]
    x = frame.assign(x=frame[before].astype(float)).groupby("genes")["x"]
    np.testing.assert_allclose(by_gene(found.table)[f"{before}_mean"], x.mean(), atol=1e-12)


def test_aggregate_data_over_donors() -> None:
    frame = random_screen(donors=4)
    table = by_gene(aggregate_data(MemoryStream(frame, donor="donor"), Options(measure="shift:B")).table)
    x = frame.assign(x=frame["shift:B"].astype(float)).groupby("genes")["x"]
    np.testing.assert_allclose(table["Cosine_shift_mean"], x.mean())
    np.testing.assert_allclose(table["Cosine_shift_stdev"], x.std(ddof=0))
    assert (table["N_Detections"] == x.size()).all()


def test_the_sample_is_one_without_replacement_and_even() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, 5000, dtype=np.uint64)
    sample = BottomSample(100, 1)
    for start in range(0, 5000, 700):
        rows = slice(start, start + 700)
        sample.add(keys[rows], np.arange(5000.0)[rows, None])
    found = sample.sorted_columns()[0]
    assert np.array_equal(found, np.sort(np.argsort(keys)[:100].astype(float)))
    assert stats.kstest(found, "uniform", (0, 5000)).pvalue > 0.01
