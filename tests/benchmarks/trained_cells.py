"""Real or demo cells as token rows, and a small model trained on them for a while, without a cluster."""

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from cellray.data.collate import TokenRows, length_grouped_batches
from cellray.data.sources import demo_data
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.masked_lm import new_masked_lm
from cellray.rank_value import UNKNOWN_GENE, ColumnGenes, encode_rows
from cellray.train.objectives import GeneMasker, MaskedGeneLoss, step_generator
from cellray.vocabulary import GeneVocabulary, import_official

BATCH, RATE, WARM_UP = 8, 2e-3, 20


@dataclass(frozen=True)
class Cells:
    """Token rows and the state of each cell."""

    rows: list[NDArray[np.uint16]]
    state_n: NDArray[np.str_]
    start: str
    goal: str
    vocabulary: GeneVocabulary
    name: str


def read_cells(data: Path | None, folder: Path, input_size: int) -> Cells:
    """Return blood cells, untreated (start) and treated with interferon (goal), or the demo's cells of two kinds."""
    if data is not None:
        vocabulary = import_official(data / "geneformer_v1", input_size)
        adata = anndata.read_h5ad(data / "kang_ifnb.h5ad")
        genes, state = adata.var["ensembl_id"].astype(str), adata.obs["condition"]
        return _encoded(adata, list(genes), state.to_numpy(str), ("ctrl", "stim"), vocabulary, "kang_ifnb")
    demo_data.restore_pbmc(folder / "pbmc.h5ad")
    adata = anndata.read_h5ad(folder / "pbmc.h5ad")
    names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    scaled = sparse.csc_matrix(adata.X.multiply(1e4 / adata.obs[demo_data.TOTALS].to_numpy()[:, None]))
    medians = {
        name: float(np.median(scaled.data[scaled.indptr[i] : scaled.indptr[i + 1]]))
        for i, name in enumerate(names)
        if scaled.indptr[i] < scaled.indptr[i + 1]
    }
    vocabulary = GeneVocabulary.from_medians(medians, "v1", "ensembl", input_size=input_size)
    state = adata.obs[demo_data.LABEL].to_numpy(str)
    return _encoded(adata, names, state, ("CD14+ Monocyte", "CD19+ B"), vocabulary, "pbmc68k_reduced (demo)")


def _encoded(
    adata: anndata.AnnData,
    names: list[str],
    state_n: NDArray[np.str_],
    states: tuple[str, str],
    vocabulary: GeneVocabulary,
    title: str,
) -> Cells:
    """Encode the counts; of columns with one gene the first counts."""
    x_ng = sparse.csr_matrix(adata.X)
    token_g = np.full(len(names), UNKNOWN_GENE, np.int32)
    for i, name in {name: i for i, name in reversed(list(enumerate(names)))}.items():
        token_g[name] = vocabulary.genes.get(i, UNKNOWN_GENE)
    genes = ColumnGenes(token_g, np.where(token_g == UNKNOWN_GENE, 1.0, vocabulary.median_of_token[token_g]))
    found = encode_rows(x_ng.data, x_ng.indices, x_ng.indptr, genes, vocabulary.layout())
    rows = [found.input_ids[a:b] for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]
    return Cells(rows, state_n, *states, vocabulary, title)


def trained_model(cells: Cells, preset: str, steps: int, folder: Path) -> ModelDirectory:
    """Train by the masked-gene objective; a model that lies in the folder already is taken."""
    if folder.exists():
        return ModelDirectory.open(str(folder))
    vocabulary, cpu = cells.vocabulary, torch.device("cpu")
    model = new_masked_lm(preset, vocabulary, vocabulary.layout().input_size, 0)
    loss_of, masker = MaskedGeneLoss(model.train(), vocabulary), GeneMasker(vocabulary, 0.15, cpu)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.001)
    rows = TokenRows(np.concatenate(cells.rows), np.r_[0, np.cumsum([len(row) for row in cells.rows])])
    rng, batches, losses = np.random.default_rng(0), list[NDArray[np.int64]](), list[float]()
    for step in range(steps):
        batches = batches or length_grouped_batches(rows.lengths, BATCH, rng)
        ids_nl = torch.from_numpy(rows.pad(batches.pop(), model.config.pad_token_id))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (1 - step / steps)
        optimizer.zero_grad()
        total, count = loss_of(masker(ids_nl, step_generator(0, step, 0, cpu)))
        (total / count).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(total.detach() / count))
    tenth = max(1, steps // 10)
    first, last = np.mean(losses[:tenth]), np.mean(losses[-tenth:])
    print(f"{preset} model: {steps} steps of {BATCH} cells, loss {first:.2f} to {last:.2f}", flush=True)
    save_model(model, vocabulary, {}, str(folder))
    return ModelDirectory.open(str(folder))
