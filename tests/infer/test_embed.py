"""Embedding on Ray: equal to embedding alone, resumed, refused, and turned into files people use."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from cellray.data.collate import TokenRows
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.errors import InputError
from cellray.infer.embed import EmbedConfig, embed_cells, embed_rows
from cellray.infer.evaluate import knn_label_accuracy, pca_of_log_counts
from cellray.infer.results import Embeddings, check_h5ad_target, draw_umap, write_h5ad
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.encoder import load_encoder
from cellray.model.pooling import is_gene_token
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary
from tests.conftest import random_counts

pytestmark = pytest.mark.usefixtures("ray_session")
Make = Callable[..., Path]


@pytest.fixture
def corpus(make_h5ad: Make, vocabulary_v2: GeneVocabulary, tmp_path: Path) -> str:
    """Two files; of the first one's cells, cell 3 is filtered out."""
    vocabulary_v2.save(str(tmp_path / "vocabulary.json"))
    kinds = np.array(["a", "b"])[np.arange(40) % 2]
    obs = {
        "kind": kinds,
        "age": np.arange(40),
        "good": kinds == "a",
        "filter_pass": [0 if i == 3 else 1 for i in range(40)],
    }
    sources = (make_h5ad("one.h5ad", x=random_counts(40, 40), obs=obs), make_h5ad("two.h5ad", cells=25, seed=5))
    tokenize_corpus(
        TokenizeConfig(
            source=tuple(map(str, sources)),
            vocabulary=str(tmp_path / "vocabulary.json"),
            output=str(tmp_path / "corpus"),
            obs_columns=("kind",),
            cells_per_shard=30,
        )
    )
    return str(tmp_path / "corpus")


@pytest.fixture
def model(vocabulary_v2: GeneVocabulary, tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_model(BertForMaskedLM(bert_config("tiny", vocabulary_v2, 16)), vocabulary_v2, {}, str(tmp_path / "model"))
    return str(tmp_path / "model")


def test_embeddings_are_those_of_each_cell_alone(corpus: str, model: str, tmp_path: Path) -> None:
    encoder = load_encoder(ModelDirectory.open(model), -1)
    opened = Corpus.open(corpus)
    cells = [row for shard in opened.shard_uris for row in read_rows(shard, 0, 1 << 30).to_pylist()]
    base = EmbedConfig(corpus=corpus, model=model, output="", cells_per_part=8)
    for pooling, actors in (("cell", (1, 1)), ("cls", (0, 0))):
        output = str(tmp_path / pooling)
        manifest = embed_cells(base.model_copy(update={"output": output, "pooling": pooling, "actors": actors}))
        assert manifest.rows == 64
        assert max(part.rows for part in manifest.parts) == 8
        embeddings = Embeddings.open(output)
        table = embeddings.table()
        assert table["cell_id"].to_pylist() == [cell["cell_id"] for cell in cells]
        assert table["kind"].to_pylist() == [cell["kind"] for cell in cells]
        for cell, got in zip(cells, embeddings.matrix(table), strict=True):
            with torch.inference_mode():
                hidden_ld = encoder(torch.tensor([cell["input_ids"]]))[0]
            expected = hidden_ld[0] if pooling == "cls" else hidden_ld[1:-1].mean(0)
            assert np.allclose(got, expected.numpy(), atol=1e-5)


def test_gene_embeddings_name_their_genes(corpus: str, model: str, tmp_path: Path) -> None:
    embed_cells(EmbedConfig(actors=(0, 0), corpus=corpus, model=model, output=str(tmp_path / "gene"), pooling="gene"))
    embeddings = Embeddings.open(str(tmp_path / "gene"))
    rows = embeddings.table().slice(0, 40).to_pylist()
    opened = Corpus.open(corpus)
    first = read_rows(opened.shard_uris[0], 0, 1).to_pylist()[0]
    own = [row for row in rows if row["cell_id"] == first["cell_id"]]
    genes = opened.vocabulary.gene_of_token
    assert [row["gene"] for row in own] == [genes[token] for token in first["input_ids"][1:-1]]
    encoder = load_encoder(ModelDirectory.open(model), -1)
    with torch.inference_mode():
        expected = encoder(torch.tensor([first["input_ids"]]))[0, 1:-1]
    assert np.allclose([row["embedding"] for row in own], expected.numpy(), atol=1e-5)
    with pytest.raises(InputError, match="needs one embedding a cell"):
        write_h5ad(embeddings, str(tmp_path / "x.h5ad"))


def test_a_finished_result_is_kept_and_a_broken_off_one_completed(corpus: str, model: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    config = EmbedConfig(actors=(0, 0), corpus=corpus, model=model, output=str(output), cells_per_part=16)
    first = embed_cells(config)
    parts = {p: p.read_bytes() for p in output.glob("shards/*.parquet")}
    (output / "manifest.json").unlink()
    next(iter(parts)).unlink()
    assert embed_cells(config) == first
    assert {p: p.read_bytes() for p in output.glob("shards/*.parquet")} == parts
    with pytest.raises(InputError, match="must be empty or hold this very result; found another embeddings"):
        embed_cells(config.model_copy(update={"layer": 0}))
    with pytest.raises(InputError, match="must be empty or hold this very result; found token corpus"):
        embed_cells(config.model_copy(update={"output": corpus}))


@pytest.mark.filterwarnings("ignore:Observation names are not unique")  # two files may name cells alike
def test_the_h5ad_has_every_cell_of_the_sources_in_order(corpus: str, model: str, tmp_path: Path) -> None:
    embed_cells(EmbedConfig(actors=(0, 0), corpus=corpus, model=model, output=str(tmp_path / "out")))
    embeddings = Embeddings.open(str(tmp_path / "out"))
    assert write_h5ad(embeddings, str(tmp_path / "out.h5ad")) == (65, 64)
    adata = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert adata.obs_names.tolist() == [f"cell{i}" for i in (*range(40), *range(25))]
    assert adata.obs["age"].tolist()[:40] == list(range(40))
    assert adata.obs["good"].isna().tolist() == [False] * 40 + [True] * 25  # the second file has no such column
    assert adata.obs["cellray_embedded"].tolist() == [i != 3 for i in range(65)]
    assert adata.obs["cellray_source"].cat.categories.tolist() == [str(tmp_path / f"{n}.h5ad") for n in ("one", "two")]
    kept = adata.obsm["X_cellray"][adata.obs["cellray_embedded"]]
    assert np.array_equal(kept, embeddings.matrix(embeddings.table()))
    assert np.isnan(adata.obsm["X_cellray"][3]).all()


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_an_h5ad_of_the_users_is_not_replaced(corpus: str, model: str, tmp_path: Path) -> None:
    sources = [record.uri for record in Corpus.open(corpus).manifest.sources]
    for target in (sources[0], str(tmp_path / "vocabulary.json")):
        before = Path(target).read_bytes()
        with pytest.raises(InputError, match="may replace only embeddings written before"):
            check_h5ad_target(target, corpus)
        assert Path(target).read_bytes() == before
    embed_cells(EmbedConfig(actors=(0, 0), corpus=corpus, model=model, output=str(tmp_path / "out")))
    target = str(tmp_path / "new.h5ad")
    check_h5ad_target(target, corpus)
    write_h5ad(Embeddings.open(str(tmp_path / "out")), target)
    check_h5ad_target(target, corpus)
    Path(sources[1]).write_bytes(b"")
    with pytest.raises(InputError, match="may not change after tokenization"):
        check_h5ad_target(target, corpus)


def test_what_does_not_fit_fails_before_anything_is_written(
    corpus: str, model: str, vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    config = EmbedConfig(actors=(0, 0), corpus=corpus, model=model, output=str(tmp_path / "out"))
    other = str(tmp_path / "other")
    save_model(BertForMaskedLM(bert_config("tiny", vocabulary, 16)), vocabulary, {}, other)
    for change, message in (
        ({"model": other}, "its vocabulary must be that of corpus"),
        ({"layer": -9}, r"--layer must lie in -3\.\.0"),
        (
            {"label": "donor", "umap": "x.png"},
            "--label must name an obs column the corpus kept; found 'donor'; kept: kind",
        ),
        ({"corpus": str(tmp_path)}, r"a token corpus holds manifest\.json"),
        ({"model": str(tmp_path)}, r"holds config\.json"),
    ):
        with pytest.raises(InputError, match=message):
            embed_cells(config.model_copy(update=change))
    assert not (tmp_path / "out").exists()


def test_the_budget_changes_no_value(vocabulary_v2: GeneVocabulary, model: str) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 17, 30)
    ids = [np.r_[2, rng.permutation(np.arange(4, 34))[: n - 2], 3] for n in lengths]
    rows = TokenRows(np.concatenate(ids).astype(np.uint16), np.r_[0, np.cumsum(lengths)])
    encoder, gene_v = load_encoder(ModelDirectory.open(model), -1), is_gene_token(vocabulary_v2)
    alone = embed_rows(encoder, rows, "cell", gene_v, 1)
    together = embed_rows(encoder, rows, "cell", gene_v, 10_000)
    assert np.allclose(alone, together, atol=1e-5)


def test_the_umap_is_a_picture(corpus: str, model: str, tmp_path: Path) -> None:
    embed_cells(EmbedConfig(actors=(0, 0), corpus=corpus, model=model, output=str(tmp_path / "out")))
    assert (
        draw_umap(Embeddings.open(str(tmp_path / "out")), "kind", str(tmp_path / "u.png"), "title", max_cells=30) == 30
    )
    assert (tmp_path / "u.png").read_bytes()[:4] == b"\x89PNG"


def test_neighbours_tell_labels_where_there_is_something_to_tell() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 60)
    signal = rng.normal(size=(180, 5)) + 10 * np.repeat(np.eye(3, 5), 60, axis=0)
    assert knn_label_accuracy(signal, labels) == 1.0
    assert knn_label_accuracy(rng.normal(size=(180, 5)), labels) < 0.5
    with pytest.raises(ValueError, match="two labels with at least 5 cells"):
        knn_label_accuracy(signal[:60], labels[:60])


def test_pca_sees_the_counts_of_the_matrix_asked_for(make_h5ad: Make) -> None:
    path = make_h5ad(x=random_counts(60, 40), layers={"other": random_counts(60, 40, seed=9)})
    first, other = pca_of_log_counts(path, dimensions=3), pca_of_log_counts(path, "layers/other", dimensions=3)
    assert first.shape == other.shape == (60, 3)
    assert not np.allclose(np.abs(first), np.abs(other))


def test_an_imported_dataset_becomes_an_h5ad_too(model: str, vocabulary_v2: GeneVocabulary, tmp_path: Path) -> None:
    from datasets import Dataset

    from cellray.data.corpora.hf_import import ImportConfig, import_dataset

    rows = [[2, 5, 6, 3], [2, 3], [2, 9, 3]]
    saved = Dataset.from_dict({"input_ids": rows, "length": [4, 2, 3], "type": ["a", "b", "c"]})
    saved.save_to_disk(str(tmp_path / "d.dataset"))
    vocabulary_v2.save(str(tmp_path / "v.json"))
    imported = ImportConfig(
        dataset=str(tmp_path / "d.dataset"), vocabulary=str(tmp_path / "v.json"), output=str(tmp_path / "imported")
    )
    import_dataset(imported)
    embed_cells(EmbedConfig(actors=(0, 0), corpus=imported.output, model=model, output=str(tmp_path / "out")))
    check_h5ad_target(str(tmp_path / "out.h5ad"), imported.output)
    assert write_h5ad(Embeddings.open(str(tmp_path / "out")), str(tmp_path / "out.h5ad")) == (3, 2)
    adata = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert adata.obs_names.tolist() == ["0", "1", "2"]
    assert adata.obs["type"].tolist() == ["a", "b", "c"]
    assert adata.obs["cellray_embedded"].tolist() == [True, False, True]
