"""What earlier versions wrote is read, through the public readers; what a newer one wrote is refused in plain words."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellray.data.corpora.corpus import Corpus, damaged_shards
from cellray.data.quality.table import QualityTable
from cellray.errors import InputError
from cellray.infer.attention_tables import Attention
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.perturbation_stats import read_table
from cellray.infer.predictions import Predictions
from cellray.infer.results import Embeddings
from cellray.infer.shift_tables import ShiftTable
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
from tests.compatibility.write import GENES

V1 = Path(__file__).parent / "v1"


def newest_checkpoint(uri: str) -> dict[str, Any]:
    with Checkpoints(uri).newest() as found:
        assert found is not None
        return found[1]


READERS: dict[str, Callable[[str], Any]] = {
    "vocabulary.json": GeneVocabulary.load,
    "corpus": lambda uri: Corpus.open(uri).manifest,
    "model": ModelDirectory.open,
    "annotator": ModelDirectory.open,
    "checkpoints": newest_checkpoint,
    "embeddings": lambda uri: Embeddings.open(uri).manifest,
    "predictions": lambda uri: Predictions.open(uri).manifest,
    "shifts": lambda uri: ShiftTable.open(uri).manifest,
    "statistics": StatisticsManifest.load,
    "prefiltered": PrefilterManifest.load,
    "prefiltered.estimates": EstimateManifest.load,
    "contexts": TableManifest.load,
    "attention": lambda uri: Attention.open(uri).manifest,
    "quality": lambda uri: QualityTable.open(uri).manifest,
}
"""Each example and the public reader of its kind."""
VERSION_FILES = {
    "vocabulary.json": "vocabulary.json",
    "model": "model/provenance.json",
    "annotator": "annotator/provenance.json",
    "checkpoints": "checkpoints/step-00000001/checkpoint.json",
}
"""Where the version stands, if not in `manifest.json`."""


def test_every_example_has_a_reader_and_is_small() -> None:
    assert {path.name for path in V1.iterdir()} == set(READERS)
    files = [path for path in V1.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    assert {path.suffix for path in files} <= {".json", ".parquet", ".csv", ".safetensors"}


@pytest.mark.parametrize("name", READERS)
def test_what_version_1_wrote_is_read_and_whole(name: str) -> None:
    found = READERS[name](str(V1 / name))
    if isinstance(found, Manifest):
        assert found.format_version == 1
        assert found.all_parts
        for part in found.all_parts:
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
