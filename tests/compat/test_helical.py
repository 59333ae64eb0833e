"""helical's six lines on our code: the golden numbers, results as theirs, and what is refused."""

import logging
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from cellray.compat.helical import Geneformer, GeneformerConfig
from cellray.compat.official_files import model_directory
from cellray.errors import InputError
from cellray.infer.notebook import embed
from cellray.vocabulary import GeneVocabulary
from tests.compat.conftest import clone
from tests.conftest import GENES
from tests.infer.tiny import cells_of, model_in

LONG = pytest.param("v2", "cell", marks=pytest.mark.chaos)


@pytest.mark.parametrize(("generation", "mode"), [("v1", "cell"), ("v2", "cls"), LONG])
def test_the_six_lines_give_the_golden_numbers(
    shared: Path, tmp_path: Path, generation: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = clone(shared, tmp_path, generation)
    monkeypatch.setenv("CELLRAY_GENEFORMER", str(tmp_path))
    golden = np.load(shared / "golden" / "embeddings.npz")
    cells = list(golden[f"{generation}_cells"])
    adata = anndata.read_h5ad(shared / "data" / "kang_ifnb.h5ad")[cells].copy()

    configurer = GeneformerConfig(model_name=model.name, batch_size=10, emb_mode=mode)
    geneformer = Geneformer(configurer=configurer)
    dataset = geneformer.process_data(adata, gene_names="ensembl_id", use_raw_counts=True)
    embeddings = geneformer.get_embeddings(dataset)

    tokens = pq.read_table(shared / "golden" / f"tokens_{generation}.parquet").to_pandas().set_index("cell_id")
    assert dataset["cell_id"] == cells
    assert dataset["input_ids"] == [list(tokens["input_ids"][cell]) for cell in cells]
    assert isinstance(embeddings, np.ndarray)
    assert np.abs(embeddings - golden[f"{generation}_{mode}_layer-1"]).max() < 1e-5
    last = Geneformer(model_config=GeneformerConfig(str(model), emb_layer=0, emb_mode=mode))
    assert np.abs(last.get_embeddings(dataset) - golden[f"{generation}_{mode}_layer0"]).max() < 1e-5


def test_genes_come_as_series(shared: Path, tmp_path: Path, generation: str) -> None:
    model = clone(shared, tmp_path, generation)
    golden = np.load(shared / "golden" / "embeddings.npz")
    cell = golden[f"{generation}_cells"][:1]
    adata = anndata.read_h5ad(shared / "data" / "kang_ifnb.h5ad")[list(cell)].copy()
    geneformer = Geneformer(GeneformerConfig(str(model), emb_mode="gene"))
    (series,) = geneformer.get_embeddings(geneformer.process_data(adata, "ensembl_id"))
    expected = golden[f"{generation}_gene_layer-1_cell0"]
    tokens = pq.read_table(shared / "golden" / f"tokens_{generation}.parquet").to_pandas().set_index("cell_id")
    ids = tokens["input_ids"][cell[0]]
    is_gene = np.isin(ids, list(geneformer.vocabulary.gene_of_token))
    assert isinstance(series, pd.Series)
    assert list(series.index) == [geneformer.vocabulary.gene_of_token[token] for token in ids[is_gene]]
    kept = expected if len(expected) == len(series) else expected[is_gene]
    assert np.abs(np.stack(series.to_list()) - kept).max() < 1e-5


def test_it_is_what_notebooks_of_ours_give(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    model, adata = model_in(tmp_path, vocabulary), cells_of()
    geneformer = Geneformer(configurer=GeneformerConfig(model, batch_size=1, custom_attr_name_dict={"kind": "state"}))
    dataset = geneformer.process_data(adata, output_path=str(tmp_path / "cells"))
    assert len(dataset) == 18
    assert dataset["kind"] == list(adata.obs["state"])
    assert dataset[3]["cell_id"] == "cell3"
    assert dataset[1:3]["source_row"] == [1, 2]
    assert [row["length"] for row in dataset] == dataset["length"]
    assert {"input_ids", "length", "kind"} <= set(dataset.column_names)
    assert list(dataset.to_pandas()["cell_id"]) == dataset["cell_id"]
    found = geneformer.get_embeddings(dataset)
    np.testing.assert_allclose(found, embed(adata, model), atol=1e-6)
    some, genes = geneformer.get_embeddings(dataset.select([5, 2]), output_genes=True)
    np.testing.assert_allclose(some, found[[5, 2]], atol=1e-6)
    name_of = vocabulary.gene_of_token
    assert genes == [[name_of[token] for token in dataset[row]["input_ids"]] for row in (5, 2)]

    from datasets import load_from_disk

    theirs = load_from_disk(str(tmp_path / "cells.dataset"))
    assert theirs["kind"][:] == dataset["kind"]
    np.testing.assert_allclose(geneformer.get_embeddings(theirs), found, atol=1e-6)
    per_gene = Geneformer(GeneformerConfig(model, emb_mode="gene")).get_embeddings(theirs)
    assert [list(series.index) for series in per_gene[:3]] == geneformer.get_embeddings(dataset, output_genes=True)[1][
        :3
    ]
    assert geneformer.config["batch_size"] == 1


def test_cells_without_genes_are_told(
    vocabulary: GeneVocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adata = cells_of()
    adata.X = adata.X.toarray()
    adata.X[4] = 0
    geneformer = Geneformer(GeneformerConfig(model_in(tmp_path, vocabulary), custom_attr_name_dict={"state": "mine"}))
    with caplog.at_level(logging.WARNING):
        dataset = geneformer.process_data(adata)  # keys that are columns are understood, too
    assert "1 of 18 cells are left out: 1 no counts" in caplog.text
    assert 4 not in dataset["source_row"]
    assert "mine" in dataset.column_names
    assert len(geneformer.get_embeddings(dataset)) == 17


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"emb_layer": 3}, "must be 0 or below; found 3"),
        ({"emb_mode": "mean"}, "must be 'cell' or 'cls' or 'gene'; found 'mean'"),
        ({"batch_size": 0}, "a whole number from 1 on; found 0"),
        ({"accelerator": True}, "found True. Leave it out: device says where"),
        ({"nproc": "many"}, "a whole number from 1 on"),
        ({"custom_attr_name_dict": ["a"]}, "a dict of names or None"),
    ],
)
def test_options_that_cannot_be_had(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match="GeneformerConfig") as caught:
        GeneformerConfig("model", **options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_released_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELLRAY_GENEFORMER", raising=False)
    with pytest.raises(InputError, match=r"gf-12L-38M-i4096: a released model must be on this machine; found no CELL"):
        Geneformer(GeneformerConfig(batch_size=10))
    monkeypatch.setenv("CELLRAY_GENEFORMER", str(tmp_path))
    with pytest.raises(InputError, match=r"none of 'Geneformer-V2-104M', 'gf-12L-104M-i4096' in .*git lfs"):
        model_directory("gf-12L-104M-i4096")
    for folder in ("Geneformer-V2-104M", "v1/gf-6L-10M-i2048"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").touch()
    assert model_directory("gf-12L-104M-i4096") == str(tmp_path / "Geneformer-V2-104M")
    assert model_directory("gf-6L-30M-i2048") == str(tmp_path / "v1/gf-6L-10M-i2048")
    assert model_directory("gf-6L-30M-i2048", {"gf-6L-30M-i2048": "/mine"}) == "/mine"
    assert model_directory("models:/geneformer@best") == "models:/geneformer@best"


def test_where_the_official_classifier_would_have_put_a_model(tmp_path: Path) -> None:
    """Notebooks put the name together from the date and the prefix."""
    theirs, ours = f"{tmp_path}/231121_geneformer_cellClassifier_my_cells", f"{tmp_path}/my_cells.model"
    for name in (theirs, f"{theirs}/", f"{theirs}/ksplit1", f"{theirs}/ksplit1/"):
        assert model_directory(name) == ours
    assert model_directory("231121_geneformer_geneClassifier_g/ksplit1") == "g.model"
    with pytest.raises(InputError, match="models of single folds are not kept; found ksplit2"):
        model_directory(f"{theirs}/ksplit2/")
    (Path(theirs) / "ksplit1").mkdir(parents=True)
    assert model_directory(f"{theirs}/ksplit1/") == f"{theirs}/ksplit1/"  # a model of theirs


def test_what_is_refused(
    vocabulary: GeneVocabulary, vocabulary_v2: GeneVocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CELLRAY_GENEFORMER", raising=False)
    model = model_in(tmp_path, vocabulary)
    (tmp_path / "other").mkdir()
    config = GeneformerConfig(model)
    geneformer = Geneformer(config)
    dataset = geneformer.process_data(cells_of())
    with pytest.raises(InputError, match="takes one configuration"):
        Geneformer(config, model_config=config)
    with pytest.raises(InputError, match=r"the vocabulary must have <cls>"):
        Geneformer(GeneformerConfig(model, emb_mode="cls"))
    with pytest.raises(InputError, match=r"output_attentions=.*must be False; found True\. Use jobs\.attention"):
        geneformer.get_embeddings(dataset, output_attentions=True)
    with pytest.raises(InputError, match="needs the column input_ids"):
        geneformer.get_embeddings({"tokens": []})
    with pytest.raises(InputError, match=r"token ids must lie in 0\.\.31; found 99 in row 1"):
        geneformer.get_embeddings({"input_ids": [[2, 3], [99]]})
    second = Geneformer(GeneformerConfig(model_in(tmp_path / "other", vocabulary_v2)))
    with pytest.raises(InputError, match="its vocabulary must be the model's"):
        second.get_embeddings(dataset)
    asked = Geneformer(GeneformerConfig(model, custom_attr_name_dict={"kind": "tissue"}))
    with pytest.raises(InputError, match=r"its values are obs columns; found 'tissue'; obs has 'donor', 'state'"):
        asked.process_data(cells_of())
    logs = cells_of()
    logs.X = np.log1p(logs.X.toarray())
    with pytest.raises(InputError, match="must hold raw counts"):
        geneformer.process_data(logs, use_raw_counts=False)
    if torch.accelerator.current_accelerator(check_available=True) is None:
        with pytest.raises(InputError, match="device: needs a GPU that torch can use"):
            Geneformer(GeneformerConfig(model, device="gpu"))
    for name in ("vocabulary.json", "provenance.json"):
        (Path(model) / name).unlink()
    with pytest.raises(InputError, match=r"the genes of its 32 tokens must be known; found no token_dictionary\*\.pkl"):
        Geneformer(config)
    vocabulary.save(str(tmp_path / "v.json"))
    named = Geneformer(GeneformerConfig(model, vocabulary=str(tmp_path / "v.json")))
    assert named.process_data(cells_of())["input_ids"] == dataset["input_ids"]
    assert GENES[0] in named.vocabulary.genes


def test_a_notebook_is_not_flooded(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    dataset = Geneformer(GeneformerConfig(model_in(tmp_path, vocabulary))).process_data(cells_of())
    assert repr(dataset).startswith("TokenizedCells: 18 cells, columns input_ids, ")
    assert repr(dataset).endswith(f", vocabulary of {len(vocabulary):,} tokens")
    assert len(repr(dataset)) < 200
    assert repr(dataset.vocabulary).startswith(f"GeneVocabulary: {len(vocabulary):,} tokens, ensembl ids")


def test_errors_speak_of_its_own_options(
    vocabulary: GeneVocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    geneformer, adata = Geneformer(GeneformerConfig(model_in(tmp_path, vocabulary))), cells_of()
    with pytest.raises(InputError, match=r"must be an AnnData; found 'cells.h5ad'\. Give anndata.read_h5ad"):
        geneformer.process_data("cells.h5ad")  # type: ignore[arg-type]
    adata.var["gene_symbol"], adata.var["ensembl_id"] = "x", list(adata.var_names)
    found = r"columns .*'ensembl_id', 'gene_symbol'.* \(did you mean 'gene_symbol'\?\)\. Correct gene_names"
    with pytest.raises(InputError, match=found):
        geneformer.process_data(adata, gene_names="gene_symbl")
    (tmp_path / "full.dataset").mkdir()
    (tmp_path / "full.dataset" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"Choose another output_path\."):
        geneformer.process_data(adata, output_path=str(tmp_path / "full"))
    assert "10 of 40 genes (var index) are unknown to the vocabulary and left out" in caplog.text
