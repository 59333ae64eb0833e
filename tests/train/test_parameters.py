"""Freezing, LoRA, layer-wise learning rates: which weights move, and how fast."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from transformers import BertForMaskedLM

from cellray.errors import InputError
from cellray.model.annotator import AnnotatedEncoder
from cellray.model.annotator_directory import load_annotator, save_annotator, start_annotator
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.heads import HeadSpec, head_loss
from cellray.model.presets import bert_config
from cellray.train.parameters import add_lora, count_parameters, freeze_layers, merge_lora, parameter_groups
from cellray.vocabulary import GeneVocabulary

TYPE = HeadSpec("type", "classification", "cell", ("a", "b", "c"))
TOKENS = torch.tensor([[2, 9, 5, 30, 7, 3], [2, 8, 3, 0, 0, 0]])


@pytest.fixture
def model(vocabulary_v2: GeneVocabulary, tmp_path: Path) -> AnnotatedEncoder:
    torch.manual_seed(0)
    uri = str(tmp_path / "pretrained")
    save_model(BertForMaskedLM(bert_config("tiny", vocabulary_v2, 16)), vocabulary_v2, {}, uri)
    return start_annotator(ModelDirectory.open(uri), [TYPE], "attention", dropout=0.0)


def train(model: AnnotatedEncoder, steps: int = 5) -> None:
    model.train()
    optimizer = AdamW(parameter_groups(model, 1e-2, 0.1))
    for _ in range(steps):
        optimizer.zero_grad()
        total, weight = head_loss(TYPE, model(TOKENS)["type"], torch.tensor([0, 2]))
        (total / weight).backward()
        optimizer.step()


@torch.no_grad()
def answer(model: AnnotatedEncoder) -> torch.Tensor:
    return model.eval()(TOKENS)["type"]


def moved(model: AnnotatedEncoder, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}


def copy(model: AnnotatedEncoder) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def test_frozen_layers_stay_bit_equal(model: AnnotatedEncoder) -> None:
    before = copy(model)
    freeze_layers(model, 2)
    train(model)
    changed = moved(model, before)
    assert {"heads.type.weight", "heads.type.bias", "pooling.query"} < changed
    assert {name.split(".")[3] for name in changed if name.startswith("bert.")} == {"2"}
    assert sum(name.startswith("bert.") for name in changed) == 16  # every weight and bias of the last layer


def test_nothing_or_everything_frozen(model: AnnotatedEncoder) -> None:
    freeze_layers(model, 0)
    assert count_parameters(model).trainable == count_parameters(model).total
    freeze_layers(model, 3)
    assert count_parameters(model).trainable == 3 * 128 + 3 + 128  # head and query
    for n in (-1, 4):
        with pytest.raises(InputError, match=rf"frozen layers must lie in 0\.\.3, the layers of the model; found {n}"):
            freeze_layers(model, n)
    model.requires_grad_(requires_grad=False)
    with pytest.raises(InputError, match="some weights must be trained"):
        parameter_groups(model, 1.0, 0.0)


@pytest.mark.parametrize(
    ("targets", "numbers"),
    [
        (("query", "value"), 3 * 2 * 4 * (128 + 128)),
        (("query", "key", "value", "dense"), 3 * 4 * (4 * 256 + 128 + 256 + 256 + 128)),  # ffn is 256 wide
    ],
)
def test_lora_counts_and_merges(
    model: AnnotatedEncoder, vocabulary_v2: GeneVocabulary, tmp_path: Path, targets: tuple[str, ...], numbers: int
) -> None:
    names, before, total = set(model.state_dict()), copy(model), count_parameters(model).total
    plain = answer(model)
    add_lora(model, 4, 8.0, targets=targets)
    assert torch.equal(answer(model), plain)  # the additions begin at nothing
    count = count_parameters(model)
    assert count.total == total + numbers
    assert count.trainable == numbers + 3 * 128 + 3 + 128
    train(model)
    adapted = answer(model)
    assert merge_lora(model) is model
    assert torch.allclose(answer(model), adapted, atol=1e-5)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    assert set(model.state_dict()) == names
    touched = {name.split(".")[-2] for name in moved(model, before) if name.startswith("bert.")}
    assert touched == set(targets)
    save_annotator(model, vocabulary_v2, {}, str(tmp_path / "tuned"))
    published = load_annotator(ModelDirectory.open(str(tmp_path / "tuned")))
    assert torch.allclose(answer(published), adapted, atol=1e-5)


def test_lora_keeps_to_layers_that_are_trained(model: AnnotatedEncoder, vocabulary_v2: GeneVocabulary) -> None:
    freeze_layers(model, 1)
    before = torch.get_rng_state()
    add_lora(model, 2, 4, dropout=0.1)
    assert torch.equal(torch.get_rng_state(), before)
    added = {name.split(".")[3] for name in model.state_dict() if "lora_" in name}
    assert added == {"1", "2"}
    freeze_layers(model, 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("bert.")}
    assert trained == {
        f"bert.encoder.layer.2.attention.self.{linear}.lora_{half}.default.weight"
        for linear in ("query", "value")
        for half in "AB"
    }
    with pytest.raises(AssertionError, match="must be merged"):
        save_annotator(model, vocabulary_v2, {}, "nowhere")


def test_lora_starts_from_its_seed(model: AnnotatedEncoder, vocabulary_v2: GeneVocabulary, tmp_path: Path) -> None:
    made = []
    for seed in (0, 0, 1):
        fresh = start_annotator(ModelDirectory.open(str(tmp_path / "pretrained")), [TYPE], "cell")
        add_lora(fresh, 2, 4, seed=seed)
        made.append(fresh.state_dict()["bert.encoder.layer.0.attention.self.query.lora_A.default.weight"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("query", "gate")}, "must be some of query, key, value, dense; found 'gate'"),
        ({"targets": ()}, "found none"),
        ({"rank": 0}, "--lora-rank: must be positive; found 0"),
    ],
)
def test_lora_that_makes_no_sense(model: AnnotatedEncoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_lora(model, **{"rank": 2, "alpha": 4.0, **options})
    freeze_layers(model, 3)
    with pytest.raises(InputError, match="needs a layer that is not frozen"):
        add_lora(model, 2, 4.0)


def test_learning_rates_by_hand(model: AnnotatedEncoder) -> None:
    groups = parameter_groups(model, 0.8, 0.1, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name in names_of(model, group)}
    decays = {name: group["weight_decay"] for group in groups for name in names_of(model, group)}
    assert set(rates) == {name for name, _ in model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(rates)
    for name, rate in (
        ("heads.type.weight", 0.8),
        ("pooling.query", 0.8),
        ("bert.encoder.layer.2.output.dense.weight", 0.4),
        ("bert.encoder.layer.1.attention.self.query.bias", 0.2),
        ("bert.encoder.layer.0.intermediate.dense.weight", 0.1),
        ("bert.embeddings.word_embeddings.weight", 0.05),
        ("bert.embeddings.LayerNorm.bias", 0.05),
    ):
        assert rates[name] == pytest.approx(rate), name
    assert decays == {
        name: 0.0 if name.endswith("bias") or "LayerNorm" in name or name == "pooling.query" else 0.1 for name in rates
    }
    assert [group["lr"] for group in groups] == sorted((group["lr"] for group in groups), reverse=True)
    for decay in (0.0, 1.1):
        with pytest.raises(InputError, match="must lie above 0 and not above 1"):
            parameter_groups(model, 0.8, 0.1, layer_decay=decay)


def names_of(model: AnnotatedEncoder, group: dict[str, Any]) -> list[str]:
    own = {id(p) for p in group["params"]}
    return [name for name, p in model.named_parameters() if id(p) in own]


def test_pretraining_models_have_groups_too(vocabulary: GeneVocabulary) -> None:
    model = BertForMaskedLM(bert_config("tiny", vocabulary, 16))
    freeze_layers(model, 1)
    (matrices, vectors, *_) = parameter_groups(model, 1.0, 0.1, layer_decay=0.9)
    assert (matrices["name"], vectors["name"]) == ("depth 0, matrices", "depth 0, vectors")
    assert count_parameters(model).total == sum(p.numel() for p in model.parameters())
