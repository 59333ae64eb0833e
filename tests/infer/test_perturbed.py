"""Measures of perturbed copies: the official numbers, and what the formulas give with one plain forward pass a row."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cosine_similarity

from cellray.infer.perturbed import Perturber
from cellray.model.checkpoint import ModelDirectory
from cellray.model.encoder import CellEncoder, load_encoder
from cellray.model.masked_lm import new_masked_lm
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
    values = values[values["model"] == version]
    table = pq.read_table(golden / f"tokens_{version}.parquet").to_pandas().set_index("cell_id")["input_ids"]
    special = set(vocabulary.special_tokens.values())
    rows = {name: np.array([t for t in ids if t not in special], np.uint16) for name, ids in table.items()}
    return vocabulary, load_encoder(model, -1), values, rows


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_official_values(shared: Path, version: str) -> None:
    vocabulary, encoder, values, rows = official(shared, version)
    values = values[values["affected"] == "cell_emb"]
    states = dict(zip("ABC", np.load(shared / "golden" / "embeddings.npz")[f"{version}_states"], strict=True))
    mode = {"v1": "cell", "v2": "cls"}[version]
    perturber = Perturber(encoder, mode, vocabulary, vocabulary.layout(encoder.input_size), states, 8192)
    compared = 0
    for (kind, genes), group in values.groupby(["perturb_type", "genes"], observed=True):
        cells = sorted(group["cell_id"].unique())
        edit, capacity = make_edit(kind), perturber.layout.max_genes
        listed = [vocabulary.genes[gene] for gene in genes.split("|") if genes != "all"]
        design = [np.array([listed] if listed else rows[cell][:, None], np.int32) for cell in cells]
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
            assert set(got.index) == set(expected.index)
            assert len(got) == len(expected)
            assert np.abs(got - expected.reindex(got.index)).max() < 2e-6, (kind, genes, state)
            compared += len(got)
    assert compared == len(values.drop_duplicates(["perturb_type", "genes", "cell_id", "perturbed", "state"]))


def effects_of(
    perturber: Perturber, kind: str, genes_n: np.ndarray, token_pk: np.ndarray
) -> dict[tuple[int, int], float]:
    """Return the effect on each gene: (number of the perturbation, token id of the affected gene) to cosine."""
    capacity, tokens = perturber.layout.max_genes, len(perturber.vocabulary)
    copies = list(perturb_cell(genes_n, token_pk, make_edit(kind), capacity, tokens))
    found = perturber.measure([(genes_n, copies)])
    return {
        (number, token): cosine
        for number, (rank_m, cosine_m) in zip(found.number_r.tolist(), found.effects, strict=True)
        for token, cosine in zip(genes_n[rank_m].tolist(), cosine_m.tolist(), strict=True)
    }


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_official_gene_effects(shared: Path, version: str) -> None:
    """Of deletions; those of V2 stand beside `<cls>` similarities, which they do not depend on."""
    vocabulary, encoder, values, rows = official(shared, version)
    layout = vocabulary.layout(encoder.input_size)
    perturber = Perturber(encoder, "cell", vocabulary, layout, {}, 8192, effects=True)
    effects = values[(values["affected"] != "cell_emb") & (values["perturb_type"] == "delete")]

    every = effects[effects["genes"] == "all"]
    (cell,) = every["cell_id"].unique()
    genes_n = rows[cell]
    mine = effects_of(perturber, "delete", genes_n, genes_n.astype(np.int32)[:, None])
    token = vocabulary.genes
    theirs = {
        (genes_n.tolist().index(token[gene]), token[affected]): value
        for gene, affected, value in every[["perturbed", "affected", "value"]].itertuples(index=False)
    }
    assert mine.keys() == theirs.keys()
    assert max(abs(mine[key] - value) for key, value in theirs.items()) < 1e-5

    listed = effects[effects["genes"] != "all"]
    (gene,) = listed["genes"].unique()
    of_gene = (values["genes"] == gene) & (values["perturb_type"] == "delete") & (values["affected"] == "cell_emb")
    in_turn: dict[int, list[float]] = {}  # without cell ids, but each gene's in the order of the cells
    for name in values[of_gene]["cell_id"].unique():
        for (_, affected), cosine in effects_of(perturber, "delete", rows[name], np.array([[token[gene]]])).items():
            in_turn.setdefault(affected, []).append(cosine)
    official_in_turn = listed.groupby("affected", observed=True)["value"].agg(list)
    assert in_turn.keys() == {token[affected] for affected in official_in_turn.index}
    for affected, expected in official_in_turn.items():
        assert in_turn[token[affected]] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("listed", [(), (9, 4)], ids=["every gene", "a missing gene and another"])
def test_gene_effects_of_overexpression(vocabulary: GeneVocabulary, listed: tuple[int, ...]) -> None:
    """By plain forward passes; official labels of effects, where every gene is overexpressed, are off by one gene."""
    bert = new_masked_lm("tiny", vocabulary, 16, 0).bert.eval()
    perturber = Perturber(CellEncoder(bert, 0), "cell", vocabulary, vocabulary.layout(16), {}, 64, effects=True)
    genes_n = np.array([7, 3, 4, 12, 8, 5], np.uint16)
    token_pk = np.array([listed], np.int32) if listed else genes_n.astype(np.int32)[:, None]
    mine = effects_of(perturber, "overexpress", genes_n, token_pk)
    expected = {}
    with torch.inference_mode():
        before = dict(zip(genes_n.tolist(), bert(torch.tensor([genes_n.tolist()])).last_hidden_state[0], strict=True))
        for number, tokens in enumerate(token_pk.tolist()):
            edited = [*tokens, *(gene for gene in genes_n.tolist() if gene not in tokens)]
            if edited == genes_n.tolist():
                continue
            for gene, row in zip(edited, bert(torch.tensor([edited])).last_hidden_state[0], strict=True):
                if gene not in tokens:
                    expected[number, gene] = float(cosine_similarity(row, before[gene], dim=0))
    assert mine == pytest.approx(expected, abs=1e-6)
    assert len(mine) == (5 if listed else 25)
