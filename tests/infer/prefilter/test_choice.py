"""Which genes are chosen, by hand; the sample: known probabilities, the same however a cell is cut."""

import numpy as np
import pytest

from cellray.infer.prefilter.choice import Means, PrefilteredDesign, choose_genes
from cellray.infer.prefilter.report import Evaluated, gene_table


def test_the_most_promising_genes_that_the_evaluations_suffice_for() -> None:
    means = Means.zeros(6)
    means.add(np.array([2, 2, 3, 5, 5, 4]), np.array([1.0, 3.0, 5.0, -2.0, 0.0, 4.0]))
    assert choose_genes(means, 4, highest=True).tolist() == [3, 4, 2]
    assert choose_genes(means, 3, highest=True).tolist() == [3, 4]
    assert choose_genes(means, 2, highest=False).tolist() == [5]
    assert choose_genes(means, 4, highest=True, least=2).tolist() == [2, 5]


def test_sums_do_not_depend_on_how_rows_are_cut() -> None:
    rng = np.random.default_rng(0)
    token, value = rng.integers(0, 9, 1000), rng.normal(size=1000).astype(np.float32)
    whole, cut = Means.zeros(9), Means.zeros(9)
    whole.add(token, value)
    for start in range(0, 1000, 7):
        cut.add(token[start : start + 7], value[start : start + 7])
    assert (whole.sum_v == cut.sum_v).all()


@pytest.mark.parametrize(("kind", "first"), [("delete", 0), ("overexpress", 1)])
def test_a_cell_is_sampled_with_the_stated_probability(kind: str, first: int) -> None:
    chosen, rng = np.array([3, 8]), np.random.default_rng(0)
    seen, drawn = np.zeros(40), np.zeros(40)
    for seed in range(2000):
        design = PrefilteredDesign.of(chosen, 40, 5, seed, kind)
        cell = rng.permutation(np.arange(2, 40))[:30].astype(np.uint16)
        taken, probability = design.inclusion(cell)
        others = 30 - first - np.isin(cell[first:], chosen).sum()
        expected = np.where(np.isin(cell, chosen), 1.0, 5 / others)
        expected[:first] = 0
        assert probability == pytest.approx(expected)
        assert taken[probability == 1].all()
        assert not taken[:first].any()
        seen[cell[first:]] += 5 / others
        drawn[cell[first:][taken[first:]]] += 1
    rest = np.setdiff1d(np.arange(2, 40), chosen)
    assert np.abs(drawn[rest] / seen[rest] - 1).max() < 0.25
    assert drawn[rest].sum() / seen[rest].sum() == pytest.approx(1, abs=0.03)


def test_ranges_of_a_cell_give_the_sample_of_the_cell() -> None:
    design = PrefilteredDesign.of(np.array([3]), 40, 6, 1, "delete")
    cell = np.random.default_rng(0).permutation(np.arange(2, 40)).astype(np.uint16)
    whole, tokens = design.of_cell(cell, 0, 100)
    pieces = [design.of_cell(cell, start, start + 10)[0] for start in range(0, 40, 10)]
    assert np.concatenate(pieces).tolist() == whole.tolist() == tokens[:, 0].tolist()
    assert 3 in whole
    other = PrefilteredDesign.of(np.array([3]), 40, 6, 2, "delete")
    assert other.of_cell(cell, 0, 100)[0].tolist() != whole.tolist()
    assert other.digest != design.digest


def test_a_gene_table_by_hand() -> None:
    means = Means.zeros(6)
    means.add(np.array([2, 2, 3, 3, 3, 4]), np.array([1.0, 3.0, 1.0, 1.0, 4.0, 0.5]))
    token = np.array([2, 2, 3])
    exact, estimate = np.array([2.0, 5.0, 3.0]), np.array([1.0, 3.0, 1.0])
    rows = token, exact, estimate, np.array([True, True, False]), np.array([1.0, 1.0, 0.5])
    found = Evaluated.of(means, [rows], np.array([0, 0, 0, 3.0, 1, 0]), highest=True)
    table, report = gene_table(found, {token: f"G{token}" for token in range(6)}, 0.95, 2, 0)
    table = table.set_index("Ensembl_ID")
    assert table["How"].to_dict() == {"G2": "chosen", "G3": "sampled", "G4": "bound"}
    assert table["Value"].to_dict() == pytest.approx({"G2": 3.5, "G3": (6 + 2 / 0.5) / 3, "G4": np.nan}, nan_ok=True)
    assert table.loc["G2", ["Value_low", "Value_high", "Bound_low", "Bound_high"]].tolist() == [3.5] * 4
    assert table.loc["G4", "Bound_low"] <= table.loc["G4", "Expected"] == pytest.approx(2.5)
    assert table["N_Exact"].to_dict() == {"G2": 2, "G3": 1, "G4": 0}
    assert report["genes"] == {"chosen": 1, "sampled": 1, "bound": 1}
    assert report["mean over all perturbations"]["value"] == pytest.approx((7 + 6 + 4 + 0.5) / 6)
    assert report["rank correlation of estimates"]["spearman"] is None
