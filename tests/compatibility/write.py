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

from cellray.data.corpora.concatenate import ConcatConfig, concat_corpora
from cellray.data.parts import make_part
from cellray.data.quality import plan as quality_plan
from cellray.data.quality import run as quality_run
from cellray.data.quality.plan import QualityConfig, describe_source
from cellray.data.quality.run import quality_control
from cellray.infer.attention import AttentionConfig, attention
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.gene_contexts import GeneContextConfig, gene_contexts
from cellray.infer.integration import IntegrationConfig, score_integration
from cellray.infer.perturbation_stats import PerturbationStatsConfig, perturbation_stats
from cellray.infer.predict import PredictConfig, predict_cells
from cellray.infer.predictions import Predictions, write_predictions_h5ad
from cellray.infer.results import Embeddings, write_h5ad
from cellray.infer.screen import ScreenConfig, screen
from cellray.infer.states import pooled_by_state, write_states
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

    write_cells(folder / "cells.h5ad", pd.DataFrame({"state": ["sick", "well"] * (CELLS // 2)}), "cell", seed=0)
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
    predict_cells(PredictConfig(output=at("predictions"), **shared | {"model": at("annotator")}))
    predict_cells(PredictConfig(output=at("gene_predictions"), **shared | {"model": at("gene_annotator")}))
    write_for_others(folder)
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
    write_of_several(folder, vocabulary)
    (folder / "cells.h5ad").unlink()
    for beside in folder.glob("*.states"):
        shutil.rmtree(beside)


def write_cells(path: Path, obs: pd.DataFrame, name: str, seed: int) -> None:
    """Write counts of some cells."""
    counts = np.random.default_rng(seed).poisson(2, (len(obs), len(GENES))) + np.eye(len(obs), len(GENES))
    obs = obs.set_axis([f"{name}{i}" for i in range(len(obs))])
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))
    adata.write_h5ad(path, compression="gzip")


def write_for_others(folder: Path) -> None:
    """Write results in forms that other programs read, and the states that a screen is given."""
    embeddings = Embeddings.open(str(folder / "embeddings"))
    write_h5ad(embeddings, str(folder / "embeddings.h5ad"))
    write_predictions_h5ad(Predictions.open(str(folder / "predictions")), str(folder / "predictions.h5ad"))
    write_states(str(folder / "states.parquet"), pooled_by_state(embeddings, "state", ("sick", "well"), "mean"))


def write_of_several(folder: Path, vocabulary: GeneVocabulary) -> None:
    """Write what needs more cells, of two batches: corpora of two, and scores of integration."""
    cells, batches = 4 * CELLS, ["a", "b"] * (2 * CELLS)
    obs = pd.DataFrame({"state": ["sick"] * (cells // 2) + ["well"] * (cells // 2), "batch": batches})
    write_cells(folder / "more.h5ad", obs, "more", seed=1)
    tokenized([folder / "more.h5ad"], vocabulary, folder / "more", ("state", "batch"))
    both = (str(folder / "corpus"), str(folder / "more"))
    concat_corpora(ConcatConfig(corpus=both, output=str(folder / "concatenated"), copy_shards=True))
    concat_corpora(ConcatConfig(corpus=both[:1] * 2, output=str(folder / "referring"), allow_repeated=True))
    shared = {"corpus": both[1], "model": str(folder / "model"), "actors": 0}
    embed_cells(EmbedConfig(output=str(folder / "more.embeddings"), **shared))
    scored = {"embeddings": str(folder / "more.embeddings"), "output": str(folder / "integration")}
    score_integration(IntegrationConfig(batch="batch", label="state", baseline=False, **scored))
    (folder / "more.h5ad").unlink()
    for beside in ("more", "more.embeddings"):
        shutil.rmtree(folder / beside)


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
    head = HeadSpec("dosage", "classification", "gene", ("sensitive", "not"))
    annotator = start_annotator(ModelDirectory.open(str(folder / "model")), (head,), "cell")
    save_annotator(annotator, vocabulary, {"objective": "dosage"}, str(folder / "gene_annotator"))


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]).absolute())
