"""`EmbExtractor`: the golden numbers, tables as theirs, states that screens read, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from cellray.compat.geneformer import EmbExtractor
from cellray.compat.geneformer.pooled import vectors_of
from cellray.compat.official_files import model_vocabulary
from cellray.data.corpora.hf_dataset import export_dataset
from cellray.errors import InputError
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.results import Embeddings
from cellray.infer.states import read_states
from cellray.model.checkpoint import ModelDirectory
from cellray.vocabulary import GeneVocabulary
from tests.compat.conftest import clone, golden_dataset
from tests.infer.tiny import corpus_in, model_in

Place = tuple[str, str, str]


@pytest.fixture
def place(vocabulary: GeneVocabulary, tmp_path: Path) -> Place:
    """Return a model, a dataset of 18 cells in three states, and a folder for results."""
    corpus = corpus_in(tmp_path, vocabulary)
    dataset = export_dataset(corpus, str(tmp_path / "cells.dataset"))
    return model_in(tmp_path, vocabulary), dataset, str(tmp_path)


def own_embeddings(place: Place, **options: object) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the job's embeddings of the same cells."""
    model, _, folder = place
    output = f"{folder}/job"
    embed_cells(EmbedConfig(corpus=f"{folder}/corpus", model=model, output=output, actors=(0, 0), **options))
    embeddings = Embeddings.open(output)
    table = embeddings.table()
    return table.drop_columns(["embedding"]).to_pandas(), embeddings.matrix(table)


@pytest.mark.parametrize(
    ("generation", "mode", "layer"),
    [
        ("v1", "cell", -1),
        ("v2", "cell", 0),
        pytest.param("v1", "cell", 0, marks=pytest.mark.chaos),
        pytest.param("v2", "cls", -1, marks=pytest.mark.chaos),
    ],
)
def test_golden_embeddings(shared: Path, tmp_path: Path, generation: str, mode: str, layer: int) -> None:
    model, dataset = clone(shared, tmp_path, generation), golden_dataset(shared, tmp_path, generation)
    golden = np.load(shared / "golden" / "embeddings.npz")
    extractor = EmbExtractor(emb_mode=mode, emb_layer=layer, emb_label=["state", "name"], forward_batch_size=2)
    table = extractor.extract_embs(model, dataset, tmp_path / "out", "golden")
    assert list(table["name"]) == list(golden[f"{generation}_cells"])  # longest first, as theirs
    written = pd.read_csv(tmp_path / "out" / "golden.csv", index_col=0)
    assert list(written.columns) == [*map(str, range(32)), "state", "name"]
    for found in (table, written):
        assert np.abs(found.iloc[:, :32].to_numpy() - golden[f"{generation}_{mode}_layer{layer}"]).max() < 1e-5


def test_golden_genes(shared: Path, tmp_path: Path, generation: str) -> None:
    """Of one cell, whose genes' means are its genes."""
    model, dataset = clone(shared, tmp_path, generation), golden_dataset(shared, tmp_path, generation)
    golden = np.load(shared / "golden" / "embeddings.npz")
    first = golden[f"{generation}_cells"][0]
    extractor = EmbExtractor(emb_mode="gene", filter_data={"name": [first]})
    table, vectors = extractor.extract_embs(model, dataset, tmp_path, "genes", output_torch_embs=True)
    vocabulary = model_vocabulary(ModelDirectory.open(str(model)))
    tokens = pq.read_table(shared / "golden" / f"tokens_{generation}.parquet").to_pandas().set_index("cell_id")
    ids = tokens["input_ids"][first]
    is_gene = np.isin(ids, list(vocabulary.gene_of_token))
    expected = golden[f"{generation}_gene_layer-1_cell0"]
    kept = expected if len(expected) == is_gene.sum() else expected[is_gene]  # special tokens are no genes
    assert len(kept) == is_gene.sum() == len(table)
    genes = [vocabulary.gene_of_token[token] for token in ids[is_gene]]
    assert np.abs(table.loc[genes].to_numpy() - kept).max() < 1e-5
    assert table.index.str.startswith("ENSG").all()
    np.testing.assert_array_equal(vectors.numpy(), table.to_numpy())


def test_cells_are_filtered_drawn_and_labelled(place: Place) -> None:
    model, dataset, folder = place
    cells, matrix = own_embeddings(place)
    kept = cells[cells["state"].isin(["sick", "well"])]
    extractor = EmbExtractor(
        emb_mode="cell", filter_data={"state": ["sick", "well"]}, emb_label=["cell_id", "donor"], max_ncells=None
    )
    # the names of cells are no obs columns
    with pytest.raises(InputError, match="emb_label must name an obs column the corpus kept"):
        extractor.extract_embs(model, dataset, folder, "a")
    extractor = EmbExtractor(
        emb_mode="cell", filter_data={"state": ["sick", "well"]}, emb_label=["state", "donor"], max_ncells=None
    )
    table, vectors = extractor.extract_embs(model, dataset, folder, "a", output_torch_embs=True)
    assert len(table) == len(kept) == 12
    assert list(table.columns[-2:]) == ["state", "donor"]
    expected = {tuple(np.round(matrix[i], 4)): (row.state, row.donor) for i, row in kept.iterrows()}
    got = {
        tuple(np.round(v, 4)): (row.state, row.donor)
        for v, row in zip(vectors.numpy(), table.itertuples(), strict=True)
    }
    assert got == expected
    few = EmbExtractor(emb_mode="cell", max_ncells=4, emb_label=["state"])
    one, again = (few.extract_embs(model, dataset, folder, "b") for _ in range(2))
    assert len(one) == 4
    pd.testing.assert_frame_equal(one, again)
    assert pd.read_csv(f"{folder}/b.csv", index_col=0).shape == (4, one.shape[1])
    whole = EmbExtractor(emb_mode="cell", max_ncells=None).extract_embs(model, f"{folder}/corpus", folder, "c")
    np.testing.assert_allclose(whole.to_numpy().sum(0), matrix.sum(0), rtol=1e-4, atol=1e-4)


def test_summaries(place: Place) -> None:
    model, dataset, folder = place
    _, matrix = own_embeddings(place)
    for name, expected in (("mean", matrix.mean(0)), ("exact_median", np.median(matrix, axis=0))):
        extractor = EmbExtractor(emb_mode="cell", summary_stat=name)
        table, vector = extractor.extract_embs(model, dataset, folder, name, output_torch_embs=True)
        assert list(table.index) == [name]
        np.testing.assert_allclose(table.to_numpy()[0], expected, atol=1e-5)
        assert vector.ndim == (1 if name.startswith("exact") else 2)
        assert len(pd.read_csv(f"{folder}/{name}.csv")) == (18 if name.startswith("exact") else 1)


def test_states(place: Place) -> None:
    model, dataset, folder = place
    cells, matrix = own_embeddings(place)
    states = {"state_key": "state", "start_state": "sick", "goal_state": "well", "alt_states": ["other"]}
    extractor = EmbExtractor(emb_mode="cell", summary_stat="exact_mean")
    found = extractor.get_state_embs(states, model, dataset, folder, "states")
    written = read_states(f"{folder}/states.parquet", ("sick", "well", "other"))
    for name in ("sick", "well", "other"):
        expected = matrix[(cells["state"] == name).to_numpy()].mean(0)
        assert isinstance(found[name], torch.Tensor)
        np.testing.assert_allclose(found[name].numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(written[name], found[name].numpy())
    alone = extractor.extract_embs(model, dataset, folder, "x", cell_state={"state": "sick"})
    assert torch.equal(alone, found["sick"])
    assert not Path(folder, "x.csv").exists()
    tables = extractor.get_state_embs(states, model, dataset, folder, "states", output_torch_embs=False)
    np.testing.assert_array_equal(tables["well"].to_numpy()[0], found["well"].numpy())
    with pytest.raises(InputError, match="some cell must be chosen; found none of 18 with 'state: dead'"):
        extractor.get_state_embs({**states, "alt_states": ["dead"]}, model, dataset, folder, "states")
    with pytest.raises(InputError, match=r"summary_stat=\.\.\.\): must be exact_mean or exact_median"):
        EmbExtractor(emb_mode="cell").get_state_embs(states, model, dataset, folder, "states")
    for wrong, message in (
        ({"state_key": "state", "start_state": "a"}, "found no 'goal_state'"),
        ({**states, "alternatives": []}, "found also 'alternatives'"),
        ({**states, "alt_states": ["sick"]}, "names different states"),
    ):
        with pytest.raises(InputError, match=message):
            extractor.get_state_embs(wrong, model, dataset, folder, "states")


def test_a_table_is_drawn_from_its_csv_too(place: Place) -> None:
    model, dataset, folder = place
    table = EmbExtractor(emb_mode="cell", emb_label=["state"]).extract_embs(model, dataset, folder, "cells")
    again = pd.read_csv(f"{folder}/cells.csv", index_col=0)
    for found in (table, again, pd.read_csv(f"{folder}/cells.csv")):
        np.testing.assert_allclose(vectors_of(found, ["state"]), table.iloc[:, :-1].to_numpy(), rtol=1e-6)
    turned = again[again.columns[::-1]].rename(columns={"state": "2026"})  # a label may have a number for a name
    np.testing.assert_allclose(vectors_of(turned, ["2026"]), table.iloc[:, :-1].to_numpy(), rtol=1e-6)
    for wrong in (again[["state"]], again.drop(columns="3")):
        with pytest.raises(InputError, match=r"embs: must have columns 0, 1, \.\.\. with the embedding; found"):
            vectors_of(wrong, ["state"])


@pytest.mark.chaos
def test_pictures(place: Place) -> None:
    model, dataset, folder = place
    extractor = EmbExtractor(emb_mode="cell", emb_label=["state"], labels_to_plot=["state"])
    table = extractor.extract_embs(model, dataset, folder, "cells")
    extractor.plot_embs(table, "umap", folder, "cells")
    picture = Path(folder, "cells_umap_state.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    extractor.plot_embs(pd.read_csv(f"{folder}/cells.csv", index_col=0), "umap", folder, "cells")
    assert Path(folder, "cells_umap_state.png").read_bytes() == picture


def test_a_heatmap_of_a_table(tmp_path: Path) -> None:
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32))
    table["state"] = ["sick", "well"] * 10
    extractor = EmbExtractor(emb_mode="cell", emb_label=["state"], labels_to_plot=["state"])
    extractor.plot_embs(table, "heatmap", tmp_path, "cells", max_ncells_to_plot=15)
    assert [path.name for path in tmp_path.iterdir()] == ["cells_heatmap_state.png"]
    assert (tmp_path / "cells_heatmap_state.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"must be 'umap' or 'heatmap'; found 'violin'"):
        extractor.plot_embs(table, "violin", tmp_path, "cells")
    with pytest.raises(InputError, match="needs labels_to_plot that the table has"):
        extractor.plot_embs(table.drop(columns="state"), "heatmap", tmp_path, "cells")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "Pretrained-Quantized"}, "Quantized weights are not read"),
        ({"model_type": "MTLCellClassifier"}, "Models of the official multitask classifier are not read: train one of"),
        ({"model_type": "Bert"}, "found 'Bert'. Choose one of them."),
        ({"emb_mode": "mean"}, "must be 'cls' or 'cell' or 'gene'"),
        ({"cell_emb_style": "max"}, "must be 'mean_pool'"),
        ({"emb_layer": -2}, "must be -1 or 0; found -2"),
        ({"emb_layer": False}, "must be -1 or 0; found False"),
        ({"summary_stat": "sum"}, "must be None or 'mean' or 'median'"),
        ({"save_tdigest": True}, "summaries are exact"),
        ({"max_ncells": 0}, "a whole number from 1 on, or None"),
        ({"nproc": None}, "a whole number from 1 on"),
        ({"filter_data": ["a"]}, "a dict of a column to values"),
        ({"emb_label": "state"}, "a list of columns or None"),
        ({"labels_to_plot": ["state"]}, "must be some of emb_label; found state"),
        ({"emb_mode": "gene", "emb_label": ["state"]}, "goes with emb_mode cell or cls"),
        ({"emb_mode": "gene", "summary_stat": "exact_median"}, "goes with emb_mode cell or cls"),
        ({"model_version": "V3"}, "must be 'V1' or 'V2'"),
    ],
)
def test_options_that_cannot_be_had(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match="EmbExtractor") as caught:
        EmbExtractor(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_datasets_without_a_vocabulary(
    place: Place, vocabulary_v2: GeneVocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dataset, folder = place
    monkeypatch.delenv("CELLRAY_GENEFORMER", raising=False)
    expected = EmbExtractor(emb_mode="cell").extract_embs(model, dataset, folder, "a")
    own = Path(dataset, "vocabulary.json")
    vocabulary_v2.save(str(tmp_path / "v2.json"))
    with pytest.raises(InputError, match=r"must give the tokens of .*; found 34 tokens against 32"):
        EmbExtractor(emb_mode="cell", token_dictionary_file=tmp_path / "v2.json").extract_embs(
            model, dataset, folder, "a"
        )
    named = own.rename(tmp_path / "named.json")
    for file in (None, named):  # the model's own, and the named one
        found = EmbExtractor(emb_mode="cell", token_dictionary_file=file).extract_embs(model, dataset, folder, "a")
        pd.testing.assert_frame_equal(found, expected)
    for name in ("vocabulary.json", "provenance.json"):
        (Path(model) / name).unlink()
    with pytest.raises(InputError, match="the genes of its 32 tokens must be known"):
        EmbExtractor(emb_mode="cell").extract_embs(model, dataset, folder, "a")
    with pytest.raises(InputError, match='emb_mode="cls": the vocabulary must have <cls>'):
        EmbExtractor(token_dictionary_file=named).extract_embs(model, dataset, folder, "a")
    with pytest.raises(InputError, match="found color is not an option"):
        EmbExtractor(emb_mode="cell", token_dictionary_file=named, job_options={"color": 1}).extract_embs(
            model, dataset, folder, "a"
        )
