"""Peak memory of one unit of a screen's worker, with its check of noise, V1 in this process, without Ray.

Above what is there with the model loaded and a unit of a small cell done; taken as in `tests.benchmarks.perturbation`.
"""

import ctypes
import gc
import os
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from cellray.data.parts import Unit, make_part
from cellray.infer.design import make_design
from cellray.infer.replicas import Replica
from cellray.infer.screen_worker import ScreenOptions, ScreenWorker
from cellray.model.checkpoint import save_model
from cellray.model.masked_lm import new_masked_lm
from cellray.models import open_model
from cellray.train.throughput import peak_memory_bytes
from cellray.vocabulary import GeneVocabulary
from tests.data.corpora import tokenized

V1_GENES, SIZES, COPIES = 25_424, (8, 256, 1024), 32
"""Genes of each cell; of each as many, or all, are deleted one by one."""


def made_worker(folder: Path) -> tuple[ScreenWorker, list[Unit]]:
    """Write a model and a corpus of a cell of each size; return a worker and a unit for each cell."""
    vocabulary = GeneVocabulary.from_medians({f"ENSG{i:011d}": 1.0 for i in range(V1_GENES)}, "v1", "ensembl")
    x_ng = np.zeros((len(SIZES), max(SIZES)), np.float32)
    for row, size in zip(x_ng, SIZES, strict=True):
        row[:size] = np.random.default_rng(0).permutation(size) + 1
    genes = pd.DataFrame(index=list(vocabulary.genes)[: x_ng.shape[1]])
    anndata.AnnData(sparse.csr_matrix(x_ng), var=genes).write_h5ad(folder / "cells.h5ad")
    corpus = tokenized([folder / "cells.h5ad"], vocabulary, folder / "corpus")
    save_model(new_masked_lm("v1-10m", vocabulary, 2048, 0), vocabulary, {}, str(folder / "model"))
    _, reference = open_model(str(folder / "model"), None)
    units = corpus.plan_units(1)
    options = ScreenOptions(
        replica=Replica(corpus.uri, reference, 2048, 1, gpu=False),
        output=str(folder / "shifts"),
        kind="delete",
        quartiles=1,
        layer=-1,
        pooling="cell",
        precision="float32",
        effects=False,
        probabilities=False,
        design=make_design(vocabulary, ("all",)),
        ranges={unit.key: (i, 0, COPIES) for i, unit in enumerate(units)},
        together=1,
        chosen_n=np.ones(len(SIZES), bool),
        states={},
        obs_columns=(),
    )
    return ScreenWorker(options), units


def main() -> None:
    """Print the peak of each unit but the first."""
    with tempfile.TemporaryDirectory() as name:
        worker, units = made_worker(Path(name))
        for size, unit in zip(SIZES, units, strict=True):
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # or what comes would fit into what is free, and nothing were seen
            before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
            make_part(unit, worker, f"{name}/shifts")
            peak = (peak_memory_bytes(torch.device("cpu")) - before) / 1e6
            if size != SIZES[0]:
                print(f"{COPIES} deletions of a cell of {size:,} genes: peak {peak:,.0f} MB above the model")


if __name__ == "__main__":
    main()
