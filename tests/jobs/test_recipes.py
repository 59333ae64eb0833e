"""The recipes that come with the jobs: each is read, and has the numbers it was published with."""

from pathlib import Path

import pytest

from cellray.config import parse_config
from cellray.model.presets import PRESETS
from cellray.train.pretrain import PretrainConfig

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
