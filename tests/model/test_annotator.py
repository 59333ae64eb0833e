"""Heads on an encoder: against transformers' own model with numpy pooling, and the directories they travel in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from cellray.errors import InputError
from cellray.model.annotator import AnnotatedEncoder
from cellray.model.annotator_directory import load_annotator, save_annotator, start_annotator
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.head_pooling import AttentionPooling
from cellray.model.heads import HeadSpec, head_answer, head_loss
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary

TOKENS = torch.tensor([[2, 9, 5, 30, 7, 3], [2, 8, 3, 0, 0, 0], [2, 33, 4, 3, 0, 0]])
GENES = [[1, 2, 3, 4], [1], [1, 2]]
"""Positions of the genes of each cell."""

TYPE = HeadSpec("type", "classification", "cell", ("a", "b", "c"))  # the name of a method of every module
AGE = HeadSpec("age", "regression", "cell", mean=40.0, std=10.0)
DOSAGE = HeadSpec("dosage", "classification", "gene", ("sensitive", "not"))


@pytest.fixture
def pretrained(vocabulary_v2: GeneVocabulary, tmp_path: Path) -> ModelDirectory:
    torch.manual_seed(0)
    uri = str(tmp_path / "pretrained")
    save_model(BertForMaskedLM(bert_config("tiny", vocabulary_v2, 16)), vocabulary_v2, {"objective": "genes"}, uri)
    return ModelDirectory.open(uri)


def randomise(model: AnnotatedEncoder) -> AnnotatedEncoder:
    """Give pooling and heads weights as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("bert."):
                weight.normal_(generator=generator)
    return model.eval()


def by_hand(model: AnnotatedEncoder, uri: str, layer: int) -> dict[str, np.ndarray]:
    """Compute each cell alone with transformers and numpy."""
    bert = AutoModel.from_pretrained(uri).eval()
    heads = {name: t.detach().double().numpy() for name, t in model.state_dict().items() if "bert" not in name}
    found: dict[str, list[Any]] = {spec.name: [] for spec in model.specs}
    for row, genes in zip(TOKENS, GENES, strict=True):
        alone = row[row != 0][None]
        with torch.inference_mode():
            hidden_ld = bert(alone, output_hidden_states=True).hidden_states[layer - 1][0].double().numpy()
        if model.pooling_name == "attention":
            score = np.exp(hidden_ld[genes] @ heads["pooling.query"] / np.sqrt(hidden_ld.shape[1]))
            pooled_d = score @ hidden_ld[genes] / score.sum()
        else:
            pooled_d = hidden_ld[0] if model.pooling_name == "cls" else hidden_ld[genes].mean(0)
        for spec in model.specs:
            states = pooled_d if spec.level == "cell" else hidden_ld[genes]
            found[spec.name].append(states @ heads[f"heads.{spec.name}.weight"].T + heads[f"heads.{spec.name}.bias"])
    return found


@pytest.mark.parametrize("layer", [0, -1, -3])
@pytest.mark.parametrize("pooling", ["cell", "cls", "attention"])
def test_logits_are_those_of_each_cell_alone_by_hand(pretrained: ModelDirectory, pooling: str, layer: int) -> None:
    model = randomise(start_annotator(pretrained, [TYPE, AGE, DOSAGE], pooling, emb_layer=layer))
    expected = by_hand(model, pretrained.uri, layer)
    with torch.inference_mode():
        for names in (None, {"type", "age"}, {"dosage"}):  # the last layer is computed for <cls> alone, or for all
            logits = model(TOKENS, names)
            assert set(logits) == (names or {"type", "age", "dosage"})
            for name, got in logits.items():
                assert got.dtype == torch.float32
                for cell, genes in enumerate(GENES):
                    own = got[cell, genes] if name == "dosage" else got[cell]
                    assert np.allclose(own.numpy(), expected[name][cell].reshape(own.shape), atol=1e-4), name
    assert logits["dosage"].shape == (3, 6, 2)
    assert model(TOKENS)["age"].shape == (3,)


def test_the_first_row_alone_has_the_gradients_of_the_whole(pretrained: ModelDirectory) -> None:
    model = randomise(start_annotator(pretrained, [TYPE, DOSAGE], "cls", dropout=0.0))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    grads = []
    for names in ({"type"}, {"type", "dosage"}, {"type"}):
        if len(grads) == 2:
            model.bert.activation_checkpointing_enable()
            model.train()
        model.zero_grad()
        model(TOKENS, names)["type"].square().sum().backward()
        grads.append({name: p.grad for name, p in model.bert.named_parameters()})
    for name, grad in grads[0].items():
        assert grad is not None
        assert grads[1][name] is not None
        assert torch.allclose(grad, grads[1][name], atol=1e-4), name
        assert torch.allclose(grad, grads[2][name], atol=1e-4), name


def test_attention_sees_genes_alone_and_starts_as_their_mean() -> None:
    pooling = AttentionPooling(2)
    hidden_nld = torch.tensor([[[9.0, 9], [1, 0], [3, 2], [7, 7]]])
    gene_nl = torch.tensor([[False, True, True, False]])
    assert pooling(hidden_nld, gene_nl).tolist() == [[2.0, 1.0]]
    with torch.no_grad():
        pooling.query.copy_(torch.tensor([np.log(3) / np.sqrt(2), 0.0]))  # scores ln(3)/2 and 3 ln(3)/2: weights 1 : 3
    assert torch.allclose(pooling(hidden_nld, gene_nl), torch.tensor([[2.5, 1.5]]))
    pooling(hidden_nld.half(), gene_nl).sum().backward()
    assert torch.isfinite(pooling.query.grad).all()


def test_heads_stay_in_float32_under_autocast(pretrained: ModelDirectory) -> None:
    model = randomise(start_annotator(pretrained, [TYPE, AGE], "attention"))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model(TOKENS)
    assert {tensor.dtype for tensor in logits.values()} == {torch.float32}


def test_new_heads_depend_on_seed_and_name_alone(pretrained: ModelDirectory) -> None:
    def weights(heads: list[HeadSpec], seed: int) -> torch.Tensor:
        return start_annotator(pretrained, heads, "cell", seed=seed).heads["type"].weight.detach()

    assert torch.equal(weights([TYPE], 0), weights([DOSAGE, TYPE, AGE], 0))
    assert not torch.equal(weights([TYPE], 0), weights([TYPE], 1))
    assert 0.015 < float(weights([TYPE], 0).std()) < 0.025


def test_classification_loss_is_that_of_torch() -> None:
    logits, weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 2.0, 5.0])
    target = torch.tensor([0, -1, 2, 1, -1])
    for class_weights in (None, weights):
        total, weight = head_loss(TYPE, logits, target, class_weights)
        expected = torch.nn.functional.cross_entropy(logits, target, weight=class_weights, ignore_index=-1)
        assert torch.allclose(total / weight, expected)
        assert weight.item() == (3 if class_weights is None else 8)
    per_token = head_loss(DOSAGE, logits[:, :2].expand(4, 5, 2), target.clamp(max=1).expand(4, 5))
    alone = head_loss(DOSAGE, logits[:, :2], target.clamp(max=1))
    assert torch.allclose(torch.stack(per_token), 4 * torch.stack(alone))


def test_regression_loss_by_hand_and_back_to_the_unit() -> None:
    logits = torch.tensor([0.5, 1.0, -1.0], requires_grad=True)
    total, weight = head_loss(AGE, logits, torch.tensor([40.0, torch.nan, 50.0]))  # standardised: 0, missing, 1
    assert (total.item(), weight.item()) == (0.25 + 4.0, 2.0)
    total.backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [1.0, 0.0, -4.0]
    assert head_answer(AGE, logits).tolist() == [45.0, 50.0, 30.0]


@pytest.mark.parametrize(("spec", "missing"), [(TYPE, -1), (AGE, torch.nan)])
def test_nothing_labelled_is_no_loss_and_no_gradient(spec: HeadSpec, missing: float) -> None:
    logits = torch.ones((2, 3) if spec.classes else (2,), requires_grad=True)
    total, weight = head_loss(spec, logits, torch.full((2,), missing))
    assert (total.item(), weight.item()) == (0.0, 0.0)
    total.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_heads_travel_as_json() -> None:
    for spec in (TYPE, AGE, DOSAGE):
        assert HeadSpec.from_json(json.loads(json.dumps(spec.to_json())), "file") == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a.b"}, r"a name without \. and /"),
        ({"name": ""}, "a name without"),
        ({"kind": "ranking"}, "kind must be one of classification, regression; found ranking"),
        ({"level": "donor"}, "level must be one of cell, gene"),
        ({"classes": ["a"]}, "two classes at least"),
        ({"classes": ["a", "a"]}, "classes must be distinct"),
        ({"classes": ["a", ""]}, "a class needs a name"),
        ({"kind": "regression"}, "a regression has no classes"),
        ({"std": 0.0}, "std must be a positive"),
        ({"mean": float("inf")}, "mean must be a finite float"),
        ({"colour": 1}, "unknown 'colour'"),
        ({"classes": 3}, "heads must be described as this version does it"),
    ],
)
def test_heads_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HeadSpec.from_json(TYPE.to_json() | change, "file")
    with pytest.raises(InputError, match="found list"):
        HeadSpec.from_json([], "file")


@pytest.mark.parametrize("pooling", ["cell", "cls", "attention"])
def test_a_round_trip_through_a_directory(
    pretrained: ModelDirectory, vocabulary_v2: GeneVocabulary, tmp_path: Path, pooling: str
) -> None:
    model = randomise(start_annotator(pretrained, [TYPE, AGE, DOSAGE], pooling, emb_layer=-1))
    uri = str(tmp_path / "tuned")
    digest = save_annotator(model, vocabulary_v2, {"objective": "test"}, uri)
    opened = ModelDirectory.open(uri)
    assert opened.digest == digest
    assert opened.heads == (TYPE, AGE, DOSAGE)
    assert {key: opened.provenance[key] for key in ("objective", "pooling", "emb_layer")} == {
        "objective": "test",
        "pooling": pooling,
        "emb_layer": -1,
    }
    loaded = load_annotator(opened)
    assert loaded.emb_layer == -1
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    plain, report = BertModel.from_pretrained(uri, output_loading_info=True, add_pooling_layer=False)
    assert not report["missing_keys"]
    _, report = AutoModel.from_pretrained(uri, output_loading_info=True)
    assert set(report["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}  # as with any masked-gene model
    assert plain.config.num_hidden_layers == 2  # the layer above the wanted one is not there
    with torch.inference_mode():
        for name, logits in model(TOKENS).items():
            assert torch.equal(logits, loaded(TOKENS)[name])
        expected = plain.eval()(TOKENS, attention_mask=TOKENS != 0).last_hidden_state[0]
        assert torch.allclose(model.bert(TOKENS[:1]).last_hidden_state[0], expected, atol=1e-5)


def test_what_a_fine_tuned_model_can_tell_is_kept(
    pretrained: ModelDirectory, vocabulary_v2: GeneVocabulary, tmp_path: Path
) -> None:
    model = randomise(start_annotator(pretrained, [TYPE, AGE, DOSAGE], "attention"))
    save_annotator(model, vocabulary_v2, {}, str(tmp_path / "tuned"))
    tuned = ModelDirectory.open(str(tmp_path / "tuned"))
    turned = HeadSpec("type", "classification", "cell", ("c", "a", "b"))
    other_unit = HeadSpec("age", "regression", "cell", mean=480.0, std=240.0)
    new = HeadSpec("dosage", "classification", "gene", ("sensitive", "other"))
    again = start_annotator(tuned, [new, turned, other_unit], "attention", seed=3).eval()
    with torch.inference_mode():
        before, after = model(TOKENS), again(TOKENS)
    assert torch.equal(after["type"], before["type"][:, [2, 0, 1]])
    assert torch.allclose(head_answer(other_unit, after["age"]), head_answer(AGE, before["age"]), atol=1e-3)
    assert not torch.equal(again.heads["dosage"].weight, model.heads["dosage"].weight)
    pooled_otherwise = start_annotator(tuned, [TYPE, DOSAGE], "cell")
    assert not torch.equal(pooled_otherwise.heads["type"].weight, model.heads["type"].weight)
    assert torch.equal(pooled_otherwise.heads["dosage"].weight, model.heads["dosage"].weight)


@pytest.mark.parametrize(
    "kind", [BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification, BertModel]
)
def test_official_directories_give_their_encoder(vocabulary_v2: GeneVocabulary, tmp_path: Path, kind: type) -> None:
    torch.manual_seed(1)
    official = kind(bert_config("tiny", vocabulary_v2, 16)).eval()
    official.save_pretrained(tmp_path)
    opened = ModelDirectory.open(str(tmp_path))
    made = start_annotator(opened, [TYPE], "cell", vocabulary=vocabulary_v2)
    encoder = official if kind is BertModel else official.bert
    for name, weight in made.bert.state_dict().items():
        assert torch.equal(weight, encoder.state_dict()[name]), name
    with pytest.raises(InputError, match="must know which tokens are genes"):
        start_annotator(opened, [TYPE], "cell")
    with pytest.raises(InputError, match=f"found a {kind.__name__} of another origin"):
        load_annotator(opened)


def test_what_cannot_be_started_from(
    pretrained: ModelDirectory, vocabulary: GeneVocabulary, vocabulary_v2: GeneVocabulary, tmp_path: Path
) -> None:
    for arguments, message in (
        (([TYPE], "max"), "pooling: must be one of cell, cls, attention; found 'max'"),
        (([TYPE, TYPE], "cell"), "each of its own name; found 'type' twice"),
        (([], "cell"), "found none"),
        (([DOSAGE], "attention"), "pooling attention: needs a head at cell level"),
    ):
        with pytest.raises(InputError, match=message):
            start_annotator(pretrained, *arguments)
    with pytest.raises(InputError, match=r"--layer must lie in -3\.\.0"):
        start_annotator(pretrained, [TYPE], "cell", emb_layer=-4)
    v1 = str(tmp_path / "v1")
    save_model(BertForMaskedLM(bert_config("tiny", vocabulary, 16)), vocabulary, {}, v1)
    with pytest.raises(InputError, match="must have <cls>; found a V1 vocabulary"):
        start_annotator(ModelDirectory.open(v1), [TYPE], "cls")
    BertForMaskedLM(bert_config("tiny", vocabulary, 16)).save_pretrained(tmp_path / "official")
    with pytest.raises(InputError, match="32 rows for 34 tokens"):
        start_annotator(ModelDirectory.open(str(tmp_path / "official")), [TYPE], "cell", vocabulary=vocabulary_v2)


def test_encoder_weights_that_are_missing_are_never_drawn(vocabulary_v2: GeneVocabulary, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    BertForMaskedLM(bert_config("tiny", vocabulary_v2, 16)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: t for k, t in weights.items() if "layer.1." not in k}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="must hold the encoder's weights"):
        start_annotator(ModelDirectory.open(str(tmp_path)), [TYPE], "cell", vocabulary=vocabulary_v2)


def test_directories_that_cannot_predict(
    pretrained: ModelDirectory, vocabulary_v2: GeneVocabulary, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match="predicting needs a model with heads; found a model without heads, trained on"
    ):
        load_annotator(pretrained)
    save_annotator(start_annotator(pretrained, [TYPE], "cell"), vocabulary_v2, {}, str(tmp_path / "tuned"))
    path = tmp_path / "tuned" / "provenance.json"
    described = json.loads(path.read_text())
    for change, message in (
        ({"heads": [TYPE.to_json() | {"classes": ["a", "b"]}]}, r"heads\.type\.bias.*missing or of another size"),
        ({"heads": [TYPE.to_json(), AGE.to_json()]}, r"heads\.age\.bias.*missing"),
        ({"heads": [AGE.to_json() | {"name": "type", "mean": None}]}, "mean must be a finite float"),
        ({"heads": {}}, "heads must be a list"),
        ({"pooling": "attention"}, r"pooling\.query.*missing"),
        ({"pooling": None}, "pooling: must be one of"),
    ):
        path.write_text(json.dumps(described | change))
        with pytest.raises(InputError, match=message):
            load_annotator(ModelDirectory.open(str(tmp_path / "tuned")))
