"""The small set-up on which pages are run: an atlas with the columns and genes the pages speak of, and tiny models."""

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from transformers import BertForMaskedLM

from cellray.model.annotator_directory import save_annotator, start_annotator
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.heads import HeadSpec
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES, random_counts
from tests.data.corpora import tokenized

CELLS, TOKENS = 160, 64
TYPES = ("progenitor", "cardiomyocyte", "fibroblast", "iPSC")
STAGES = ("progenitor", "intermediate", "mature")
NAMED = {
    "ENSG00000136574": "GATA4",
    "ENSG00000089225": "TBX5",
    "ENSG00000204531": "POU5F1",
    "ENSG00000181449": "SOX2",
    "ENSG00000136826": "KLF4",
    "ENSG00000136997": "MYC",
    "ENSG00000075624": "ACTB",
}
OWN = [*NAMED, *GENES[6:40]]
DISEASE = HeadSpec("disease", "classification", "cell", ("healthy", "sick"))


def cells(number: int = CELLS, seed: int = 0) -> anndata.AnnData:
    """Return cells of eight donors, four of them sick, in four batches; each type has genes of its own."""
    index = np.arange(number)
    kind, donor = index // 8 % 4, index % 8
    counts = random_counts(number, len(OWN), seed, density=0.9).toarray()
    for i in range(4):
        counts[kind == i, 6 + 5 * i : 11 + 5 * i] *= 5
    obs = pd.DataFrame(
        {
            "cell_type": np.take(TYPES, kind),
            "donor": [f"d{each}" for each in donor],
            "batch": [f"b{each % 4}" for each in donor],
            "disease": np.where(donor < 4, "sick", "healthy"),
            "stage": np.take(STAGES, index // 32 % 3),
        },
        index=[f"cell{i}" for i in index],
    )
    return anndata.AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=OWN))


def set_up(folder: Path) -> None:
    """Write everything that pages name as needed."""
    cells().write_h5ad(folder / "atlas.h5ad")
    cells(24, seed=1).write_h5ad(folder / "new.h5ad")
    medians = {gene: (i % 7 + 1) / 2 for i, gene in enumerate(OWN)}
    bare = GeneVocabulary.from_medians(medians, "v1", "ensembl", input_size=TOKENS)
    vocabulary = replace(bare, symbols={symbol: gene for gene, symbol in NAMED.items()})
    vocabulary.save(str(folder / "vocabulary.json"))
    columns = ("cell_type", "donor", "batch", "disease", "stage")
    tokenized([folder / "atlas.h5ad"], vocabulary, folder / "corpus", columns, cells_per_shard=50)
    torch.manual_seed(0)
    model, out = BertForMaskedLM(bert_config("tiny", vocabulary, TOKENS)), str(folder / "model")
    save_model(model, vocabulary, {"objective": "masked genes"}, out)
    classifier = start_annotator(ModelDirectory.open(out), [DISEASE], "cell")
    save_annotator(classifier, vocabulary, {"objective": "cell_classification"}, str(folder / "classifier"))
    lists = [f"{('sensitive', 'insensitive')[i % 2]},{gene}" for i, gene in enumerate(OWN)]
    (folder / "dosage_sensitivity.csv").write_text("\n".join(["class,gene", *lists]))


def place_for(page_inputs: set[str], made: Path, place: Path) -> None:
    """Put into an empty folder what a page needs, and nothing else."""
    for name in page_inputs:
        (place / name).symlink_to(made / name)
