"""The recipes that come with the jobs: each is read, and has the numbers it was published with."""

from pathlib import Path

import pytest

from cellray.config import parse_config
from cellray.model.presets import PRESETS
from cellray.train.finetune import FinetuneConfig
from cellray.train.pretrain import PretrainConfig
from cellray.train.tasks.cells import CellTaskConfig
from cellray.train.tasks.gene_labels import read_gene_classes
from cellray.train.tasks.genes import GeneTaskConfig
from cellray.train.tasks.table import TASKS, read_task

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("pretrain_*.toml")))
def test_a_recipe_of_pretraining_is_read(name: str) -> None:
    config = parse_config(
        PretrainConfig, ["--config", str(CONFIGS / name), "--corpus", "c", "--output", "o"], "python -m jobs.pretrain"
    )
    assert config.preset == name.removeprefix("pretrain_").removesuffix(".toml").replace("_", "-")
    assert config.preset in PRESETS
    assert config.use_gpu


def test_the_recipes_say_what_was_published() -> None:
    def read(name: str) -> PretrainConfig:
        argv = ["--config", str(CONFIGS / name), "--corpus", "c", "--output", "o"]
        return parse_config(PretrainConfig, argv, "python -m jobs.pretrain")

    first, second = read("pretrain_v1_10m.toml"), read("pretrain_v2_104m.toml")
    assert (first.learning_rate, first.schedule, first.warmup(10**6), first.batch_size) == (1e-3, "linear", 10_000, 144)
    assert (second.learning_rate, second.schedule, second.warmup(10**6)) == (2e-4, "cosine", 7_000)
    assert first.num_workers == (12, 12)


def test_the_recipe_of_fine_tuning_says_what_was_published() -> None:
    argv = [
        "--config",
        str(CONFIGS / "finetune_v1.toml"),
        *["--corpus", "c", "--model", "m", "--task", "t", "--output", "o"],
    ]
    config = parse_config(FinetuneConfig, argv, "python -m jobs.finetune")
    assert (config.learning_rate, config.schedule, config.warmup(10**6)) == (5e-5, "linear", 500)
    assert (config.weight_decay, config.batch_size, config.epochs) == (0.001, 12, 10)


def test_there_is_an_example_of_every_task() -> None:
    examples = {path.stem: read_task(str(path)) for path in CONFIGS.glob("task_*.toml")}
    assert set(examples) == {f"task_{name}" for name in TASKS}
    assert all(name == f"task_{config.task}" for name, config in examples.items())
    multitask = examples["task_multitask"]
    assert isinstance(multitask, CellTaskConfig)
    assert [(head.name, head.obs_column, head.kind) for head in multitask.heads] == [
        ("cell_type", "bulk_labels", "classification"),
        ("phase", "phase", "classification"),
        ("n_genes", "n_genes", "regression"),
    ]
    genes = examples["task_gene_classification"]
    assert isinstance(genes, GeneTaskConfig)
    assert {name: len(members) for name, members in read_gene_classes(genes.genes).items()} == {
        "transcription": 24,
        "mitochondrion": 44,
    }
