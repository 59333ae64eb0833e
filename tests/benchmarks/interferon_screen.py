"""Do screens find the genes that interferon is known to induce? On real cells, with a model made for it.

`python -m tests.benchmarks.interferon_screen DATA --model MODEL --output FOLDER` takes monocytes with and without
interferon (`kang_ifnb.h5ad` of DATA, Kang et al. 2018), fine-tunes MODEL (as `tests.benchmarks.real_cells` makes one)
to tell them apart, deletes and overexpresses genes in untreated ones and asks where known interferon genes rank among
other genes that are as often detected, by the mean shift towards the treated cells.
"""

import argparse
import logging
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from cellray import Screen
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.train.finetune import FinetuneConfig, finetune
from cellray.vocabulary import GeneVocabulary

INDUCED = (
    *("ISG15", "ISG20", "IFIT1", "IFIT2", "IFIT3", "IFI6", "IFI35", "IFI44L", "IFITM1", "IFITM3", "MX1", "MX2"),
    *("OAS1", "OASL", "STAT1", "STAT2", "IRF7", "IRF9", "CXCL10", "RSAD2", "LY6E", "PSMB9", "TNFSF10", "BST2", "XAF1"),
)
"""Genes that type I interferon induces in blood cells (Schoggins et al. 2011; Mostafavi et al. 2016)."""
TASK = 'task = "cell_classification"\nlabel = "condition"\nsplit = { kind = "stratified", validation_fraction = 0 }\n'
MATCHED = 8
"""Other genes for each induced one."""


def main() -> None:
    """Run the screens and print where the genes rank."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options = _options()
    cells = anndata.read_h5ad(options.data / "kang_ifnb.h5ad")
    model = _fine_tuned(options)
    monocytes = cells[cells.obs["cell_type"] == "CD14+ Monocytes"].copy()
    untreated = np.flatnonzero(monocytes.obs["condition"] == "ctrl")
    drawn = np.sort(np.random.default_rng(0).choice(untreated, min(options.cells, len(untreated)), replace=False))
    vocabulary = GeneVocabulary.load(str(options.output / "vocabulary.json"))
    induced, others = _genes(monocytes, vocabulary)
    print(f"{len(drawn)} untreated monocytes; {len(induced)} induced genes, {len(others)} as often detected")
    for kind in ("delete", "overexpress"):
        screen = Screen(model, kind=kind, genes=[*induced, *others], layer=0, token_budget=8192)
        shifts = screen.states_from(monocytes, "condition", start="ctrl", goal="stim").perturb(monocytes[drawn].copy())
        print(_told(kind, shifts, induced, vocabulary))


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser()
    options.add_argument("data", type=Path, help="folder of the data")
    options.add_argument("--model", required=True, help="pretrained model, of the V1 vocabulary")
    options.add_argument("--output", type=Path, required=True, help="folder of everything that is made")
    options.add_argument("--vocabulary", type=Path, required=True, help="its vocabulary.json")
    options.add_argument("--cells", type=int, default=100, help="untreated monocytes to perturb")
    options.add_argument("--input-size", type=int, default=128, help="most tokens of a cell")
    options.add_argument("--epochs", type=float, default=10, help="of fine-tuning")
    return options.parse_args()


def _fine_tuned(options: argparse.Namespace) -> str:
    """Fine-tune the model to tell treated from untreated cells, on all cell types, and print how well it does."""
    out: Path = options.output
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocabulary.json").write_bytes(options.vocabulary.read_bytes())
    (out / "task.toml").write_text(TASK)
    tokenize_corpus(
        TokenizeConfig(
            source=(str(options.data / "kang_ifnb.h5ad"),),
            vocabulary=str(out / "vocabulary.json"),
            output=str(out / "corpus"),
            obs_columns=("condition", "cell_type"),
            input_size=options.input_size,
        )
    )
    made = finetune(
        FinetuneConfig(
            corpus=str(out / "corpus"),
            model=options.model,
            task=str(out / "task.toml"),
            output=str(out / "classifier"),
            epochs=options.epochs,
            learning_rate=5e-4,
            tracking_uri="none",
        )
    )
    print(f"test part: {made.heads['condition']}")
    return made.uri


def _genes(monocytes: anndata.AnnData, vocabulary: GeneVocabulary) -> tuple[list[str], list[str]]:
    """Return induced genes, and for each the others whose share of cells that have them is nearest to its own."""
    share = pd.Series(np.asarray((monocytes.X > 0).mean(axis=0)).ravel(), monocytes.var["ensembl_id"].astype(str))
    share = share[share.index.isin(vocabulary.genes) & (share > 0.02) & ~share.index.duplicated()]
    induced = [vocabulary.symbols[symbol] for symbol in INDUCED if vocabulary.symbols.get(symbol) in share.index]
    rest = share.drop(induced)
    others: list[str] = []
    for gene in induced:
        nearest = (rest.drop(others) - share[gene]).abs().nsmallest(MATCHED)
        others += list(nearest.index)
    return induced, others


def _told(kind: str, shifts: pd.DataFrame, induced: list[str], vocabulary: GeneVocabulary) -> str:
    """Return in words where the induced genes rank."""
    by_gene = shifts.groupby("genes")["shift:stim"]
    mean = by_gene.mean()[by_gene.size() >= 3].sort_values(ascending=kind == "delete")
    mine = mean.index.isin(induced)
    if not mine.any():
        return f"{kind}: no induced gene is detected in 3 of the cells"
    direction = "less" if kind == "delete" else "greater"
    test = mannwhitneyu(mean[mine], mean[~mine], alternative=direction)
    auc = test.statistic / (mine.sum() * (~mine).sum())
    auc = 1 - auc if kind == "delete" else auc
    names = {gene: symbol for symbol, gene in vocabulary.symbols.items()}
    best = ", ".join(f"{names[gene]} {rank + 1}" for rank, gene in enumerate(mean.index) if mine[rank])
    where = "away from" if kind == "delete" else "towards"
    return (
        f"{kind}: of {len(mean)} genes in 3 cells or more, by the shift {where} the treated cells,"
        f" {mine.sum()} induced ones rank: {best}\n"
        f"  area under the curve {auc:.2f} (0.5 = chance), one-sided Mann-Whitney p = {test.pvalue:.2g};"
        f" mean shift {mean[mine].mean():.2e} against {mean[~mine].mean():.2e}"
    )


if __name__ == "__main__":
    main()
