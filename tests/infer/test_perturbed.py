"""Measures of perturbed copies: the official numbers, and what the formulas give with one plain forward pass a row."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cellray.infer.perturbed import Perturber
from cellray.model.checkpoint import ModelDirectory
from cellray.model.encoder import CellEncoder, load_encoder
from cellray.perturbation import Copies, make_edit, perturb_cell
from cellray.vocabulary import GeneVocabulary

Cells = list[tuple[np.ndarray, list[Copies]]]


def official(shared: Path, version: str) -> tuple[GeneVocabulary, CellEncoder, pd.DataFrame, dict[str, np.ndarray]]:
    """Return vocabulary, model, values and token rows (without special tokens) of the official numbers."""
    golden = shared / "golden"
    genes = [gene for gene in json.loads((golden / "token_dictionary_v2.json").read_text()) if gene[0] != "<"]
    vocabulary = GeneVocabulary.from_medians(dict.fromkeys(genes, 1.0), version, "ensembl")
    model = ModelDirectory.open(str(golden / f"model_{version}"))
    values = pd.read_parquet(golden / "perturbation.parquet")
    values = values[(values["model"] == version) & (values["affected"] == "cell_emb")]
    table = pq.read_table(golden / f"tokens_{version}.parquet").to_pandas().set_index("cell_id")["input_ids"]
    special = set(vocabulary.special_tokens.values())
    rows = {name: np.array([t for t in ids if t not in special], np.uint16) for name, ids in table.items()}
    return vocabulary, load_encoder(model, -1), values, rows


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_official_values(shared: Path, version: str) -> None:
    vocabulary, encoder, values, rows = official(shared, version)
    states = dict(zip("ABC", np.load(shared / "golden" / "embeddings.npz")[f"{version}_states"], strict=True))
    mode = {"v1": "cell", "v2": "cls"}[version]
    perturber = Perturber(encoder, mode, vocabulary, vocabulary.layout(encoder.input_size), states, 8192)
    compared = 0
    for (kind, genes), group in values.groupby(["perturb_type", "genes"], observed=True):
        cells = sorted(group["cell_id"].unique())
        edit, capacity = make_edit(kind), perturber.layout.max_genes
        listed = [vocabulary.genes[gene] for gene in genes.split("|") if genes != "all"]
        design = [np.array([listed] if listed else rows[cell][::9, None], np.int32) for cell in cells]
        copies: Cells = [
            (rows[c], list(perturb_cell(rows[c], d, edit, capacity, len(vocabulary))))
            for c, d in zip(cells, design, strict=True)
        ]
        found = perturber.measure(copies)
        names = np.array(cells)[found.cell_r]
        token = [design[c][n][0] for c, n in zip(found.cell_r, found.number_r, strict=True)]
        perturbed = [vocabulary.gene_of_token[t] for t in token] if genes == "all" else [genes] * len(token)
        table = pd.DataFrame({"cell_id": names, "perturbed": perturbed, "": found.similarity_r})
        for i, state in enumerate(states):
            table[state] = found.shift_rs[:, i]
        for state, official_values in group.groupby("state", observed=True):
            unique = official_values.drop_duplicates(["cell_id", "perturbed"])
            expected = unique.set_index(["cell_id", "perturbed"])["value"]
            got = table.set_index(["cell_id", "perturbed"])[state]
            if genes != "all":
                expected, got = expected.droplevel(1), got.droplevel(1)
            assert got.index.isin(expected.index).all()
            assert np.abs(got - expected.reindex(got.index)).max() < 1e-5, (kind, genes, state)
            compared += len(got)
    assert compared > 2_000
