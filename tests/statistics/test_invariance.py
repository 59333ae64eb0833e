"""Neither the order of rows, nor how they are cut, nor how much is held at once may matter."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.statistics.aggregates import aggregate_data, aggregate_gene_shifts
from cellray.statistics.goal_state import goal_state_shift
from cellray.statistics.mixture_model import mixture_model
from cellray.statistics.pairs import pair_interactions
from cellray.statistics.stream import GeneTable, Options
from cellray.statistics.vs_null import vs_null
from tests.statistics.screens import STATES, MemoryEffects, MemoryStream, random_screen
from tests.statistics.test_references import pairs_screen

FRAME, NULL, PAIRS = random_screen(), random_screen(seed=9), pairs_screen()
SMALL_POOL = Options(pool_size=100, rank_bins=4)


def shuffled(frame: pd.DataFrame, seed: int, cuts: list[int]) -> MemoryStream:
    rows = frame.sample(frac=1, random_state=seed)
    return MemoryStream(rows, cuts=sorted(c % (len(rows) + 1) for c in cuts), donor="donor")


def same(ours: GeneTable, theirs: GeneTable) -> None:
    pd.testing.assert_frame_equal(ours.table, theirs.table, rtol=1e-7, atol=1e-10)
    assert ours.dropped == theirs.dropped


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(0, 10_000), max_size=5), block=st.integers(1, 400))
def test_order_and_cut_do_not_matter(seed: int, cuts: list[int], block: int) -> None:
    whole, other = MemoryStream(FRAME, donor="donor"), shuffled(FRAME, seed, cuts)
    blocks = Options(block_rows=block)
    same(goal_state_shift(other, STATES, SMALL_POOL), goal_state_shift(whole, STATES, SMALL_POOL))
    null = MemoryStream(NULL, donor="donor")
    same(vs_null(other, shuffled(NULL, seed, cuts), blocks), vs_null(whole, null, Options()))
    same(mixture_model(other, Options()), mixture_model(whole, Options()))
    same(aggregate_data(other, Options()), aggregate_data(whole, Options()))
    pairs = MemoryStream(PAIRS, donor="donor")
    same(pair_interactions(shuffled(PAIRS, seed, cuts), None, blocks), pair_interactions(pairs, None, Options()))


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 300))
def test_gene_effects_are_summed_up_alike(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(6)]
    frame = pd.DataFrame(
        {
            "genes": rng.choice(names, 300),
            "affected": rng.choice(names, 300),
            "similarity": rng.uniform(0.5, 1, 300).astype(np.float32),
        }
    )
    cells = MemoryStream(frame.assign(cell_id="c", rank=0, cell_genes=1))
    found = aggregate_gene_shifts(cells, MemoryEffects(frame, size), Options()).table
    groups = frame.astype({"similarity": float}).groupby(["genes", "affected"])["similarity"]
    of_genes = found[found["Affected_Ensembl_ID"] != "cell_emb"].set_index(["Ensembl_ID", "Affected_Ensembl_ID"])
    expected = pd.DataFrame({"mean": groups.mean(), "sd": groups.std(ddof=0), "n": groups.size()})
    of_genes = of_genes.loc[expected.index]
    np.testing.assert_allclose(of_genes["Cosine_sim_mean"], expected["mean"])
    np.testing.assert_allclose(of_genes["Cosine_sim_stdev"], expected["sd"], atol=1e-12)
    assert (of_genes["N_Detections"] == expected["n"]).all()
