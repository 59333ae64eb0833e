"""A prefiltered screen against the whole one: which of the exact best genes it finds, for how many forward passes.

`python -m tests.benchmarks.prefilter [DATA]`: with Geneformer's V1 dictionaries and `kang_ifnb.h5ad` in DATA the cells
are real ones, untreated, and the goal is the state of those treated with interferon; else the demo's cells. A small
model is trained on them first. Every gene of every cell is perturbed: that is the truth. Random choice has the
same forward passes on genes drawn at random, in all their cells. A gene's mean over few cells is often extreme, so
recall is given among all genes and among those of more cells. Runs without a cluster, on the code of the job's workers.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from cellray.data.collate import TokenRows
from cellray.infer.embed import embed_rows
from cellray.infer.perturbed import Perturber
from cellray.infer.prefilter.choice import Means, PrefilteredDesign, choose_genes
from cellray.infer.prefilter.estimate import Estimator, applicable
from cellray.infer.prefilter.readouts import Goal
from cellray.infer.prefilter.report import Evaluated, gene_table
from cellray.model.encoder import CellEncoder, load_encoder
from cellray.model.pooling import is_gene_token
from cellray.perturbation import make_edit, perturb_cell
from tests.benchmarks.trained_cells import Cells, read_cells, trained_model

BUDGET, TOP, CONFIDENCE, ROUNDS = 2048, 50, 0.95, 20


def main() -> None:
    """Train, screen both ways, compare."""
    chosen = _options()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as made:
        folder = chosen.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        cells = read_cells(chosen.data, folder, chosen.tokens)
        encoder = load_encoder(trained_model(cells, "tiny", chosen.steps, folder / "model"), chosen.layer)
        encoder.requires_grad_(requires_grad=False)
        kept = folder / f"{chosen.kind}_{chosen.cells}.parquet"
        if not kept.exists():
            _both_ways(cells, encoder, chosen).to_parquet(kept)
        rows = pd.read_parquet(kept)
    _compare(rows, cells, chosen)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", type=Path, nargs="?", help="folder of the real cells")
    options.add_argument("--folder", type=Path, help="keep the model and the values here")
    options.add_argument("--kind", default="delete")
    options.add_argument("--cells", type=int, default=100)
    options.add_argument("--tokens", type=int, default=256, help="most tokens of a cell")
    options.add_argument("--steps", type=int, default=150, help="training steps")
    options.add_argument("--layer", type=int, default=-1)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--times", type=float, default=10, help="so many times fewer forward passes")
    options.add_argument("--sample", type=int, default=3, help="random evaluations a cell")
    return options.parse_args()


def _both_ways(cells: Cells, encoder: CellEncoder, chosen: argparse.Namespace) -> pd.DataFrame:
    """Return a row for each cell and gene: exact shift and estimate."""
    vocabulary, layout = cells.vocabulary, cells.vocabulary.layout()
    rows = TokenRows(np.concatenate(cells.rows), np.r_[0, np.cumsum([len(row) for row in cells.rows])])
    embedding_nd = np.stack(list(embed_rows(encoder, rows, "cell", is_gene_token(vocabulary), BUDGET)))
    goal_d = embedding_nd[cells.state_n == cells.goal].mean(0)
    perturber = Perturber(encoder, "cell", vocabulary, layout, {"goal": goal_d}, BUDGET)
    goal = Goal(torch.from_numpy(goal_d), cls=False)
    estimator = Estimator(encoder, layout, chosen.kind, goal, 8, BUDGET)
    start_n = np.flatnonzero(cells.state_n == cells.start)
    picked = np.sort(np.random.default_rng(0).permutation(start_n)[: chosen.cells])
    frames, seconds = [], np.zeros(2)
    for cell in picked:
        genes_n = cells.rows[cell]
        began = time.perf_counter()
        copies = perturb_cell(
            genes_n, genes_n[:, None].astype(np.int32), make_edit(chosen.kind), 1 << 14, len(vocabulary)
        )
        found = perturber.measure([(genes_n, list(copies))])
        between = time.perf_counter()
        estimate_n = estimator(genes_n)
        seconds += between - began, time.perf_counter() - between
        exact_n = np.full(len(genes_n), np.nan, np.float32)
        exact_n[found.number_r] = found.shift_rs[:, 0]
        rank_n = np.arange(len(genes_n))[applicable(chosen.kind, len(genes_n))]
        frame = {"cell": cell, "rank": rank_n, "token": genes_n[rank_n].astype(int)}
        frames.append(pd.DataFrame({**frame, "exact": exact_n[rank_n], "estimate": estimate_n[rank_n]}))
    print(f"all exact {seconds[0]:.0f} s, estimates {seconds[1]:.0f} s ({estimator.passes} forward passes a cell)")
    return pd.concat(frames, ignore_index=True).assign(passes=estimator.passes)


def _compare(rows: pd.DataFrame, cells: Cells, chosen: argparse.Namespace) -> None:
    number, whole = rows["cell"].nunique(), len(rows)
    print(
        f"{cells.name}: {number} cells, {cells.start} -> {cells.goal}, {chosen.kind}; {whole:,} perturbations of"
        f" {rows['token'].nunique():,} genes; Spearman of estimate and exact, all rows:"
        f" {spearmanr(rows['estimate'], rows['exact']).statistic:.3f}"
    )
    names = pd.Series(cells.vocabulary.gene_of_token)
    grouped = rows.assign(Ensembl_ID=rows["token"].map(names)).groupby("Ensembl_ID")
    truth = grouped["exact"].agg(["mean", "size"]).assign(estimate=grouped["estimate"].mean())
    for least in sorted({1, max(2, number // 40), max(2, number // 5)}):
        _screen(rows, truth, cells, chosen, least)


def _screen(rows: pd.DataFrame, truth: pd.DataFrame, cells: Cells, chosen: argparse.Namespace, least: int) -> None:
    """Do a prefiltered screen in which genes of so many cells count, and compare."""
    number, whole = rows["cell"].nunique(), len(rows)
    spent = int(rows["passes"].iloc[0]) * number
    evaluate = max(1, int((whole / chosen.times - spent) / number) - chosen.sample)
    means = Means.zeros(len(cells.vocabulary))
    means.add(rows["token"].to_numpy(), rows["estimate"].to_numpy())
    promising = choose_genes(means, evaluate * number, highest=True, least=least)
    design = PrefilteredDesign.of(promising, len(means.count_v), chosen.sample, 0, chosen.kind)
    kept, probability = [], []
    for cell, own in rows.groupby("cell", sort=False):
        genes_n = cells.rows[int(str(cell))]
        kept_n, probability_n = (each[own["rank"].to_numpy()] for each in design.inclusion(genes_n))
        kept.append(kept_n)
        probability.append(probability_n)
    kept_r, probability_r = np.concatenate(kept), np.concatenate(probability)
    passes = spent + int(kept_r.sum())
    print(
        f"genes of {least} cells or more: {spent:,} forward passes for estimates, {int(kept_r.sum()):,} exact"
        f" ({len(promising)} genes in all their cells, {chosen.sample} others a cell): {whole / passes:.1f} x fewer"
    )
    evaluated = _evaluated(rows, design, kept_r, probability_r, means)
    table, report = gene_table(evaluated, cells.vocabulary.gene_of_token, CONFIDENCE, TOP, 0, least)
    _recall(table, truth[truth["size"] >= least], least, passes)
    _honesty(table, truth, report)


def _evaluated(
    rows: pd.DataFrame,
    design: PrefilteredDesign,
    kept_r: NDArray[np.bool_],
    probability_r: NDArray[np.float64],
    means: Means,
) -> Evaluated:
    """Return what the job would know."""
    assert design.chosen_v is not None
    token_r = rows["token"].to_numpy()
    chosen_r = design.chosen_v[token_r]
    inverse_v = np.bincount(token_r, (1 - probability_r) / probability_r, len(means.count_v))
    columns = token_r, rows["exact"].to_numpy(float), rows["estimate"].to_numpy(float), chosen_r, probability_r
    exact, estimate = columns[1][kept_r], columns[2][kept_r]
    piece = token_r[kept_r], exact, estimate, chosen_r[kept_r], probability_r[kept_r]
    return Evaluated.of(means, [piece], inverse_v, highest=True)


def _recall(table: pd.DataFrame, frequent: pd.DataFrame, least: int, passes: int) -> None:
    """Print the recall of the best genes, and that of random choice and of estimates alone."""
    best = set(frequent["mean"].nlargest(TOP).index)
    listed = table[table["N_Detections"] >= least].nlargest(TOP, "Expected")
    ours, exact = listed["Ensembl_ID"], (listed["How"] == "chosen").sum()
    alone = len(best & set(frequent["estimate"].nlargest(TOP).index)) / TOP
    rng, at_random = np.random.default_rng(1), []
    for _ in range(ROUNDS):
        order = frequent.sample(frac=1, random_state=rng)
        drawn = order[order["size"].cumsum() <= passes]
        at_random.append(len(best & set(drawn["mean"].nlargest(TOP).index)) / TOP)
    print(
        f"  recall of the exact top {TOP} of {len(frequent):,} genes: {len(best & set(ours)) / TOP:.2f} (target 0.9),"
        f" {exact} of the listed with exact means; estimates alone {alone:.2f};"
        f" whole genes at random, same passes, {np.mean(at_random):.2f}"
    )


def _honesty(table: pd.DataFrame, truth: pd.DataFrame, report: dict) -> None:
    """Print what the job would report, and whether its intervals hold."""
    found = table.set_index("Ensembl_ID").join(truth["mean"])
    others = found[found["How"] != "chosen"]
    inside = ((others["mean"] >= others["Bound_low"]) & (others["mean"] <= others["Bound_high"])).mean()
    sampled = found[found["How"] == "sampled"]
    within = ((sampled["mean"] >= sampled["Value_low"]) & (sampled["mean"] <= sampled["Value_high"])).mean()
    recall, agreement = report["recall"], report["rank correlation of estimates"]
    print(
        f"  reported: recall {recall['estimate']:.2f} ({recall['low']:.2f} to {recall['high']:.2f}); Spearman"
        f" {agreement['spearman']:.3f} ({agreement['low']:.3f} to {agreement['high']:.3f}) of {agreement['rows']} rows"
    )
    print(f"  errors {report['errors of estimates']}, sd of exact gene means {truth['mean'].std():.1e}")
    print(f"  of {CONFIDENCE:.0%} intervals hold: bounds {inside:.3f}, corrected means {within:.3f}")
    overall, exact = report["mean over all perturbations"], np.average(truth["mean"], weights=truth["size"])
    print(
        f"  mean of the screen {exact:.3e}, corrected {overall['value']:.3e}"
        f" ({overall['low']:.3e} to {overall['high']:.3e})"
    )


if __name__ == "__main__":
    main()
