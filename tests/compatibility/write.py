"""Writes a tiny example of every artefact, as this library makes it: `python -m tests.compatibility.write FOLDER`.

The examples under `v1` are frozen: they are what released versions wrote, and later ones must read. Write new ones for
a new format version beside them, never over them.
"""

import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from transformers import BertForMaskedLM

from cellray.data.parts import make_part
from cellray.data.quality import plan as quality_plan
from cellray.data.quality import run as quality_run
from cellray.data.quality.plan import QualityConfig, describe_source
from cellray.data.quality.run import quality_control
from cellray.infer.attention import AttentionConfig, attention
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.gene_contexts import GeneContextConfig, gene_contexts
from cellray.infer.perturbation_stats import PerturbationStatsConfig, perturbation_stats
from cellray.infer.predict import PredictConfig, predict_cells
from cellray.infer.screen import ScreenConfig, screen
from cellray.model.annotator_directory import save_annotator, start_annotator
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.heads import HeadSpec
from cellray.model.presets import bert_config
from cellray.train.checkpoints import Checkpoints
from cellray.train.state import capture
from cellray.vocabulary import GeneVocabulary
from tests.data.corpora import tokenized

GENES = [f"ENSG{i:011d}" for i in range(1, 13)]
CELLS = 6


def write_examples(folder: Path) -> None:
    """Write all examples below a new folder."""
    folder.mkdir(parents=True)

    def at(name: str) -> str:
        return str(folder / name)

    counts = np.random.default_rng(0).poisson(2, (CELLS, len(GENES))) + np.eye(CELLS, len(GENES))
    obs = pd.DataFrame({"state": ["sick", "well"] * (CELLS // 2)}, index=[f"cell{i}" for i in range(CELLS)])
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))
    adata.write_h5ad(folder / "cells.h5ad", compression="gzip")
    vocabulary = GeneVocabulary.from_medians(dict.fromkeys(GENES, 1.0), "v1", "ensembl", input_size=12)
    vocabulary.save(at("vocabulary.json"))
    tokenized([folder / "cells.h5ad"], vocabulary, folder / "corpus", ("state",))
    write_models(folder, vocabulary)
    shared = {"corpus": at("corpus"), "model": at("model"), "actors": 0}
    embed_cells(EmbedConfig(output=at("embeddings"), **shared))
    embed_cells(EmbedConfig(output=at("gene_embeddings"), pooling="gene", **shared))
    gene_contexts(
        GeneContextConfig(embeddings=at("gene_embeddings"), context="state", output=at("contexts"), min_cells=2)
    )
    shutil.rmtree(folder / "gene_embeddings")
    predict_cells(PredictConfig(output=at("predictions"), **shared | {"model": at("annotator")}))
    states = {"state_column": "state", "start": "sick", "goal": "well"}
    screen(ScreenConfig(output=at("shifts"), genes=tuple(GENES[:4]), effects=True, **states, **shared))
    perturbation_stats(PerturbationStatsConfig(shifts=at("shifts"), mode="goal_state_shift", output=at("statistics")))
    few = {"exact": False, "evaluate": 2, "sample": 2, "top": 2}
    screen(ScreenConfig(output=at("prefiltered"), **few, **states, **shared))
    attention(AttentionConfig(output=at("attention"), top_k=3, label="state", genes=tuple(GENES[:4]), **shared))
    quality = QualityConfig(source=(at("cells.h5ad"),), output=at("quality"), vocabulary=at("vocabulary.json"))
    with (  # without Ray: the units are done here
        patch.object(quality_plan, "_describe_all", lambda uris, options: [describe_source(u, options) for u in uris]),
        patch.object(quality_run, "run_units", lambda _, out, units, worker, *more: tuple(
            make_part(unit, worker, out) for unit in units
        )),
        patch.object(quality_run, "ensure_ray", lambda: None),
    ):  # fmt: skip
        quality_control(quality)
    (folder / "cells.h5ad").unlink()
    for beside in folder.glob("*.states"):
        shutil.rmtree(beside)


def write_models(folder: Path, vocabulary: GeneVocabulary) -> None:
    """Write a model, a fine-tuned one and a checkpoint."""
    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary, 12)
    config.update({"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 4})
    model = BertForMaskedLM(config)
    save_model(model, vocabulary, {"objective": "masked genes"}, str(folder / "model"))
    head = HeadSpec("state", "classification", "cell", ("sick", "well"))
    annotator = start_annotator(ModelDirectory.open(str(folder / "model")), (head,), "cell")
    save_annotator(annotator, vocabulary, {"objective": "state"}, str(folder / "annotator"))
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.tensor([[2, 3]])).logits.sum().backward()
    optimizer.step()
    state = capture(model, optimizer, {"progress": {"step": 1, "best_step": None}}, keep=True)
    assert state is not None
    checkpoints = Checkpoints(str(folder / "checkpoints"))
    checkpoints.save(1, state, {"loss": 1.0}, None)
    checkpoints.finish()


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]).absolute())
