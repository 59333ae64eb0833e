"""What earlier versions wrote is read, through the public readers; what a newer one wrote is refused in plain words."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from cellray.data.corpora.corpus import Corpus, damaged_shards
from cellray.data.quality.table import QualityTable
from cellray.errors import InputError
from cellray.infer.attention_tables import Attention
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.perturbation_stats import read_table
from cellray.infer.predictions import Predictions
from cellray.infer.results import MARKS, OBSM_KEY, Embeddings
from cellray.infer.screen import ScreenConfig, screen
from cellray.infer.shift_tables import ShiftTable
from cellray.infer.states import read_states
from cellray.infer.tables import TableManifest, read_made_table
from cellray.model.annotator_directory import load_annotator
from cellray.model.checkpoint import ModelDirectory
from cellray.model.encoder import load_encoder
from cellray.prefilter_schema import EstimateManifest, PrefilterManifest
from cellray.schema import Manifest
from cellray.shift_schema import StatisticsManifest
from cellray.storage import sha256_file
from cellray.train.checkpoints import Checkpoints
from cellray.train.state import load_state
from cellray.vocabulary import GeneVocabulary
from tests.compatibility.write import CELLS, GENES

V1 = Path(__file__).parent / "v1"


def newest_checkpoint(uri: str) -> dict[str, Any]:
    with Checkpoints(uri).newest() as found:
        assert found is not None
        return found[1]


READERS: dict[str, Callable[[str], Any]] = {
    "vocabulary.json": GeneVocabulary.load,
    "corpus": lambda uri: Corpus.open(uri).manifest,
    "concatenated": lambda uri: Corpus.open(uri).manifest,
    "referring": lambda uri: Corpus.open(uri).manifest,
    "model": ModelDirectory.open,
    "annotator": ModelDirectory.open,
    "gene_annotator": ModelDirectory.open,
    "checkpoints": newest_checkpoint,
    "embeddings": lambda uri: Embeddings.open(uri).manifest,
    "gene_embeddings": lambda uri: Embeddings.open(uri).manifest,
    "predictions": lambda uri: Predictions.open(uri).manifest,
    "gene_predictions": lambda uri: Predictions.open(uri).manifest,
    "shifts": lambda uri: ShiftTable.open(uri).manifest,
    "statistics": StatisticsManifest.load,
    "prefiltered": PrefilterManifest.load,
    "prefiltered.estimates": EstimateManifest.load,
    "contexts": TableManifest.load,
    "integration": TableManifest.load,
    "attention": lambda uri: Attention.open(uri).manifest,
    "quality": lambda uri: QualityTable.open(uri).manifest,
}
"""Each example and the public reader of its kind."""
PLAIN = {"states.parquet", "embeddings.h5ad", "predictions.h5ad"}
"""Files without a manifest: what people may write as well, and what other programs read."""
VERSION_FILES = {
    "vocabulary.json": "vocabulary.json",
    "model": "model/provenance.json",
    "annotator": "annotator/provenance.json",
    "gene_annotator": "gene_annotator/provenance.json",
    "checkpoints": "checkpoints/step-00000001/checkpoint.json",
}
"""Where the version stands, if not in `manifest.json`."""


def test_every_example_has_a_reader_and_is_small() -> None:
    assert {path.name for path in V1.iterdir()} == set(READERS) | PLAIN
    files = [path for path in V1.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    assert {path.suffix for path in files} <= {".json", ".parquet", ".csv", ".safetensors", ".h5ad"}


@pytest.mark.parametrize("name", READERS)
def test_what_version_1_wrote_is_read_and_whole(name: str) -> None:
    found = READERS[name](str(V1 / name))
    if isinstance(found, Manifest):
        assert found.format_version == 1
        assert found.all_parts
        for part in found.all_parts if name != "referring" else ():  # its shards are another corpus's
            assert sha256_file(part.uri_in(str(V1 / name))) == part.sha256


def test_a_corpus_and_its_vocabulary() -> None:
    corpus = Corpus.open(str(V1 / "corpus"))
    assert damaged_shards(corpus) == []
    first = corpus.read(corpus.shard_uris[0], 0, 1).to_pylist()[0]
    assert first == {
        **{"input_ids": [4, 11, 2, 7, 10, 13, 5, 6], "length": 8, "cell_id": "cell0"},
        **{"n_counts": 25.0, "source_row": 0, "state": "sick"},
    }
    vocabulary = GeneVocabulary.load(str(V1 / "vocabulary.json"))
    assert vocabulary == corpus.vocabulary
    assert (len(vocabulary), vocabulary.genes[GENES[0]], vocabulary.medians[GENES[0]]) == (14, 2, 1.0)


def test_a_frozen_model_gives_a_frozen_corpus_its_frozen_embeddings(tmp_path: Path) -> None:
    """The meaning of the files, not just their form."""
    frozen = Embeddings.open(str(V1 / "embeddings"))
    expected = frozen.matrix(frozen.table())
    np.testing.assert_allclose(expected[0], [-0.3746988, -0.3662634, 0.3910543, 0.3499078], atol=1e-6)
    output = str(tmp_path / "embeddings")
    embed_cells(EmbedConfig(corpus=str(V1 / "corpus"), model=str(V1 / "model"), output=output, actors=(0, 0)))
    now = Embeddings.open(output)
    np.testing.assert_allclose(now.matrix(now.table()), expected, atol=1e-6)


def test_embeddings_of_genes() -> None:
    frozen = Embeddings.open(str(V1 / "gene_embeddings"))
    table = frozen.table()
    assert (frozen.manifest.pooling, table.num_rows) == ("gene", 63)
    first = table.slice(0, 1).to_pylist()[0]
    assert {name: first[name] for name in ("cell_id", "gene", "source_row", "state")} == {
        **{"cell_id": "cell0", "gene": GENES[2], "source_row": 0, "state": "sick"},
    }
    np.testing.assert_allclose(frozen.matrix(table)[0], [-0.9585357, -1.0011138, 1.2616647, 0.6979847], atol=1e-6)


def test_predictions_of_genes_and_the_model_that_made_them() -> None:
    model = ModelDirectory.open(str(V1 / "gene_annotator"))
    assert [(spec.name, spec.level) for spec in model.heads] == [("dosage", "gene")]
    frozen = Predictions.open(str(V1 / "gene_predictions"))
    assert frozen.manifest.level == "gene"
    first = frozen.table().to_pylist()[0]
    assert (first["gene"], first["cells"], first["dosage"]) == (GENES[0], 5, "sensitive")
    assert first["dosage.probability.not"] == pytest.approx(0.4932787, abs=1e-6)


def test_corpora_of_several(tmp_path: Path) -> None:
    copied = Corpus.open(str(V1 / "concatenated"))
    assert damaged_shards(copied) == []
    assert (copied.manifest.made_by, copied.manifest.rows, len(copied.manifest.sources)) == ("concatenation", 30, 2)
    last = copied.read(copied.shard_uris[-1], 0, 4).to_pylist()[-1]
    assert (last["cell_id"], last["state"]) == ("more23", "well")
    assert "batch" not in last  # not in both
    shutil.copytree(V1 / "referring", tmp_path / "referring")
    manifest = tmp_path / "referring" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("/tmp/examples/corpus/shards", str(V1 / "corpus" / "shards")))  # noqa: S108
    referring = Corpus.open(str(tmp_path / "referring"))
    assert damaged_shards(referring) == []
    ids = [row["cell_id"] for uri in referring.shard_uris for row in referring.read(uri, 0, CELLS).to_pylist()]
    assert ids == [f"cell{i}" for i in range(CELLS)] * 2


def test_scores_of_integration() -> None:
    table = read_made_table(str(V1 / "integration")).set_index("metric")
    assert list(table.columns) == ["embedding", "about", "value"]
    assert set(table["embedding"]) == {"cellray"}
    assert table["value"]["silhouette_batch"] == pytest.approx(0.8461923, abs=1e-6)
    assert table["about"]["silhouette_batch"] == "batches"


def test_states_are_read_and_give_a_screen_its_frozen_shifts(tmp_path: Path) -> None:
    states = str(V1 / "states.parquet")
    found = read_states(states, None)
    assert list(found) == ["sick", "well"]
    np.testing.assert_allclose(found["sick"], [-0.3364855, -0.34208, 0.3998968, 0.2786686], atol=1e-6)
    asked = {"state_column": "state", "start": "sick", "goal": "well", "state_embeddings": states}
    place = {"corpus": str(V1 / "corpus"), "model": str(V1 / "model"), "output": str(tmp_path / "shifts")}
    screen(ScreenConfig(genes=tuple(GENES[:4]), actors=(0, 0), **asked, **place))
    columns = ["cell_id", "genes", "similarity", "shift:well"]
    frozen, now = (
        [row for batch in ShiftTable.open(uri).batches(columns, []) for row in batch.to_pylist()]
        for uri in (str(V1 / "shifts"), place["output"])
    )
    assert [(row["cell_id"], row["genes"]) for row in now] == [(row["cell_id"], row["genes"]) for row in frozen]
    for name in columns[2:]:
        np.testing.assert_allclose([row[name] for row in now], [row[name] for row in frozen], atol=1e-6)


def test_files_for_other_programs() -> None:
    adata = anndata.read_h5ad(V1 / "embeddings.h5ad")
    frozen = Embeddings.open(str(V1 / "embeddings"))
    np.testing.assert_allclose(adata.obsm[OBSM_KEY], frozen.matrix(frozen.table()), atol=1e-6)
    assert list(adata.obs.columns) == ["state", MARKS["embeddings"]]
    assert adata.obs_names[0] == "cell0"
    assert (adata.uns["cellray"]["format_version"], adata.uns["cellray"]["layer"]) == (1, -1)
    told = anndata.read_h5ad(V1 / "predictions.h5ad")
    names = [
        "obs.state",
        "state",
        "state_probability",
        "state.probability.sick",
        "state.probability.well",
        MARKS["predictions"],
    ]
    assert list(told.obs.columns) == names
    rows = Predictions.open(str(V1 / "predictions")).table().to_pylist()
    assert told.obs["state"].tolist() == [row["state"] for row in rows]
    heads = json.loads(told.uns["cellray"]["heads"])
    assert (told.uns["cellray"]["format_version"], heads[0]["name"]) == (1, "state")


def test_predictions_and_the_model_that_made_them() -> None:
    model = ModelDirectory.open(str(V1 / "annotator"))
    assert [(spec.name, spec.classes) for spec in model.heads] == [("state", ("sick", "well"))]
    assert not load_annotator(model).training
    first = Predictions.open(str(V1 / "predictions")).table().to_pylist()[0]
    assert (first["state"], first["obs.state"]) == ("well", "sick")
    assert first["state.probability.well"] == pytest.approx(0.5036972, abs=1e-6)


def test_a_screen_and_its_statistics() -> None:
    shifts = ShiftTable.open(str(V1 / "shifts"))
    rows = [row for batch in shifts.batches(["cell_id", "genes", "similarity"], []) for row in batch.to_pylist()]
    assert len(rows) == 10
    assert rows[0] == {"cell_id": "cell0", "genes": GENES[0], "similarity": pytest.approx(0.6481953, abs=1e-6)}
    assert (shifts.effects().genes, shifts.effects().affected) == (GENES[:4], GENES)
    table = read_table(str(V1 / "statistics"))
    assert (table["Ensembl_ID"][0], table["N_Detections"][0]) == (GENES[1], 2)
    assert table["Shift_to_goal_end"][0] == pytest.approx(0.0572784, abs=1e-6)


def test_a_table_of_contexts() -> None:
    table = read_made_table(str(V1 / "contexts"))
    assert set(table["Ensembl_ID"]) <= set(GENES)
    assert len(table) == TableManifest.load(str(V1 / "contexts")).rows


def test_attention_weights() -> None:
    attention = Attention.open(str(V1 / "attention"))
    weights = next(attention.weights()).to_pylist()[0]
    assert (weights["cell_id"], weights["query"], weights["key"]) == ("cell3", GENES[3], GENES[0])
    assert (weights["query_rank"], weights["key_rank"]) == (5, 1)
    assert weights["weight"] == pytest.approx(0.0833647, abs=1e-6)
    pair = attention.pairs().iloc[0]
    assert (pair["label"], pair["cells"], pair["mean"]) == ("sick", 2, pytest.approx(0.1040736, abs=1e-6))
    assert len(attention.heads()) == 2 * 2 * 2
    partners = attention.of_gene(GENES[3])  # before names were written
    assert set(partners["gene"]) == set(GENES[:3])
    assert partners["name"].isna().all()


def test_a_checkpoint_goes_into_a_model_and_its_optimizer() -> None:
    import torch
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(V1 / "model")
    optimizer = torch.optim.AdamW(model.parameters())
    with Checkpoints(str(V1 / "checkpoints")).newest() as found:
        assert found is not None
        folder, record = found
        assert (record["step"], record["metrics"]) == (1, {"loss": 1.0})
        before = load_encoder(ModelDirectory.open(str(V1 / "model")), 0).bert.encoder.layer[0].output.dense.weight
        assert load_state(folder, model, optimizer) == {"progress": {"step": 1, "best_step": None}}
    assert not torch.equal(model.bert.encoder.layer[0].output.dense.weight, before)
    assert all(state["step"] == 1 for state in optimizer.state.values())


def version_file(folder: Path, name: str) -> Path:
    return folder / VERSION_FILES.get(name, f"{name}/manifest.json")


def changed(tmp_path: Path, name: str, **fields: object) -> str:
    """Copy an example and change fields of the file that tells its version."""
    if (V1 / name).is_dir():
        shutil.copytree(V1 / name, tmp_path / name)
    else:
        shutil.copy(V1 / name, tmp_path / name)
    path = version_file(tmp_path, name)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return str(tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_newer_version_is_refused_with_both_versions(name: str, tmp_path: Path) -> None:
    field = "version" if name == "vocabulary.json" else "format_version"
    uri = changed(tmp_path, name, **{field: 2, "software": {"cellray": "7.8.9"}, "unknown": 1})
    message = (
        rf"must be of format version 1 or earlier, which cellray {version('cellray')} reads; found format version 2"
    )
    with pytest.raises(InputError, match=message) as refused:
        READERS[name](uri)
    assert refused.value.subject.endswith(str(version_file(tmp_path, name)))
    assert name in {"vocabulary.json", "checkpoints"} or "written by cellray 7.8.9" in refused.value.found


def test_a_field_that_is_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found unknown: Extra inputs .* A newer cellray may have written it"):
        Embeddings.open(changed(tmp_path, "embeddings", unknown=1))


def test_a_model_directory_without_a_version_is_of_the_first(tmp_path: Path) -> None:
    """As those made before provenance told one, and those of others."""
    shutil.copytree(V1 / "model", tmp_path / "model")
    path = tmp_path / "model" / "provenance.json"
    told = json.loads(path.read_text())
    assert told.pop("format_version") == 1
    path.write_text(json.dumps(told))
    assert ModelDirectory.open(str(tmp_path / "model")).provenance == told
