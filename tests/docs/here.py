"""Runs the steps of a page in this process, on the small set-up, and follows which files come and go.

Training is done here instead of by Ray Train, with few steps; models are replicated without Ray (`--actors 0`).
"""

import json
import re
import runpy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from cellray.api.schema import EmbeddingRequest, PerturbationRequest
from cellray.config import JobConfig, parse_config
from cellray.train.tasks.genes import GeneTaskConfig
from cellray.train.tasks.table import read_task
from cellray.train.turn import Turn
from cellray.train.worker import Outcome, TrainPlan, run_plan
from serving.config import ServingConfig, read_config
from tests.docs.pages import PYTHON, Command, File, Step
from tests.train.local import CPU, LocalSession

SMALLER: dict[str, dict[str, str]] = {
    "pretrain": {"--max-steps": "2", "--batch-size": "8", "--tracking-uri": "none", "--threads": "1"},
    "finetune": {"--max-steps": "2", "--tracking-uri": "none", "--threads": "1"},
    "embed_cells": {"--actors": "0", "--threads": "1"},
    "predict": {"--actors": "0", "--threads": "1"},
    "perturb": {"--actors": "0", "--threads": "1", "--max-cells": "12"},
}
"""Options that replace those of a command, so that tiny data take seconds."""

INPUTS = [
    *("config", "corpus", "dataset", "embeddings", "from_geneformer", "gene_names", "gene_table", "model", "null"),
    *("perturbations", "quality", "shifts", "source", "space", "state_embeddings", "task", "vocabulary"),
]
"""Options that name something there must be."""
OUTPUTS = ["output", "h5ad", "umap", "plots", "plot"]
"""Options that name something a command makes."""
BELOW = {"finetune": [".report"]}
"""Endings of what a job makes beside its output."""
ENDPOINTS = {"/v1/embeddings": EmbeddingRequest, "/v1/perturbations": PerturbationRequest}


def job_of(name: str) -> tuple[type[JobConfig], Callable[[Any], str]]:
    """Return a job's configuration and its function."""
    main = import_module(f"jobs.{name}").main
    return get_type_hints(main)["config"], main


def parsed(command: Command, smaller: bool = False) -> tuple[JobConfig, Callable[[Any], str]]:
    """Read a job's options as the job does."""
    assert command.job is not None
    config, main = job_of(command.job)
    words = command.words[3:]
    for option, value in SMALLER.get(command.job, {}).items() if smaller else ():
        if option in words:
            words[words.index(option) + 1] = value
        elif option.removeprefix("--").replace("-", "_") in config.model_fields:
            words += [option, value]
    return parse_config(config, words, f"python -m jobs.{command.job}"), main


def files_of(command: Command, config: JobConfig, names: Sequence[str]) -> list[str]:
    """Return the files that options of these names name."""
    told = {name: getattr(config, name, None) for name in names}
    if "--config" in command.words:
        told["config"] = command.words[command.words.index("--config") + 1]
    values = [told[name] for name in names if told.get(name)]
    return [str(each) for value in values for each in (value if isinstance(value, tuple) else (value,))]


def run_job(command: Command, *, only_parse: bool) -> tuple[list[str], list[str]]:
    """Run a job, or only read its options; return the files it needs and those it makes."""
    config, main = parsed(command, smaller=not only_parse)
    needed, made = files_of(command, config, INPUTS), files_of(command, config, OUTPUTS)
    if getattr(config, "dry_run", False):
        made = []
    if (task := getattr(config, "task", None)) is not None:
        opened = read_task(task)
        needed += [Path(opened.genes).name] if isinstance(opened, GeneTaskConfig) else []
    made += [f"{config.output}{ending}" for ending in BELOW.get(command.job or "", [])]  # type: ignore[attr-defined]
    if not only_parse:
        assert main(config)
        assert all(Path(name).exists() for name in made)
    return needed, made


def run_script(name: str, *, only_parse: bool) -> tuple[list[str], list[str]]:
    """Run a script that the page shows, or only compile it; return the files it opens to read and to write."""
    text = Path(name).read_text()
    compile(text, name, "exec")
    needed, made = re.findall(r'open\("([^"]+)"\)', text), re.findall(r'open\("([^"]+)", "w"\)', text)
    if not only_parse:
        runpy.run_path(name)
        assert all(Path(each).exists() for each in made)
    return [name, *needed], made


def copy(command: Command) -> tuple[list[str], list[str]]:
    _, source, target = command.words
    shutil.copy(source, target)
    return [source], [target]


def serve(command: Command) -> tuple[list[str], list[str]]:
    """Read the configuration of a server."""
    assert command.words[:4] == [PYTHON, "-m", "serving.run", "--config"]
    config: ServingConfig = read_config(Path(command.words[4]))
    value = yaml.safe_load(Path(command.words[4]).read_text())
    assert value["applications"][0]["args"]["models"].keys() == config.models.keys()
    return [command.words[4], *(model.uri for model in config.models.values())], []


def ask(command: Command) -> tuple[list[str], list[str]]:
    """Check the body of a request against the server's schema."""
    (address,) = (word for word in command.words if word.startswith("http://"))
    if "-d" in command.words:
        path = "/" + address.split("/", 3)[3]
        ENDPOINTS[path].model_validate(json.loads(command.words[command.words.index("-d") + 1]))
    return [], []


def follow(steps: Sequence[Step], known: set[str], *, only_parse: bool) -> None:
    """Do the steps of a page; whatever one needs must be there before: named by the page, made, or of the project."""
    for step in steps:
        if isinstance(step, File):
            Path(step.name).write_text(step.text)
            known.add(step.name)
            continue
        if step.job is not None:
            needed, made = run_job(step, only_parse=only_parse)
        elif step.words[0] == PYTHON and step.words[1] in known:
            needed, made = run_script(step.words[1], only_parse=only_parse)
        else:
            needed, made = {"cp": copy, PYTHON: serve, "curl": ask}[step.words[0]](step)
        for name in needed:
            ours = name.startswith("jobs/configs/") and Path(name).exists()
            assert ours or name in known or name.split("/")[0] in known, f"{name} comes from nowhere: {step.text}"
        known.update(made)


def fit_here(plans: Sequence[TrainPlan], recorders: Sequence[Any], turn: Turn) -> list[Outcome]:
    """Train in this process what `cellray.train.trainer.fit` trains in Ray Train's."""
    outcomes: list[Outcome] = []
    for plan in plans:
        outcomes.append(run_plan(replace(plan, turn=turn).following(outcomes), LocalSession(), CPU))
        assert outcomes[-1].error == ""
    return outcomes
