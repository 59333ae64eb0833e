"""Search spaces: what may be searched, and bounds that an option would refuse are refused before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from cellray.errors import InputError
from cellray.schema import request_digest
from cellray.train.finetune import FinetuneConfig
from cellray.train.search.options import SearchConfig, _asked
from cellray.train.search.report import Winner, best_task, best_toml
from cellray.train.search.space import SEARCHABLE, Choice, Space, read_space, with_values
from cellray.train.search.task_fields import check_task_fields, with_task_fields
from cellray.train.tasks.cells import CellTaskConfig
from cellray.train.tasks.table import TaskConfig, read_task

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
BASE = FinetuneConfig(corpus="c", model="m", task="t", output="o")


def space_of(text: str, folder: Path) -> Space:
    (folder / "space.toml").write_text(text)
    return read_space(str(folder / "space.toml"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("space_*.toml")), ids=lambda path: path.stem)
def test_the_spaces_that_come_with_the_jobs_fit_the_options(path: Path) -> None:
    space = read_space(str(path))
    space.check(BASE)
    assert set(space.parameters) <= SEARCHABLE


def test_every_kind_is_drawn_within_its_bounds(tmp_path: Path) -> None:
    import optuna

    text = """
    learning-rate = {kind = "log_uniform", low = 1e-6, high = 1e-3}
    dropout = {kind = "uniform", low = 0.0, high = 0.5}
    warmup_steps = {kind = "integer", low = 100, high = 2000, log = true}
    batch_size = {kind = "integer", low = 8, high = 32, step = 8}
    lora_targets = {kind = "choice", values = [["query"], ["query", "value"]]}
    lora_rank = {kind = "choice", values = [4, 8]}
    patience = {kind = "choice", values = [2]}
    """
    space = space_of(text, tmp_path)
    space.check(BASE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [with_values(BASE, space.decode(study.ask(space.distributions()).params)) for _ in range(100)]
    assert {config.batch_size for config in drawn} == {8, 16, 24, 32}
    assert {config.lora_targets for config in drawn} == {("query",), ("query", "value")}
    assert {config.lora_rank for config in drawn} == {4, 8}
    assert sum(config.learning_rate < 1e-5 for config in drawn) > 15  # a third of the range, on a logarithmic scale
    assert all(100 <= (config.warmup_steps or 0) <= 2000 and 0 <= config.dropout <= 0.5 for config in drawn)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one option"),
        ("[learning_rte]\nkind = 'uniform'\nlow = 1\nhigh = 2", "'learning_rte' (did you mean 'learning_rate'?)"),
        ("[num_workers]\nkind = 'integer'\nlow = 1\nhigh = 2", "only these options can be searched"),
        ("[corpus]\nkind = 'choice'\nvalues = ['a']", "'corpus'"),
        (
            "[dropout]\nkind = 'normal'",
            "[dropout]: kind must be one of 'uniform', 'log_uniform', '",
        ),
        ("[dropout]\nkind = 'loguniform'", "not 'loguniform' (did you mean 'log_uniform'?)"),
        ("[dropout]\nlow = 0", "found [dropout]: kind is missing."),
        ("[dropout]\nkind = 'uniform'\nlow = 0.1", "[dropout] high: Field required"),
        ("[dropout]\nkind = 'uniform'\nlow = 0.3\nhigh = 0.1", "low 0.3 is above high 0.1"),
        ("[dropout]\nkind = 'uniform'\nlow = 0.3\nhigh = nan", "[dropout] high: Input should be a finite number"),
        ("[learning_rate]\nkind = 'log_uniform'\nlow = 0\nhigh = 1", "begins above 0"),
        ("[batch_size]\nkind = 'integer'\nlow = 1\nhigh = 8\nstep = 4", "whole number of steps of 4"),
        ("[lora_rank]\nkind = 'choice'\nvalues = []", "[lora_rank] values"),
        ("[lora_rank]\nkind = 'choice'\nvalues = [4, '4']", "must be distinct"),
        ("learning_rate = 3", "[learning_rate]"),
        ("[dropout", "--space names a TOML file"),
    ],
)
def test_a_wrong_space_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        space_of(text, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[dropout]\nkind = 'uniform'\nlow = 0.0\nhigh = 1.0", "[dropout] must lie within the option's own limits"),
        ("[batch_size]\nkind = 'integer'\nlow = 0\nhigh = 8", "0: Input should be greater than or equal to 1"),
        ("[batch_size]\nkind = 'uniform'\nlow = 8.0\nhigh = 16.0", "should be a valid integer"),
        ("[schedule]\nkind = 'choice'\nvalues = ['linear', 'square']", "'square': Input should be 'linear'"),
        ("[layer]\nkind = 'integer'\nlow = -1\nhigh = 1", "[layer]"),
    ],
)
def test_values_beyond_an_options_limits_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        space_of(text, tmp_path).check(BASE)
    assert message in str(caught.value)


def test_large_spaces_are_probed_at_each_bound(tmp_path: Path) -> None:
    names = [name for name in sorted(SEARCHABLE) if name not in {"schedule", "precision", "pooling", "lora_targets"}]
    text = "\n".join(f"[{name}]\nkind = 'choice'\nvalues = [1, 2, 3]" for name in names)
    probes = space_of(text, tmp_path).probes()
    assert len(probes) == 3 * len(names) + 2


def asked(config: SearchConfig) -> str:
    return request_digest(**_asked(config))


def test_options_of_a_search() -> None:
    values = {"corpus": "c", "model": "m", "task": "t", "output": "o", "space": "s"}
    config = SearchConfig(**values, objectives=("macro_f1", "ece"), use_gpu=True)  # type: ignore[arg-type]
    assert config.base().monitor == "macro_f1"
    assert config.gpus == 1.0
    assert config.base().corpus == str(Path("c").absolute())
    given = SearchConfig.model_validate({**values, "reduction_factor": 3.0, "epochs": 10.0})
    assert asked(given) == asked(SearchConfig.model_validate({**values, "trials": 99}))
    assert asked(given) != asked(SearchConfig.model_validate({**values, "epochs": 9}))
    assert SearchConfig(**values, monitor="accuracy").base().monitor == "accuracy"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nsga2 is for several objectives"):
        SearchConfig(**values, sampler="nsga2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="each once"):
        SearchConfig(**values, objectives=("ece", "ece"))  # type: ignore[arg-type]


TASK = """
task = "multitask"
[[heads]]
name = "kind"
leave_out = ["Unknown"]
[[heads]]
name = "age"
kind = "regression"
[split]
folds = 3
"""


def task_of(text: str, folder: Path) -> TaskConfig:
    (folder / "task.toml").write_text(text)
    return read_task(str(folder / "task.toml"))


def test_fields_of_a_task_are_searched(tmp_path: Path) -> None:
    """A head that is called `kind` is no range; what is written for the best trial reads as the task it was."""
    text = """
    [task.heads.kind.class_weights]
    kind = "choice"
    values = ["none", "balanced"]
    [task.heads.age.weight]
    kind = "log_uniform"
    low = 0.1
    high = 10.0
    [dropout]
    kind = "uniform"
    low = 0.0
    high = 0.5
    """
    space, task = space_of(text, tmp_path), task_of(TASK, tmp_path)
    assert set(space.parameters) == {"task.heads.kind.class_weights", "task.heads.age.weight", "dropout"}
    space.check(BASE)
    check_task_fields(space.parameters, task, {"kind/macro_f1"}, "space")
    with pytest.raises(InputError, match="losses that cannot be compared"):
        check_task_fields(space.parameters, task, {"validation_loss"}, "space")
    values = {"task.heads.kind.class_weights": "balanced", "task.heads.age.weight": 2.5, "dropout": 0.25}
    changed = with_task_fields(task, values)
    assert isinstance(changed, CellTaskConfig)
    assert [(head.class_weights, head.weight) for head in changed.heads] == [("balanced", 1.0), ("none", 2.5)]
    assert changed.split == task.split
    assert with_values(BASE, values).dropout == 0.25
    asked_for = {**BASE.model_dump(include={"corpus", "model", "output"}), "space": "s"}
    config = SearchConfig(task=str(tmp_path / "task.toml"), **asked_for)
    winner = Winner(0, values, {"kind/macro_f1": 1.0}, (0,), "best value")
    assert task_of(best_task(config, winner), tmp_path) == changed
    assert best_task(config, replace(winner, values={"dropout": 0.25})) == ""
    assert "task.heads" not in best_toml(config, winner)


def test_the_only_head_needs_no_name(tmp_path: Path) -> None:
    task = task_of('task = "cell_classification"\nlabel = "kind"', tmp_path)
    changed = with_task_fields(task, {"task.class_weights": "balanced"})
    assert isinstance(changed, CellTaskConfig)
    assert changed.heads[0].class_weights == "balanced"
    assert changed == with_task_fields(task, {"task.heads.kind.class_weights": "balanced"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("task.heads.kinds.weight", "must be named; found 'task.heads.age.class_weights', 'task.heads.age.weight'"),
        ("task.weight", "a field of the task must be named"),
        ("task.heads.kind.class_weights", "'x': Input should be 'none' or 'balanced'"),
    ],
)
def test_fields_that_a_task_does_not_have_are_told(tmp_path: Path, name: str, message: str) -> None:
    space = {name: Choice(kind="choice", values=["x"])}
    with pytest.raises(InputError) as caught:
        check_task_fields(space, task_of(TASK, tmp_path), set(), "space")
    assert message in str(caught.value)
    with pytest.raises(InputError, match="only these options can be searched"):
        space_of("[task.split.folds]\nkind = 'choice'\nvalues = [2, 3]", tmp_path)
