"""Tiny cells, corpora and models for screens, made without Ray."""

from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from transformers import BertForMaskedLM

from cellray.data.corpora.corpus import Corpus
from cellray.infer.screen import ScreenConfig, screen
from cellray.model.annotator_directory import save_annotator, start_annotator
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.heads import HeadSpec
from cellray.model.presets import bert_config
from cellray.schema import PartRecord
from cellray.shift_schema import ShiftManifest
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES, random_counts
from tests.data.corpora import tokenized

CELLS = 18
STATES = ("sick", "well", "other")
DISEASE = HeadSpec("disease", "classification", "cell", ("sick", "well"))
AGE = HeadSpec("age", "regression", "cell", mean=40.0, std=10.0)
DOSAGE = HeadSpec("dosage", "classification", "gene", ("sensitive", "not"))


def cells_of(names: Sequence[str] = GENES, seed: int = 0, cells: int = CELLS) -> anndata.AnnData:
    """Return cells of three states and three donors with genes of any names."""
    obs = pd.DataFrame(
        {"state": [STATES[i % 3] for i in range(cells)], "donor": [f"d{i // 3 % 3}" for i in range(cells)]},
        index=[f"cell{i}" for i in range(cells)],
    )
    return anndata.AnnData(random_counts(cells, len(names), seed), obs=obs, var=pd.DataFrame(index=list(names)))


def corpus_in(folder: Path, vocabulary: GeneVocabulary, adata: anndata.AnnData | None = None) -> Corpus:
    """Write cells and tokenize them, in shards of five."""
    (cells_of() if adata is None else adata).write_h5ad(folder / "cells.h5ad")
    return tokenized([folder / "cells.h5ad"], vocabulary, folder / "corpus", ("state", "donor"), cells_per_shard=5)


def model_in(folder: Path, vocabulary: GeneVocabulary, *heads: HeadSpec, pooling: str = "cell") -> str:
    """Write an untrained model, with random heads if there shall be some."""
    torch.manual_seed(0)
    save_model(BertForMaskedLM(bert_config("tiny", vocabulary, 16)), vocabulary, {}, str(folder / "pretrained"))
    if not heads:
        return str(folder / "pretrained")
    model = start_annotator(ModelDirectory.open(str(folder / "pretrained")), heads, pooling)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("bert."):
                weight.normal_()
    save_annotator(model, vocabulary, {"objective": "tests"}, str(folder / "tuned"))
    return str(folder / "tuned")


def screened(corpus: Corpus | str, model: str, output: Path, **options: object) -> tuple[ShiftManifest, pd.DataFrame]:
    """Run the job's screen in this process and return its rows."""
    uri = corpus if isinstance(corpus, str) else corpus.uri
    made = screen(ScreenConfig(**{"corpus": uri, "model": model, "output": str(output), "actors": 0, **options}))
    assert isinstance(made, ShiftManifest)
    return made, rows_in(output, made.parts)


def rows_in(output: Path, parts: Sequence[PartRecord]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(output / part.path) for part in parts], ignore_index=True)


def softmax(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(values) / np.exp(values).sum(-1, keepdims=True))
