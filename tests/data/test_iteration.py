"""Iterating a corpus: as a torch dataset, as Ray Data; and what training and embedding see of a concatenation."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cellray.data.corpora.concatenate import ConcatConfig, concat_corpora
from cellray.data.corpora.corpus import Corpus
from cellray.data.corpora.torch_dataset import CorpusDataset
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary
from tests.data.corpora import rows_of, tokenized

Make = Callable[..., Path]


@pytest.fixture
def corpus(make_h5ad: Make, vocabulary: GeneVocabulary, tmp_path: Path) -> Corpus:
    """Two corpora as one; `age` is a whole number in one and not in the other."""
    obs = ({"age": np.arange(90), "x": ["a"] * 90}, {"x": ["b"] * 60, "age": np.linspace(0, 1, 60)})
    uris = [
        tokenized(
            [make_h5ad(f"{i}.h5ad", cells=len(o["age"]), seed=i, obs=dict(o))],
            vocabulary,
            tmp_path / f"c{i}",
            list(o),
            25,
        ).uri
        for i, o in enumerate(obs)
    ]
    concat_corpora(ConcatConfig(corpus=tuple(uris), output=str(tmp_path / "both")))
    return Corpus.open(str(tmp_path / "both"))


def names(cells: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(cell["x"], cell["source_row"]) for cell in cells]


def test_cells_come_as_they_are(corpus: Corpus) -> None:
    cells, rows = list(CorpusDataset(corpus, ("age", "source_row", "x"), range_cells=8)), rows_of(corpus)
    assert [cell["input_ids"].tolist() for cell in cells] == [row["input_ids"] for row in rows]
    assert all(cell["input_ids"].dtype == torch.int64 for cell in cells)
    assert [{k: v for k, v in cell.items() if k != "input_ids"} for cell in cells] == [
        {name: row[name] for name in ("length", "age", "source_row", "x")} for row in rows
    ]
    assert set(next(iter(CorpusDataset(corpus)))) == {"input_ids", "length"}


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 0), (2, 2)])
def test_every_cell_comes_once_whoever_reads(corpus: Corpus, world_size: int, workers: int, seed: int | None) -> None:
    seen = []
    for rank in range(world_size):
        dataset = CorpusDataset(
            corpus, ("x", "source_row"), rank=rank, world_size=world_size, seed=seed, buffer_cells=20, range_cells=8
        )
        share = [cell for batch in DataLoader(dataset, batch_size=None, num_workers=workers) for cell in names([batch])]
        assert len(share) == pytest.approx(150 / world_size, abs=16)
        seen.extend(share)
    assert sorted(seen) == sorted(names(rows_of(corpus)))  # type: ignore[type-var]


def test_the_order_is_that_of_seed_and_epoch(corpus: Corpus) -> None:
    def order(seed: int, epoch: int, buffer_cells: int = 50) -> list[tuple[object, object]]:
        dataset = CorpusDataset(corpus, ("x", "source_row"), seed=seed, buffer_cells=buffer_cells, range_cells=8)
        dataset.set_epoch(epoch)
        return names(list(dataset))

    assert order(0, 0) == order(0, 0)
    assert len({str(order(*key)) for key in ((0, 0), (0, 1), (1, 0), (0, 0, 5))}) == 4
    places = [[x for x, _ in order(0, 0)][i : i + 50].count("a") for i in (0, 50, 100)]
    assert max(places) < 45  # the corpora are mixed: in order the first fifty are all of the first


def test_batches_are_padded(corpus: Corpus) -> None:
    dataset = CorpusDataset(corpus, ("x", "length"))
    batch = next(iter(DataLoader(dataset, batch_size=7, collate_fn=dataset.collate)))
    rows = rows_of(corpus)[:7]
    assert batch["length"].tolist() == [row["length"] for row in rows] == batch["attention_mask"].sum(1).tolist()
    assert batch["x"] == ["a"] * 7
    for padded, row in zip(batch["input_ids"].tolist(), rows, strict=True):
        assert padded == row["input_ids"] + [0] * (len(padded) - len(row["input_ids"]))  # type: ignore[arg-type, operator]


def test_what_is_not_there(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="every column asked for must exist; found no 'donor'; the corpus has 'age'"):
        CorpusDataset(corpus, ("donor",))
    with pytest.raises(InputError, match=r"rank: must lie in 0\.\.world_size - 1; found 2 of 2"):
        CorpusDataset(corpus, rank=2, world_size=2)


@pytest.mark.usefixtures("ray_session")
def test_a_corpus_as_ray_data(corpus: Corpus) -> None:
    def key(row: dict[str, object]) -> tuple[object, object]:
        return (row["x"], row["source_row"])

    found = sorted(corpus.ray_dataset().take_all(), key=key)  # type: ignore[type-var, arg-type]
    expected = sorted(rows_of(corpus), key=key)  # type: ignore[type-var, arg-type]
    assert [list(row["input_ids"]) for row in found] == [row["input_ids"] for row in expected]
    for name in ("age", "cell_id", "n_counts", "length"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    assert corpus.ray_dataset(["length"]).sum("length") == sum(row["length"] for row in expected)  # type: ignore[misc]
    assert corpus.ray_dataset(["length", "age"]).schema().names == ["length", "age"]
    with pytest.raises(InputError, match="no 'donor'"):
        corpus.ray_dataset(["donor"])


def test_training_sees_every_cell_of_a_concatenation_once(corpus: Corpus) -> None:
    from cellray.train.feed import Feed, spans
    from cellray.train.order import RandomPart, TrainingOrder

    order = TrainingOrder(spans(corpus), 8, RandomPart(0.2, 0, held=False), 0)
    feed = Feed(order, RandomPart(0.2, 0, held=True), 0, 1, pad_id=0, pass_tokens=100)
    training = list(itertools.islice(feed.steps(0), order.steps(0)))
    held = feed.held_out()
    assert min(len(training), len(held)) > 1
    batches = [batch for passes in (*training, held) for batch in passes]
    found = sorted(row[row > 0].tolist() for batch in batches for row in batch.input_ids_nl)
    assert found == sorted(row["input_ids"] for row in rows_of(corpus))  # type: ignore[type-var]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_embeddings_of_a_concatenation_are_those_of_its_parts(
    corpus: Corpus, vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    import anndata
    from transformers import BertForMaskedLM

    from cellray.infer.embed import EmbedConfig, embed_cells
    from cellray.infer.results import Embeddings, write_h5ad
    from cellray.model.checkpoint import save_model
    from cellray.model.presets import bert_config

    torch.manual_seed(0)
    model = str(tmp_path / "model")
    save_model(BertForMaskedLM(bert_config("tiny", vocabulary, 16)), vocabulary, {}, model)
    alone = []
    for name in ("c0", "c1"):
        embed_cells(
            EmbedConfig(corpus=str(tmp_path / name), model=model, output=str(tmp_path / f"e_{name}"), actors=(0, 0))
        )
        embeddings = Embeddings.open(str(tmp_path / f"e_{name}"))
        alone.append(embeddings.matrix(embeddings.table()))
    twice = str(tmp_path / "twice")
    uris = tuple(str(tmp_path / name) for name in ("c1", "c0", "c1"))
    concat_corpora(ConcatConfig(corpus=uris, output=twice, allow_repeated=True))
    embed_cells(EmbedConfig(corpus=twice, model=model, output=str(tmp_path / "e"), actors=(0, 0)))
    embeddings = Embeddings.open(str(tmp_path / "e"))
    table = embeddings.table()
    assert table["age"].to_pylist() == [row["age"] for row in rows_of(twice)]
    assert table["source_row"].to_pylist() == [row["source_row"] for row in rows_of(twice)]
    assert np.allclose(embeddings.matrix(table), np.concatenate([alone[1], alone[0], alone[1]]), atol=1e-6)
    assert write_h5ad(embeddings, str(tmp_path / "e.h5ad")) == (210, 210)
    adata = anndata.read_h5ad(tmp_path / "e.h5ad")
    assert np.allclose(adata.obsm["X_cellray"], np.concatenate([alone[1], alone[0], alone[1]]), atol=1e-6)
    assert adata.obs["x"].tolist() == ["b"] * 60 + ["a"] * 90 + ["b"] * 60


@pytest.mark.usefixtures("ray_session")
def test_one_worker_or_two_split_into_the_same_bytes(corpus: Corpus, tmp_path: Path) -> None:
    from cellray.data.corpora.splitting import SplitConfig, split_corpus

    made = []
    for workers in (1, 2):
        output = tmp_path / str(workers)
        split_corpus(SplitConfig(corpus=corpus.uri, output=str(output), shares=("a=0.6", "b=0.4"), workers=workers))
        made.append({p.relative_to(output): p.read_bytes() for p in output.rglob("*") if p.is_file()})
    assert made[0] == made[1]
    assert {path.parts[0] for path in made[0]} == {"a", "b"}
