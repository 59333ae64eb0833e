"""The guide: its commands are understood, its files are there, its table follows from its formulas. And `ray up`."""

import re
import subprocess
import sys
from math import isclose
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from transformers import BertConfig

from cellray.config import parse_config
from cellray.model.presets import PRESETS
from cellray.train.tasks.cells import CellTaskConfig
from cellray.train.tasks.table import read_task
from cellray.train.throughput import StepWork
from tests.cluster.crd import CLUSTER, Json, load
from tests.cluster.objects import config_of, job_commands, readme
from tests.conftest import REPOSITORY

sys.path.append(str(CLUSTER))
import sizing

LAUNCHER: Json = load(CLUSTER / "ray-up-aws.yaml")[0]


@pytest.mark.parametrize("command", job_commands(readme()), ids=lambda command: command[0])
def test_a_job_of_the_guide_understands_its_command(command: list[str]) -> None:
    assert parse_config(config_of(command[0]), command[1:], command[0])


def test_the_guide_has_jobs_and_names_files_that_are_there() -> None:
    jobs = {"build_vocabulary", "tokenize_corpus", "finetune", "perturbation_stats", "inspect_corpus"}
    assert {command[0] for command in job_commands(readme())} == jobs
    named = set(re.findall(r"my-cluster/([\w./-]+\.\w+)", readme())) | {"Dockerfile", "sizing.py"}
    named |= set(re.findall(r"`((?:aws|kuberay|monitoring)/[\w.-]+)`", readme()))
    assert [each for each in sorted(named) if not (CLUSTER / each).exists()] == []
    for path in [*(CLUSTER / "kuberay").iterdir(), *(CLUSTER / "aws").iterdir()]:
        assert path.name in readme()


def test_the_guides_jobs_hand_on_what_the_next_one_needs(tmp_path: Path) -> None:
    by_name = {command[0]: command[1:] for command in job_commands(readme())}
    parsed = {name: parse_config(config_of(name), options, name).model_dump() for name, options in by_name.items()}
    [[_, *options]] = job_commands(load(CLUSTER / "kuberay" / "rayjob-screen.yaml")[0]["spec"]["entrypoint"])
    screen = parse_config(config_of("perturb"), options, "perturb").model_dump()
    [task_file] = re.findall(r"<<'TOML'\n(.*?)\nTOML", readme(), re.DOTALL)
    (tmp_path / "task.toml").write_text(task_file)
    task = read_task(str(tmp_path / "task.toml"))
    assert isinstance(task, CellTaskConfig)
    kept = set(parsed["tokenize_corpus"]["obs_columns"])
    assert {screen["state_column"], screen["donor"], task.split.group} | {
        head.obs_column for head in task.heads
    } <= kept
    assert parsed["finetune"]["task"] in readme().split("<<'TOML'")[0]
    assert parsed["finetune"]["corpus"] == parsed["tokenize_corpus"]["output"] == screen["corpus"]
    assert parsed["finetune"]["output"] == screen["model"]
    assert parsed["perturbation_stats"]["shifts"] == screen["output"] == parsed["inspect_corpus"]["corpus"]


def test_the_table_of_the_guide_is_what_the_formulas_give() -> None:
    printed = subprocess.run(
        [sys.executable, str(CLUSTER / "sizing.py")],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY / "platform")},
    ).stdout
    assert printed in readme()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("tokens", value) for value in ("0", "-5", "5000", "many")),
        *(("gpu-share", value) for value in ("20", "0", "nan")),
    ],
)
def test_sizes_refuse_what_cannot_be(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sizing.py", f"--{option}={value}"])
    with pytest.raises(SystemExit) as ended:
        sizing.main()
    assert ended.value.code == 2
    assert f"argument --{option}: '{value}': give" in capsys.readouterr().err


def test_cells_too_long_for_v1_have_no_rows_of_v1() -> None:
    assert "V1-10M" in sizing.table(2048, sizing.GPU_SHARE)
    lines = sizing.table(4000, sizing.GPU_SHARE).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| tokenize", "| embed, V2-104M"]
    assert "measured at 1,000, scaled) | 6,500 |" in lines[0]


def test_formulas_of_sizes_are_those_of_training() -> None:
    preset, tokens = "v1-10m", 1000
    size = PRESETS[preset]
    config = BertConfig(
        vocab_size=sizing.GENES[preset],
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        intermediate_size=size.ffn,
        num_attention_heads=size.heads,
    )
    assert sizing.training_flops(preset, tokens) == StepWork(config).flops(tokens, tokens**2, 150)


def test_sizes_by_hand() -> None:
    # V1, 5 of 6 layers, one token: 2 * 5 * (4 * 256^2 + 2 * 256 * 512) + 4 * 5 * 256
    assert sizing.forward_flops("v1-10m", 1) == 5_248_000
    # the speed that was measured at 512 genes comes out again
    assert isclose(2 * sizing.CORE_FLOPS / sizing.forward_flops("v1-10m", 512), 31.0, rel_tol=0.005)
    # and those at 256 and 1,024 genes are told within a fifth
    assert isclose(2 * sizing.CORE_FLOPS / sizing.forward_flops("v1-10m", 255), 85.2, rel_tol=0.2)
    assert isclose(2 * sizing.CORE_FLOPS / sizing.forward_flops("v1-10m", 1023), 13.6, rel_tol=0.2)


def test_the_standing_cluster_is_as_large_as_the_table_says() -> None:
    [cluster] = [each for each in load(CLUSTER / "kuberay" / "raycluster.yaml") if each["kind"] == "RayCluster"]
    groups = {each["groupName"]: each for each in cluster["spec"]["workerGroupSpecs"]}
    limits = groups["cpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert groups["cpu"]["maxReplicas"] * int(limits["cpu"]) == sizing.CORES
    assert groups["gpu-spot"]["maxReplicas"] == sizing.GPUS


def test_ray_up_takes_its_file() -> None:
    validate_config(prepare_config(LAUNCHER))
    with pytest.raises(Exception, match="'maximum_workers' was unexpected"):
        validate_config(prepare_config(LAUNCHER | {"maximum_workers": 3}))


def test_machines_of_ray_up_ask_for_a_token_and_let_in_ssh_alone() -> None:
    assert "--env RAY_AUTH_MODE=token" in LAUNCHER["docker"]["run_options"]
    assert LAUNCHER["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    [rule] = LAUNCHER["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert [each["CidrIp"] for each in rule["IpRanges"]] == ["203.0.113.7/32"]  # of the range for examples
    for name, each in LAUNCHER["available_node_types"].items():
        assert each["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert each["resources"]["CPU"] == 0 if name == "head" else each["max_workers"] > 0
    assert yaml.safe_dump(LAUNCHER).count("--num-cpus=0") == 1
