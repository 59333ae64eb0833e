"""An unfinished training beside an output: gone on with, or told of and left alone, never put aside without a word."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellray.errors import InputError
from cellray.schema import request_digest
from cellray.train import finetune, pretrain
from cellray.train.finetune import FinetuneConfig
from cellray.train.pretrain import PretrainConfig
from cellray.train.unfinished import Asked, differences
from cellray.vocabulary import GeneVocabulary
from tests.conftest import random_counts
from tests.data.corpora import tokenized
from tests.infer.tiny import corpus_in, model_in
from tests.train.local import StopError

TASK = "task = 'cell_classification'\nlabel = 'state'\n[split]\nkind = 'random'\nfolds = {}\n"


def asked(folder: Path, **options: Any) -> Asked:  # noqa: ANN401
    return Asked(str(folder), request_digest(**options), options, steps=60)


def left(folder: Path, name: str, step: int) -> None:
    """Leave what the whole checkpoint of a step is found by."""
    place = folder / name / f"step-{step:08d}"
    place.mkdir(parents=True)
    (place / "checkpoint.json").write_text("{}")


def test_what_was_begun_with_other_options_is_told_and_kept(tmp_path: Path) -> None:
    first = asked(tmp_path, corpus="a", learning_rate=1e-3, targets=("query", "value"), task={"split": {"folds": 1}})
    first.require_training()  # nothing is there
    first.write()
    other = asked(tmp_path, corpus="b", learning_rate=5e-4, targets=("query",), task={"split": {"folds": 5}})
    other.require_training()  # no checkpoint, so nothing would be lost
    left(tmp_path, f"checkpoints-{first.request[:12]}", 20)
    left(tmp_path, f"checkpoints-{first.request[:12]}", 40)
    first.require_training()
    with pytest.raises(InputError) as caught:
        other.require_training()
    assert str(caught.value) == (
        f"{tmp_path}: an unfinished training goes on with the options it was begun with; found one that reached step 40"
        " of 60, begun with another --corpus; --learning-rate 0.001, not 0.0005; --targets query,value, not query; "
        "task.split.folds 1, not 5. Give those options to go on with it, choose another --output, or remove "
        f"{tmp_path} to give it up."
    )
    left(tmp_path, f"checkpoints-{other.request[:12]}", 5)  # as an earlier version did beside the first
    other.require_training()
    first.require_training()


def test_one_of_another_version_with_these_options_is_told(tmp_path: Path) -> None:
    """An option that came since, left out here, makes another request of the same options."""
    options = {"corpus": "a", "seed": 1}
    Asked(str(tmp_path), request_digest(**options), options, steps=60).write()
    left(tmp_path, f"checkpoints-{request_digest(**options)[:12]}", 40)
    with pytest.raises(InputError, match=r"step 40 of 60, begun with these options by a version .* Install that"):
        asked(tmp_path, **options, new=None).require_training()


def test_one_that_an_earlier_version_left_is_known_by_its_folder(tmp_path: Path) -> None:
    left(tmp_path, "0123456789ab-0-0", 7)
    left(tmp_path, "0123456789ab-1-0", 9)
    with pytest.raises(InputError, match="found one that reached step 9, with other options"):
        asked(tmp_path, seed=1).require_training()


def test_a_long_list_of_differences_is_cut() -> None:
    before: dict[str, Any] = {f"option_{i}": i for i in range(9)}
    assert differences(before, dict.fromkeys(before, 100))[5:] == ["--option-5 5, not 100", "3 more"]
    assert differences({"genes": "x" * 80}, {"genes": None}) == ["another --genes"]
    assert differences({"a": 1, "b": [2]}, {"a": 1, "b": (2,), "c": None}) == []


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let trainings begin without Ray, leave a checkpoint of step 4 and be stopped; keep their plans."""
    begun: list[Any] = []

    def fit(plans: list[Any], *_: object) -> None:
        begun.append(plans)
        if not Path(plans[0].checkpoints).exists():
            left(Path(plans[0].checkpoints).parent, Path(plans[0].checkpoints).name, 4)
        raise StopError

    for module in (finetune, pretrain):
        monkeypatch.setattr(module, "fit", fit)
        monkeypatch.setattr(module, "check_resources", lambda config: None)
    return begun


def test_pretraining_goes_on_with_what_may_change_and_with_nothing_else(
    make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path, stopped: list[Any]
) -> None:
    corpus = tokenized([make_h5ad(x=random_counts(60, 40))], vocabulary, tmp_path / "corpus").uri
    output = tmp_path / "model"
    shared: dict[str, Any] = {"corpus": corpus, "output": str(output), "max_steps": 8, "tracking_uri": "none"}
    for more in ({}, {"num_workers": (2, 2), "threads": 1, "checkpoint_minutes": 1.0, "keep_checkpoints": 5}):
        with pytest.raises(StopError):
            pretrain.pretrain(PretrainConfig(**shared, **more))
    with pytest.raises(InputError, match=r"reached step 4 of 8, begun with --learning-rate 0.001, not 0.0005\. Give"):
        pretrain.pretrain(PretrainConfig(**shared, learning_rate=5e-4))
    assert len(stopped) == 2
    assert len(list(tmp_path.glob("model.training/*/step-00000004/checkpoint.json"))) == 1
    with pytest.raises(StopError):
        pretrain.pretrain(PretrainConfig(**{**shared, "output": str(tmp_path / "other")}, learning_rate=5e-4))


def test_fine_tuning_tells_of_the_task_too(vocabulary: GeneVocabulary, tmp_path: Path, stopped: list[Any]) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary)
    task, shared = tmp_path / "task.toml", {"tracking_uri": "none", "max_steps": 3, "batch_size": 4}
    places = {"corpus": corpus.uri, "model": model, "task": str(task), "output": str(tmp_path / "tuned")}
    config = FinetuneConfig(**places, **shared)  # type: ignore[arg-type]
    task.write_text(TASK.format(2))
    with pytest.raises(StopError):
        finetune.finetune(config)
    task.write_text(TASK.format(3))
    message = r"reached step 4 of 3 in 1 of 3 trainings, begun with task\.split\.folds 2, not 3"
    with pytest.raises(InputError, match=message):
        finetune.finetune(config)
    assert len(stopped) == 1


def test_trials_of_another_search_are_not_gone_on_with(tmp_path: Path) -> None:
    trials = tmp_path / "trials"
    first, other = asked(tmp_path, epochs=3), asked(tmp_path, epochs=1)
    first.require_search(str(trials))
    first.write()
    other.require_search(str(trials))  # no trial was begun
    (trials / "00000").mkdir(parents=True)
    (trials / "00001").mkdir()
    first.require_search(str(trials))
    with pytest.raises(InputError, match=r"an unfinished search .* one with 2 trial\(s\) begun, .* --epochs 3, not 1"):
        other.require_search(str(trials))
