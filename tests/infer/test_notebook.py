"""Screens of an AnnData in this process: the job's table of the same cells, and what both refuse."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import cellray
from cellray.errors import InputError
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.notebook import Screen, embed, perturb
from cellray.infer.notebook_predict import predict
from cellray.infer.predict import PredictConfig, predict_cells
from cellray.infer.predictions import Predictions
from cellray.infer.results import Embeddings
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES
from tests.infer.tiny import AGE, DISEASE, DOSAGE, STATES, cells_of, corpus_in, model_in, rows_in, screened

TOWARDS = {"state_column": "state", "start": "sick", "goal": "well", "alternatives": ("other",)}


@pytest.mark.parametrize(
    "options",
    [
        {**TOWARDS, "donor": "donor", "max_cells": 4},
        {"kind": "overexpress", "genes": (GENES[3], GENES[28], GENES[5]), "pairs": True, "effects": True},
        {"kind": "delete", "genes": (GENES[0], GENES[1]), "together": True, "probabilities": True, **TOWARDS},
    ],
)
def test_the_table_is_that_of_the_job(vocabulary: GeneVocabulary, tmp_path: Path, options: dict[str, object]) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary, DISEASE, AGE)
    manifest, expected = screened(corpus, model, tmp_path / "job", **options)
    table = perturb(cells_of(), model, obs_columns=("state", "donor"), **options)
    assert len(table) > 2
    assert list(table.columns) == list(expected.columns)
    assert list(table.dtypes) == list(expected.dtypes)
    pd.testing.assert_frame_equal(table, expected, check_exact=False, rtol=1e-5, atol=1e-6)
    counts = table.attrs["counts"]
    assert (counts["cells"], counts["columns of the matrix"]) == (18, 40)
    assert counts["columns without a gene of the vocabulary"] == 10
    assert counts["cells left out"] == {k: n for k, n in manifest.skipped.items() if n}
    if manifest.lacking is not None:
        assert counts["cells that lack a gene"] == manifest.lacking.genes
    if "effects" in options:
        effects = Screen(model, obs_columns=("state", "donor"), **options).effects(cells_of())
        job = rows_in(tmp_path / "job", manifest.effect_parts)
        keys = ["cell_id", "perturbation", "affected"]
        effects, job = (each.sort_values(keys, ignore_index=True) for each in (effects, job))
        pd.testing.assert_frame_equal(effects, job, check_exact=False, rtol=1e-5, atol=1e-6)


def test_any_names_of_genes_and_any_matrix(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    symbols = {f"GENE{i}": gene for i, gene in enumerate(GENES[:30])}
    own = replace(vocabulary, symbols=symbols)
    model = model_in(tmp_path, own)
    asked = {"genes": ("GENE3", GENES[5])}
    expected = perturb(cells_of(), model, **asked)
    by_version = cells_of([f"{gene}.7" for gene in GENES])
    pd.testing.assert_frame_equal(perturb(by_version, model, **asked), expected)
    by_symbol = cells_of([f"GENE{i}" if i < 30 else f"X{i}" for i in range(40)])
    pd.testing.assert_frame_equal(perturb(by_symbol, model, **asked), expected)
    layered = cells_of()
    layered.layers["counts"] = layered.X.copy()
    layered.X = np.log1p(layered.X.toarray())
    pd.testing.assert_frame_equal(perturb(layered, model, matrix="layers/counts", **asked), expected)
    layered.raw = cells_of()
    pd.testing.assert_frame_equal(perturb(layered, model, matrix="raw", **asked), expected)
    columns = cells_of([f"x{i}" for i in range(40)])
    columns.var["id"], columns.X = GENES, sp.csc_matrix(columns.X)
    columns.strings_to_categoricals()
    pd.testing.assert_frame_equal(perturb(columns, model, gene_ids="id", **asked), expected)
    with pytest.raises(InputError, match=r"must hold raw counts.*log-normalised.*\('layers/counts', 'raw'\)"):
        perturb(layered, model, **asked)


def test_states_of_another_anndata(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    model, adata = model_in(tmp_path, vocabulary), cells_of()
    atlas, sick = cells_of(seed=7), adata[adata.obs["state"] == "sick"].copy()
    own = Screen(model, **TOWARDS).perturb(adata)
    plain = Screen(model)
    same = plain.states_from(adata, "state", start="sick", goal="well", alternatives=("other",))
    pd.testing.assert_frame_equal(same.perturb(sick), own.drop(columns="state"))
    other = plain.states_from(atlas, "state", start="sick", goal="well").perturb(sick)
    assert other["similarity"].equals(own["similarity"])
    vectors, labels = plain.embed(atlas), atlas.obs["state"].to_numpy()
    centre = {name: vectors[labels == name].mean(0) for name in ("sick", "well")}
    before = plain.embed(sick)[list(sick.obs_names).index(other["cell_id"][0])]
    row = other.iloc[0]
    cut = sick[row["cell_id"]].copy()
    cut.X = cut.X.toarray() * (cut.var_names != row["genes"])
    (after,) = plain.embed(cut)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for name, vector in centre.items():
        assert row[f"shift:{name}"] == pytest.approx(cosine(after, vector) - cosine(before, vector), abs=1e-5)
    with pytest.raises(InputError, match="the AnnData: goal must be a state with cells; found 'dead'"):
        plain.states_from(atlas, "state", start="sick", goal="dead")


def test_embeddings_are_aligned_with_the_cells(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    adata = cells_of()
    adata.X = sp.diags((np.arange(18) != 4).astype(np.float32)).tocsr() @ adata.X
    corpus, model = corpus_in(tmp_path, vocabulary, adata), model_in(tmp_path, vocabulary)
    found = embed(adata, model, layer=0)
    embed_cells(EmbedConfig(corpus=corpus.uri, model=model, output=str(tmp_path / "e"), layer=0, actors=(0, 0)))
    job = Embeddings.open(str(tmp_path / "e"))
    assert np.isnan(found).all(axis=1).tolist() == [i == 4 for i in range(18)]
    assert np.abs(np.delete(found, 4, axis=0) - job.matrix(job.table())).max() < 1e-6
    counts = perturb(adata, model, genes=GENES[0]).attrs["counts"]
    assert counts["cells left out"] == {"no counts": 1}


def test_a_prefiltered_screen_brings_its_gene_table_and_report(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    """Also with cells that have a single gene, of which nothing can be estimated."""
    adata = cells_of(cells=6)
    counts = adata.X.toarray()
    counts[1], counts[1, 3] = 0, 5
    adata.X = type(adata.X)(counts)
    few = {"exact": False, "evaluate": 2, "sample": 3, "cells_per_part": 1}
    screen = Screen(model_in(tmp_path, vocabulary), **few)
    table = screen.perturb(adata)
    assert "cell1" not in set(table["cell_id"])
    genes = pd.DataFrame(table.attrs["genes"])
    assert set(genes["How"]) <= {"chosen", "sampled", "bound"}
    assert set(table["genes"]) == set(genes.loc[genes["How"] != "bound", "Ensembl_ID"])
    assert table.attrs["report"]["forward passes"]["exact"] == len(table)
    assert table.attrs["counts"]["cells"] == 6
    assert len(table.head(3).copy()) == 3
    with pytest.raises(InputError, match="goes without --effects"):
        screen.effects(adata)


@pytest.mark.parametrize("level", ["cell", "gene", "token"])
def test_predictions_are_those_of_the_job(
    vocabulary: GeneVocabulary, tmp_path: Path, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    adata = cells_of()
    adata.X = sp.diags((np.arange(18) != 4).astype(np.float32)).tocsr() @ adata.X
    corpus, model = corpus_in(tmp_path, vocabulary, adata), model_in(tmp_path, vocabulary, DISEASE, AGE, DOSAGE)
    asked = {"corpus": corpus.uri, "model": model, "output": str(tmp_path / "job"), "actors": 0, "obs_columns": ()}
    predict_cells(PredictConfig(**asked, level=level))  # type: ignore[arg-type]
    job = Predictions.open(str(tmp_path / "job")).table().to_pandas()
    found = predict(adata, model, level=level)
    if level == "cell":
        assert found.index.equals(adata.obs_names)
        assert found["disease"].cat.categories.tolist() == ["sick", "well"]
        assert found.isna().all(axis=1).tolist() == [i == 4 for i in range(18)]
        assert "1 of 18 cells have nothing to encode" in caplog.text
        assert list(found.columns) == [name for name in job.columns if name not in ("cell_id", "source_row")]
        found = found.dropna().astype({"disease": str}).reset_index(drop=True)
        job = job.drop(columns=["cell_id", "source_row"])
    pd.testing.assert_frame_equal(found, job, check_exact=False, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_a_model_of_shorter_rows_is_given_shorter_rows(
    vocabulary: GeneVocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same as the job does with `--input-size`, and told."""
    (tmp_path / "same").mkdir()
    (tmp_path / "longer").mkdir()
    same = model_in(tmp_path / "same", vocabulary)  # both take 16 tokens
    longer = model_in(tmp_path / "longer", replace(vocabulary, input_size=32))
    adata = cells_of(cells=6)
    adata.X = adata.X.toarray() + (np.arange(6) < 4)[:, None]  # four cells have all genes
    expected = embed(adata, same)
    assert "rows are cut" not in caplog.text
    np.testing.assert_array_equal(embed(adata, longer), expected)
    assert "rows are cut to the 16 tokens that this model takes: 4 of 6 cells" in caplog.text


def test_wrong_arguments_name_the_function_and_its_own(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    model, adata = model_in(tmp_path, vocabulary), cells_of()
    for function, options, message in (
        (embed, {"input_size": 128}, "cellray.embed: takes the arguments adata, model, vocabulary, matrix, gene_ids, "),
        (embed, {"poling": "cls"}, "found 'poling' (did you mean 'pooling'?). See help(cellray.embed)."),
        (embed, {"layer": "x"}, "cellray.embed: every option must be known and valid; found layer 'x': "),
        (predict, {"input_size": 128}, "cellray.predict: takes the arguments adata, model, matrix, gene_ids, level, "),
        (predict, {"level": "cells"}, "cellray.predict: every option must be known and valid; found level 'cells': "),
        (predict, {}, "predicting needs a model with heads"),
        (perturb, {"input_size": 128}, "cellray.perturb: takes the arguments model, "),
        (perturb, {"kind": "x"}, "found kind 'x': "),
    ):
        with pytest.raises(InputError) as caught:
            function(adata, model, **options)  # type: ignore[operator]
        assert message in str(caught.value)
        assert "--" not in str(caught.value)


def test_what_is_refused(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    model, adata = model_in(tmp_path, vocabulary), cells_of()
    for options, message in (
        ({"genes": ("ENSG9",)}, "every gene must be in the vocabulary; found 'ENSG9'"),
        ({"genes": (GENES[1], GENES[1])}, "a gene may be listed once only"),
        ({"pooling": "cls"}, "the vocabulary must have <cls>"),
        ({"state_column": "state", "start": "sick", "goal": "dead"}, "--goal must be a state with cells"),
        ({"state_column": "status", "start": "sick", "goal": "well"}, "every obs column asked for must exist"),
        ({"matrix": "layers/x"}, "the matrix of raw counts must exist; found no 'layers/x'; it holds X"),
        ({"gene_ids": "id"}, "var must have the column 'id'"),
        ({"probabilities": True}, "it tells nothing: it is not fine-tuned"),
    ):
        with pytest.raises(InputError) as caught:
            perturb(adata, model, **options)  # type: ignore[arg-type]
        assert message in str(caught.value)
    for options, message in (
        ({"color": "red"}, "cellray.Screen: takes the arguments model, vocabulary, "),
        ({"color": "red"}, "found 'color'. See help(cellray.Screen)."),
        ({"effects": True, "pooling": "cls"}, "--effects needs --pooling cell"),
        ({"state_column": "state", "start": "a", "goal": "a"}, "must be different states"),
        ({"output": "x"}, "takes no options of places and workers; found 'output'"),
    ):
        with pytest.raises(InputError) as caught:
            Screen(model, **options)
        assert message in str(caught.value)
    mice = cells_of([f"ENSMUSG{i:011d}" for i in range(40)])
    with pytest.raises(InputError, match="another species"):
        perturb(mice, model)
    adata.X = adata.X.toarray() * 0
    with pytest.raises(InputError, match=r"there must be a cell to encode; found none; dropped: 18 \(no counts\)"):
        perturb(adata, model)
    assert STATES  # the cells were not changed by any of it
    assert list(cells_of().obs.columns) == ["state", "donor"]


def test_the_package_offers_it_and_loads_nothing_before() -> None:
    assert (cellray.perturb, cellray.Screen, cellray.embed) == (perturb, Screen, embed)
    assert cellray.predict is predict
    assert dir(cellray) == sorted(cellray.__all__) == ["Screen", "__version__", "embed", "perturb", "predict"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cellray.nothing  # noqa: B018
    code = "import sys, cellray; print([m for m in ('torch', 'ray', 'pandas', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_ray_is_not_even_loaded(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    model = model_in(tmp_path, vocabulary)
    cells_of().write_h5ad(tmp_path / "c.h5ad")
    code = (
        "import anndata, sys; from cellray import perturb; "
        f"t = perturb(anndata.read_h5ad({str(tmp_path / 'c.h5ad')!r}), {model!r}, genes={GENES[0]!r}); "
        "print(len(t) > 0, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_models_with_cls_and_official_directories(vocabulary_v2: GeneVocabulary, tmp_path: Path) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary_v2), model_in(tmp_path, vocabulary_v2)
    options = {"genes": ("all",), "pooling": "cls", **TOWARDS}
    _, expected = screened(corpus, model, tmp_path / "job", **options)
    table = perturb(cells_of(), model, **options)
    pd.testing.assert_frame_equal(table, expected[table.columns], check_exact=False, rtol=1e-5, atol=1e-6)
    for name in ("vocabulary.json", "provenance.json"):
        (Path(model) / name).unlink()
    with pytest.raises(InputError, match=r"the genes of its tokens must be known; found no vocabulary\.json"):
        Screen(model)
    file = str(tmp_path / "v.json")
    vocabulary_v2.save(file)
    for given in (file, vocabulary_v2):
        pd.testing.assert_frame_equal(perturb(cells_of(), model, vocabulary=given, **options), table)


def test_a_screen_can_be_run_on_several_anndata_and_in_batches(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    """Cells alone or together, in any order: the same numbers, and the object is not changed."""
    screen = Screen(model_in(tmp_path, vocabulary), genes=(GENES[0], GENES[2]))
    adata = cells_of()
    before = adata.copy()
    whole = screen.perturb(adata)
    pieces = [screen.perturb(adata[i : i + 6]) for i in (12, 0, 6)]
    keys = ["cell_id", "perturbation"]
    joined = pd.concat(pieces).sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(
        joined, whole.sort_values(keys, ignore_index=True), check_exact=False, rtol=1e-5, atol=1e-6
    )
    assert (adata.X != before.X).nnz == 0
    assert adata.obs.equals(before.obs)
    assert not adata.uns
