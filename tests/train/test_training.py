"""Masking, the loss, the loop; and real runs on Ray Train."""

from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from cellray import storage
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.model.checkpoint import ModelDirectory
from cellray.model.encoder import load_encoder
from cellray.model.packed import unpad
from cellray.model.presets import bert_config
from cellray.train.objectives import NOT_MASKED, GeneMasker, MaskedBatch, MaskedGeneLoss, step_generator
from cellray.train.pretrain import PretrainConfig, pretrain, write_initial_model
from cellray.vocabulary import GeneVocabulary

CPU = torch.device("cpu")


def tokens_of(low: int, high: int, rows: int, length: int) -> torch.Tensor:
    """Return token ids drawn from low to high - 1, the same ones whatever tests ran before."""
    return torch.randint(low, high, (rows, length), generator=torch.Generator().manual_seed(0))


def test_masking_has_the_stated_shares_and_spares_special_tokens(vocabulary_v2: GeneVocabulary) -> None:
    tokens_nl = tokens_of(4, 34, 2000, 102)
    tokens_nl[:, 0], tokens_nl[:, -1] = 2, 0
    batch = GeneMasker(vocabulary_v2, 0.15, CPU)(tokens_nl, step_generator(0, 0, 0, CPU))
    chosen = batch.labels_nl != NOT_MASKED
    assert torch.equal(batch.labels_nl[chosen], tokens_nl[chosen])
    assert torch.equal(batch.input_ids_nl[~chosen], tokens_nl[~chosen])
    assert not chosen[:, [0, -1]].any()
    assert float(chosen[:, 1:-1].float().mean()) == pytest.approx(0.15, abs=0.003)
    inputs, labels = batch.input_ids_nl[chosen], batch.labels_nl[chosen]
    assert float((inputs == 1).float().mean()) == pytest.approx(0.8, abs=0.01)
    # 10 % stay, and one draw in thirty hits the gene itself
    assert float((inputs == labels).float().mean()) == pytest.approx(0.1 + 0.1 / 30, abs=0.006)
    drawn = inputs[(inputs != 1) & (inputs != labels)]
    assert drawn.min() == 4
    assert drawn.max() == 33


def test_masks_depend_on_seed_step_and_rank_alone(vocabulary: GeneVocabulary) -> None:
    masker, tokens_nl = GeneMasker(vocabulary, 0.5, CPU), tokens_of(2, 32, 4, 16)

    def masks(seed: int, step: int, rank: int) -> list[list[int]]:
        return masker(tokens_nl, step_generator(seed, step, rank, CPU)).input_ids_nl.tolist()  # type: ignore[no-any-return]

    assert masks(1, 2, 3) == masks(1, 2, 3)
    assert len({str(masks(*key)) for key in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))}) == 4


def test_held_out_masks_depend_on_the_cell_alone(vocabulary: GeneVocabulary) -> None:
    masker, tokens_nl = GeneMasker(vocabulary, 0.15, CPU), tokens_of(2, 32, 3000, 50)
    tokens_nl[::3, 30:] = 0
    cells_n = torch.arange(3000)
    whole = masker.by_cell(tokens_nl, cells_n, 5)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    again = masker.by_cell(tokens_nl[order], cells_n[order], 5)
    assert torch.equal(again.labels_nl, whole.labels_nl[order])
    assert torch.equal(again.input_ids_nl, whole.input_ids_nl[order])
    packed = masker.by_cell(unpad(tokens_nl[:40], 0), cells_n[:40], 5)
    present_nl = tokens_nl[:40] != 0
    assert torch.equal(packed.input_ids_nl[0], whole.input_ids_nl[:40][present_nl])
    assert not torch.equal(masker.by_cell(tokens_nl, cells_n, 6).labels_nl, whole.labels_nl)
    chosen_nl = whole.labels_nl != NOT_MASKED
    assert float(chosen_nl[tokens_nl != 0].float().mean()) == pytest.approx(0.15, abs=0.004)
    share_l = chosen_nl[1::3].float().mean(0)  # no place is spared
    assert float(share_l.min()) > 0.11
    assert float(share_l.max()) < 0.19
    assert float((whole.input_ids_nl[chosen_nl] == 1).float().mean()) == pytest.approx(0.8, abs=0.015)
    drawn = whole.input_ids_nl[chosen_nl & (whole.input_ids_nl != 1) & (whole.input_ids_nl != tokens_nl)]
    assert torch.bincount(drawn, minlength=32)[2:].min() > 30


def test_the_loss_is_that_of_the_whole_head(vocabulary: GeneVocabulary) -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(bert_config("tiny", vocabulary, 16)).eval()
    tokens_nl = torch.randint(2, 32, (3, 16))
    tokens_nl[1, 9:] = 0
    batch = GeneMasker(vocabulary, 0.3, CPU)(tokens_nl, step_generator(0, 0, 0, CPU))
    expected = model(batch.input_ids_nl, attention_mask=batch.input_ids_nl != 0, labels=batch.labels_nl).loss
    total, count = MaskedGeneLoss(model, vocabulary)(batch)
    assert (total / count).item() == pytest.approx(expected.item(), abs=1e-5)


def test_nothing_masked_is_no_loss(vocabulary: GeneVocabulary) -> None:
    model = BertForMaskedLM(bert_config("tiny", vocabulary, 16))
    nothing = MaskedBatch(torch.full((1, 4), 5), torch.full((1, 4), NOT_MASKED))
    total, count = MaskedGeneLoss(model, vocabulary)(nothing)
    assert (total.item(), count.item()) == (0.0, 0)


@pytest.mark.usefixtures("ray_session")
def test_pretraining_makes_a_model_and_a_record(corpus: str, bucket: str, tmp_path: Path) -> None:
    """A model in object storage, made with checkpoints there."""
    store = f"sqlite:///{tmp_path}/mlflow.db"
    config = PretrainConfig(
        corpus=corpus,
        output=f"{bucket}/models/tiny",
        max_steps=24,
        batch_size=16,
        validate_every=12,
        log_every=6,  # a short run reports more often: ten times at least
        validation_fraction=0.1,
        learning_rate=3e-3,
        tracking_uri=store,
        experiment="tests",
    )
    result = pretrain(config)
    assert result.steps == 24
    model = ModelDirectory.open(result.uri)
    assert model.provenance["corpus_digest"] == Corpus.open(corpus).manifest.digest
    assert load_encoder(model, -1)(torch.tensor([[2, 3, 4]])).shape == (1, 3, 128)
    with storage.local_directory(result.uri) as folder:
        assert AutoModelForMaskedLM.from_pretrained(folder).config.num_hidden_layers == 3
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.003"
    assert run.data.tags["corpus_digest"] == model.provenance["corpus_digest"]
    history = client.get_metric_history(run.info.run_id, "validation_loss")
    assert [point.step for point in history] == [12, 24]
    assert history[-1].value == pytest.approx(result.validation_loss)
    assert [p.step for p in client.get_metric_history(run.info.run_id, "train_loss")] == list(range(2, 25, 2))
    write_initial_model(config, str(tmp_path / "initial"))
    assert ModelDirectory.open(str(tmp_path / "initial")).digest != model.digest
    assert pretrain(config) == result  # done already
    assert ModelDirectory.open(result.uri).digest == model.digest
    with pytest.raises(InputError, match="must be empty or hold this very result; found another model"):
        pretrain(config.model_copy(update={"seed": 1}))
    with pytest.raises(InputError, match="the output must be new or empty"):
        pretrain(config.model_copy(update={"output": str(tmp_path)}))
    with pytest.raises(InputError, match="workers must fit on the machine"):
        pretrain(config.model_copy(update={"output": str(tmp_path / "two"), "num_workers": (3, 3)}))
    assert not storage.exists(f"{result.uri}.training/turn.json")
    assert not storage.exists(f"{result.uri}.training/checkpoints-{model.provenance['request'][:12]}")


@pytest.mark.usefixtures("ray_session")
def test_a_corpus_too_small_to_train_on(corpus: str, tmp_path: Path) -> None:
    config = PretrainConfig(corpus=corpus, output=str(tmp_path / "m"), batch_size=500, tracking_uri="none")
    with pytest.raises(InputError, match="training needs at least 500 cells for one step"):
        pretrain(config)
    with pytest.raises(InputError, match="--preset: must be one of tiny"):
        pretrain(config.model_copy(update={"batch_size": 4, "preset": "huge"}))
    assert not (tmp_path / "m").exists()
