"""The encoder against transformers' own model, pooling by hand, model directories, the golden embeddings."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertForSequenceClassification

from cellray.data.collate import TokenRows
from cellray.errors import InputError
from cellray.infer.embed import embed_rows
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.encoder import load_encoder
from cellray.model.pooling import check_pooling, cls_row, is_gene_token, mean_over_genes
from cellray.model.presets import PRESETS, bert_config
from cellray.vocabulary import GeneVocabulary


@pytest.fixture
def model_uri(vocabulary_v2: GeneVocabulary, tmp_path: Path) -> str:
    torch.manual_seed(0)
    uri = str(tmp_path / "model")
    save_model(BertForMaskedLM(bert_config("tiny", vocabulary_v2, 16)), vocabulary_v2, {"objective": "none"}, uri)
    return uri


TOKENS = torch.tensor([[2, 9, 5, 30, 7, 3], [2, 8, 3, 0, 0, 0]])


@pytest.mark.parametrize("layer", [0, -1, -2, -3])
def test_hidden_states_are_those_of_the_whole_model(model_uri: str, layer: int) -> None:
    whole = AutoModelForMaskedLM.from_pretrained(model_uri).eval()
    with torch.inference_mode():
        expected = whole(TOKENS, attention_mask=TOKENS != 0, output_hidden_states=True).hidden_states[layer - 1]
        encoder = load_encoder(ModelDirectory.open(model_uri), layer)
        got = encoder(TOKENS)
        alone = encoder(TOKENS[1:, :3])
    present = TOKENS != 0
    assert torch.allclose(got[present], expected[present], atol=1e-5)
    assert torch.allclose(alone[0], got[1, :3], atol=1e-5)


def test_nothing_above_the_wanted_layer_is_built(model_uri: str) -> None:
    encoder = load_encoder(ModelDirectory.open(model_uri), -1)
    names = [name for name, _ in encoder.named_parameters()]
    assert any("layer.1." in name for name in names)
    assert not any("layer.2." in name or "cls" in name or "pooler" in name for name in names)
    assert encoder.width == 128


@pytest.mark.parametrize("layer", [1, -4])
def test_a_layer_that_does_not_exist(model_uri: str, layer: int) -> None:
    with pytest.raises(InputError, match=rf"--layer must lie in -3\.\.0; found {layer}"):
        load_encoder(ModelDirectory.open(model_uri), layer)


def test_fine_tuned_classifiers_are_read_too(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    model = BertForSequenceClassification(bert_config("tiny", vocabulary, 16)).eval()
    model.save_pretrained(tmp_path)
    opened = ModelDirectory.open(str(tmp_path))
    assert opened.vocabulary is None
    with torch.inference_mode():
        expected = model.bert(TOKENS[:1]).last_hidden_state
        assert torch.allclose(load_encoder(opened, 0)(TOKENS[:1]), expected, atol=1e-5)


def test_pooling_by_hand(vocabulary_v2: GeneVocabulary) -> None:
    hidden_nld = torch.arange(12.0).reshape(1, 6, 2).repeat(2, 1, 1).half()
    gene_nl = is_gene_token(vocabulary_v2)[TOKENS]
    assert gene_nl.tolist() == [[False, True, True, True, True, False], [False, True] + [False] * 4]
    pooled = mean_over_genes(hidden_nld, gene_nl)
    assert pooled.tolist() == [[5.0, 6.0], [2.0, 3.0]]
    assert pooled.dtype == torch.float32
    assert cls_row(hidden_nld, gene_nl).tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_poolings_that_do_not_fit(vocabulary: GeneVocabulary, vocabulary_v2: GeneVocabulary) -> None:
    check_pooling("cls", vocabulary_v2)
    with pytest.raises(InputError, match="must have <cls>; found a V1 vocabulary"):
        check_pooling("cls", vocabulary)
    with pytest.raises(InputError, match="one of cell, cls, gene"):
        check_pooling("mean", vocabulary)


def test_a_saved_model_says_where_it_comes_from(model_uri: str, vocabulary_v2: GeneVocabulary) -> None:
    model = ModelDirectory.open(model_uri)
    assert model.vocabulary == vocabulary_v2
    assert model.provenance["objective"] == "none"
    assert model.provenance["weights_sha256"] == model.digest
    model.require_vocabulary(vocabulary_v2, "corpus C", 16)


def test_models_that_do_not_fit(model_uri: str, vocabulary: GeneVocabulary, vocabulary_v2: GeneVocabulary) -> None:
    model = ModelDirectory.open(model_uri)
    with pytest.raises(
        InputError, match=r"model .*: its vocabulary must be that of corpus C; found 34 tokens.*32 tokens"
    ):
        model.require_vocabulary(vocabulary, "corpus C", 16)
    with pytest.raises(InputError, match=r"16 positions for rows of up to 17 tokens\. Tokenize with --input-size 16\."):
        model.require_vocabulary(vocabulary_v2, "corpus C", 17)
    (Path(model_uri) / "vocabulary.json").unlink()
    with pytest.raises(InputError, match="34 rows for 32 tokens"):
        ModelDirectory.open(model_uri).require_vocabulary(vocabulary, "corpus C", 16)


def _flip_weights(directory: Path) -> None:
    data = bytearray((directory / "model.safetensors").read_bytes())
    data[-9] ^= 1
    (directory / "model.safetensors").write_bytes(data)


def _swapped_vocabulary(directory: Path) -> None:
    medians = {f"ENSG{i}": 1.0 for i in range(30)}  # as many tokens, other genes
    GeneVocabulary.from_medians(medians, "v2", "ensembl").save(str(directory / "vocabulary.json"))


def _other_vocabulary(directory: Path) -> None:
    (directory / "provenance.json").unlink()
    GeneVocabulary.from_medians({"ENSG1": 1.0}, "v1", "ensembl").save(str(directory / "vocabulary.json"))


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda d: (d / "config.json").unlink(), r"holds config\.json and model\.safetensors; found no config"),
        (lambda d: (d / "model.safetensors").unlink(), r"found no model\.safetensors"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "gpt2"}'),
            "must be a BERT encoder; found model_type 'gpt2'",
        ),
        (_flip_weights, "weights must be those provenance.json names"),
        (_swapped_vocabulary, r"vocabulary must be the one provenance\.json names"),
        (lambda d: (d / "provenance.json").write_text("[]"), "must hold a JSON object"),
        (lambda d: (d / "config.json").write_text('{"model_type": "bert", "hidden_size": "big"}'), "valid BERT"),
        (_other_vocabulary, "must have one size; found 3 tokens, 34 rows"),
    ],
)
def test_damaged_directories(model_uri: str, damage: object, rule: str) -> None:
    damage(Path(model_uri))  # type: ignore[operator]
    with pytest.raises(InputError, match=rule):
        ModelDirectory.open(model_uri)


def test_truncated_official_weights(model_uri: str) -> None:
    for name in ("vocabulary.json", "provenance.json"):
        (Path(model_uri) / name).unlink()
    weights = Path(model_uri) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"model\.safetensors must be whole"):
        load_encoder(ModelDirectory.open(model_uri), 0)
    config = json.loads((Path(model_uri) / "config.json").read_text())
    save = BertForMaskedLM(ModelDirectory.open(model_uri).config)
    save.save_pretrained(model_uri)
    (Path(model_uri) / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(InputError, match=r"must hold the encoder's weights; found 'encoder\.layer\.3"):
        load_encoder(ModelDirectory.open(model_uri), 0)


def test_presets_have_the_released_sizes(vocabulary: GeneVocabulary) -> None:
    v1 = bert_config("v1-10m", vocabulary, 2048)
    v1.vocab_size = 25426
    with torch.device("meta"):
        assert sum(p.numel() for p in BertForMaskedLM(v1).parameters()) == 10_288_722 + 0
    assert {(p.hidden // p.heads) for p in PRESETS.values()} == {64}
    with pytest.raises(InputError, match="must be one of tiny, v1-10m, v2-104m, v2-316m; found 'big'"):
        bert_config("big", vocabulary, 16)


@pytest.mark.parametrize("generation", ["v1", "v2"])
@pytest.mark.parametrize("budget", [1, 4096])
def test_golden_embeddings(shared: Path, generation: str, budget: int) -> None:
    golden = np.load(shared / "golden" / "embeddings.npz")
    model = ModelDirectory.open(str(shared / "golden" / f"model_{generation}"))
    tokens = pq.read_table(shared / "golden" / f"tokens_{generation}.parquet")
    place = {name: i for i, name in enumerate(tokens["cell_id"].to_pylist())}
    rows = TokenRows.from_arrow(tokens.take([place[name] for name in golden[f"{generation}_cells"]])["input_ids"])
    gene_v = torch.ones(model.config.vocab_size, dtype=torch.bool)
    special = 2 if generation == "v1" else 4
    gene_v[:special] = False
    for layer in (-1, 0):
        encoder = load_encoder(model, layer)
        for pooling in ("cell", "cls") if generation == "v2" else ("cell",):
            got = np.stack(embed_rows(encoder, rows, pooling, gene_v, budget))
            assert np.abs(got - golden[f"{generation}_{pooling}_layer{layer}"]).max() < 1e-5
    (first, *_) = embed_rows(load_encoder(model, -1), rows, "gene", gene_v, budget)
    expected = golden[f"{generation}_gene_layer-1_cell0"]
    assert np.abs(first - (expected if generation == "v1" else expected[1:-1])).max() < 1e-5
