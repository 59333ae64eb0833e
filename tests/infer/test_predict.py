"""Predictions: equal to each cell alone, aggregated over shards, resumed, refused, and as an .h5ad."""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertForMaskedLM

from cellray.data.corpora.corpus import Corpus
from cellray.data.parts import make_part
from cellray.errors import InputError
from cellray.infer import predict
from cellray.infer.predict import PredictConfig, free_names, predict_cells
from cellray.infer.predictions import Predictions, write_predictions_h5ad
from cellray.infer.results import check_h5ad_target
from cellray.model.annotator import AnnotatedEncoder
from cellray.model.annotator_directory import load_annotator, save_annotator, start_annotator
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.heads import HeadSpec
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary
from jobs import predict as job
from tests.conftest import random_counts
from tests.data.corpora import rows_of, tokenized

Make = Callable[..., Path]
KIND = HeadSpec("kind", "classification", "cell", ("a", "b/c", "d"))
AGE = HeadSpec("age", "regression", "cell", mean=40.0, std=10.0)
DOSAGE = HeadSpec("dosage", "classification", "gene", ("sensitive", "not"))
LENGTH = HeadSpec("length", "regression", "gene", mean=3.0, std=2.0)


@pytest.fixture
def corpus(make_h5ad: Make, vocabulary_v2: GeneVocabulary, tmp_path: Path) -> Corpus:
    """Two files in four shards; of the first one's cells, cell 3 is filtered out."""
    kinds = np.array(["a", "b/c"])[np.arange(40) % 2]
    obs = {"kind": kinds, "donor": [f"d{i % 3}" for i in range(40)], "filter_pass": [int(i != 3) for i in range(40)]}
    two = {"kind": ["a"] * 25, "donor": ["d9"] * 25}
    sources = [
        make_h5ad("one.h5ad", x=random_counts(40, 40), obs=obs),
        make_h5ad("two.h5ad", cells=25, seed=5, obs=two),
    ]
    return tokenized(sources, vocabulary_v2, tmp_path / "corpus", obs=("kind", "donor"))


def tuned(vocabulary: GeneVocabulary, folder: Path, *heads: HeadSpec, pooling: str = "attention") -> str:
    """Write a fine-tuned model whose answers differ from cell to cell."""
    torch.manual_seed(0)
    save_model(BertForMaskedLM(bert_config("tiny", vocabulary, 16)), vocabulary, {}, str(folder / "pretrained"))
    model = start_annotator(ModelDirectory.open(str(folder / "pretrained")), heads, pooling)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("bert."):
                weight.normal_()
    save_annotator(model, vocabulary, {"objective": "tests"}, str(folder / "tuned"))
    return str(folder / "tuned")


@pytest.fixture
def model(vocabulary_v2: GeneVocabulary, tmp_path: Path) -> str:
    return tuned(vocabulary_v2, tmp_path, KIND, AGE, DOSAGE, LENGTH)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do units in this process, where a test is not about Ray."""

    def run_here(stage, output, units, make_worker, pool):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        worker = make_worker()
        return tuple(make_part(unit, worker, output) for unit in units)

    monkeypatch.setattr(predict, "run_units_on_actors", run_here)


def alone(model: AnnotatedEncoder, row: dict[str, object]) -> dict[str, np.ndarray]:
    """Return the answers about one cell alone; of gene level for all its tokens."""
    with torch.inference_mode():
        logits = model(torch.tensor([row["input_ids"]]))
    answers = {name: value[0].double().numpy() for name, value in logits.items()}
    for spec in model.specs:
        values = answers[spec.name]
        softmax = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
        answers[spec.name] = softmax if spec.classes else values * spec.std + spec.mean
    return answers


@pytest.mark.usefixtures("here")
def test_predictions_are_those_of_each_cell_alone(corpus: Corpus, model: str, tmp_path: Path) -> None:
    config = PredictConfig(corpus=corpus.uri, model=model, output=str(tmp_path / "out"), cells_per_part=8)
    manifest = predict_cells(config)
    assert (manifest.level, manifest.rows) == ("cell", 64)
    assert manifest.renamed == {"kind": "obs.kind"}
    opened = Predictions.open(config.output)
    assert opened.heads == (KIND, AGE)
    table = opened.table()
    probabilities = [f"kind.probability.{name}" for name in KIND.classes]
    assert table.column_names == [
        *("cell_id", "source_row", "kind", "kind_probability", *probabilities),
        *("age", "obs.kind", "donor"),
    ]
    assert {str(table.schema.field(name).type) for name in (*probabilities, "kind_probability", "age")} == {"float"}
    loaded, labels = load_annotator(ModelDirectory.open(model)), set()
    for row, cell in zip(table.to_pylist(), rows_of(corpus), strict=True):
        assert (row["cell_id"], row["source_row"]) == (cell["cell_id"], cell["source_row"])
        assert (row["obs.kind"], row["donor"]) == (cell["kind"], cell["donor"])
        expected = alone(loaded, cell)
        got = [row[name] for name in probabilities]
        assert np.allclose(got, expected["kind"], atol=1e-5)
        assert sum(got) == pytest.approx(1, abs=1e-5)
        assert row["kind"] == KIND.classes[int(np.argmax(got))]
        assert row["kind_probability"] == max(got)
        assert row["age"] == pytest.approx(expected["age"], abs=1e-3)
        labels.add(row["kind"])
    assert len(labels) > 1


@pytest.mark.usefixtures("here")
def test_genes_are_averaged_over_all_shards(corpus: Corpus, model: str, tmp_path: Path) -> None:
    config = PredictConfig(
        corpus=corpus.uri, model=model, output=str(tmp_path / "genes"), level="gene", cells_per_part=7
    )
    manifest = predict_cells(config)
    table = Predictions.open(config.output).table()
    assert manifest.rows == table.num_rows
    assert not (tmp_path / "genes" / "partial").exists()
    loaded, names = load_annotator(ModelDirectory.open(model)), corpus.vocabulary.gene_of_token
    found: dict[str, list[tuple[float, ...]]] = {}
    for cell in rows_of(corpus):
        answers = alone(loaded, cell)
        for place, token in enumerate(cell["input_ids"]):  # type: ignore[arg-type, var-annotated]
            if token in names:
                found.setdefault(names[token], []).append((*answers["dosage"][place], answers["length"][place]))
    assert table["gene"].to_pylist() == sorted(found)
    for row in table.to_pylist():
        own = np.array(found[row["gene"]])
        assert row["cells"] == len(own)
        got = [row["dosage.probability.sensitive"], row["dosage.probability.not"], row["length"]]
        assert np.allclose(got, own.mean(0), atol=1e-5)
        assert row["dosage"] == DOSAGE.classes[int(own.mean(0)[:2].argmax())]
    again = predict_cells(config.model_copy(update={"output": str(tmp_path / "whole"), "cells_per_part": 999}))
    other = Predictions.open(str(tmp_path / "whole")).table()
    assert again.rows == manifest.rows
    assert np.allclose(other["dosage_probability"].to_numpy(), table["dosage_probability"].to_numpy(), atol=1e-6)


@pytest.mark.usefixtures("here")
def test_each_token_has_its_row(corpus: Corpus, model: str, tmp_path: Path) -> None:
    config = PredictConfig(
        corpus=corpus.uri, model=model, output=str(tmp_path / "out"), level="token", obs_columns=("donor",)
    )
    predict_cells(config)
    rows = Predictions.open(config.output).table().to_pylist()
    loaded, names = load_annotator(ModelDirectory.open(model)), corpus.vocabulary.gene_of_token
    expected = [
        (cell["cell_id"], cell["donor"], names[token], answers["dosage"][place, 0], answers["length"][place])
        for cell in rows_of(corpus)
        for answers in [alone(loaded, cell)]
        for place, token in enumerate(cell["input_ids"])  # type: ignore[arg-type, var-annotated]
        if token in names
    ]
    assert [(r["cell_id"], r["donor"], r["gene"]) for r in rows] == [e[:3] for e in expected]
    got = [(r["dosage.probability.sensitive"], r["length"]) for r in rows]
    assert np.allclose(got, [e[3:] for e in expected], atol=1e-4)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("level", ["cell", "gene"])
def test_a_finished_result_is_kept_and_a_broken_off_one_completed(
    corpus: Corpus, model: str, tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    config = PredictConfig(corpus=corpus.uri, model=model, output=str(output), level=level)  # type: ignore[arg-type]
    first = predict_cells(config)
    parts = {path: path.read_bytes() for path in output.glob("shards/*.parquet")}
    (output / "manifest.json").unlink()
    next(iter(parts)).unlink()
    assert predict_cells(config) == first
    assert {path: path.read_bytes() for path in output.glob("shards/*.parquet")} == parts
    monkeypatch.setattr(predict, "run_units_on_actors", None)  # nothing is computed again
    assert predict_cells(config) == first
    with pytest.raises(InputError, match="found another predictions"):
        predict_cells(config.model_copy(update={"level": "token"}))


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore:Observation names are not unique")  # two files may name cells alike
def test_the_h5ad_has_every_cell_of_the_sources_in_order(
    corpus: Corpus, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cellray")
    target = str(tmp_path / "out.h5ad")
    config = PredictConfig(corpus=corpus.uri, model=model, output=str(tmp_path / "out"), h5ad=target)
    assert job.main(config).splitlines() == [
        f"{config.output}: predictions of 64 cells (kind, age)",
        f"{target}: 65 cells, 64 with predictions",
    ]
    adata = anndata.read_h5ad(target)
    obs, about = adata.obs, adata.uns["cellray"]
    table = Predictions.open(config.output).table().to_pandas()
    assert obs["cellray_predicted"].tolist() == [i != 3 for i in range(65)]
    assert obs["obs.kind"].tolist() == [*np.array(["a", "b/c"])[np.arange(40) % 2], *["a"] * 25]
    assert obs["kind"].cat.categories.tolist() == ["a", "b/c", "d"]
    assert pd.isna(obs["kind"].iloc[3])
    assert np.isnan(obs["age"].iloc[3])
    kept = obs[obs["cellray_predicted"]]
    assert kept["kind"].tolist() == table["kind"].tolist()
    assert kept["kind.probability.b|c"].tolist() == table["kind.probability.b/c"].tolist()
    assert kept["age"].tolist() == table["age"].tolist()
    assert json.loads(about["renamed"]) == {"kind.probability.b|c": "kind.probability.b/c"}
    assert "'kind.probability.b|c'" in caplog.text
    assert about["kind_classes"].tolist() == ["a", "b/c", "d"]
    assert list(adata.obsm) == ["cellray_kind_probabilities"]
    columns = [f"kind.probability.{name}" for name in ("a", "b|c", "d")]
    np.testing.assert_array_equal(adata.obsm["cellray_kind_probabilities"], obs[columns].to_numpy())
    check_h5ad_target(target, corpus.uri, "predictions")
    with pytest.raises(InputError, match="may replace only embeddings written before"):
        check_h5ad_target(target, corpus.uri)
    genes = predict_cells(config.model_copy(update={"output": str(tmp_path / "g"), "level": "gene", "h5ad": None}))
    assert genes.level == "gene"
    with pytest.raises(InputError, match="needs predictions of cells; found --level gene"):
        write_predictions_h5ad(Predictions.open(str(tmp_path / "g")), target)


@pytest.mark.usefixtures("here")
def test_what_does_not_fit_fails_before_anything_is_written(
    corpus: Corpus, model: str, vocabulary: GeneVocabulary, vocabulary_v2: GeneVocabulary, tmp_path: Path
) -> None:
    config = PredictConfig(corpus=corpus.uri, model=model, output=str(tmp_path / "out"))
    (tmp_path / "v1").mkdir()
    (tmp_path / "cells").mkdir()
    (tmp_path / "clash").mkdir()
    (tmp_path / "genes").mkdir()
    clash = tuned(vocabulary_v2, tmp_path / "clash", KIND, HeadSpec("kind_probability", "regression", "cell"))
    for change, message in (
        ({"model": tuned(vocabulary, tmp_path / "v1", KIND)}, "its vocabulary must be that of corpus"),
        ({"model": str(tmp_path / "pretrained")}, "predicting needs a model with heads"),
        ({"model": tuned(vocabulary_v2, tmp_path / "cells", KIND), "level": "gene"}, "it tells kind of each cell"),
        (
            {"model": tuned(vocabulary_v2, tmp_path / "genes", DOSAGE, pooling="cell"), "h5ad": "x.h5ad"},
            r"--h5ad: an \.h5ad has a row for each cell; found a model that tells dosage of each gene\. Leave out ",
        ),
        ({"model": clash}, "a column of its own; found 'kind_probability' is taken"),
        ({"obs_columns": ("age",)}, "--obs-columns must name an obs column the corpus kept; found 'age'"),
    ):
        with pytest.raises(InputError, match=message):
            predict_cells(config.model_copy(update=change))
    assert not (tmp_path / "out").exists()
    for options, message in (
        ({"level": "gene", "obs_columns": ("kind",)}, "--obs-columns belong to cells"),
        ({"level": "gene", "h5ad": "x.h5ad"}, "--h5ad needs predictions of cells"),
        ({"actors": "3,2"}, "actors"),
    ):
        with pytest.raises(ValueError, match=message):
            PredictConfig(corpus="c", model="m", output="o", **options)  # type: ignore[arg-type]


def test_names_that_predictions_take() -> None:
    assert free_names(["a", "b"], ["b", "c"]) == {"a": "a", "b": "obs.b"}
    assert free_names(["b", "obs.b"], ["b"]) == {"b": "obs.obs.b", "obs.b": "obs.b"}


@pytest.mark.usefixtures("ray_session")
def test_one_replica_or_two_give_the_same_bytes(corpus: Corpus, model: str, tmp_path: Path) -> None:
    make = functools.partial(PredictConfig, corpus=corpus.uri, model=model, cells_per_part=16, cpus_per_actor=0.5)
    one = predict_cells(make(output=str(tmp_path / "one"), threads=1))
    two = predict_cells(make(output=str(tmp_path / "two"), threads=1, actors=(2, 2)))
    assert one == two
    for part in one.parts:
        assert pq.read_table(tmp_path / "one" / part.path).equals(pq.read_table(tmp_path / "two" / part.path))
    assert [part.sha256 for part in one.parts] == [part.sha256 for part in two.parts]
