"""The tasks there are, by the name a task file gives, and how such a file is read."""

import tomllib
from typing import Any

from pydantic import ValidationError

from cellray import storage
from cellray.errors import InputError
from cellray.train.tasks.cells import CellTaskConfig
from cellray.train.tasks.genes import GeneTaskConfig

TaskConfig = CellTaskConfig | GeneTaskConfig

TASKS: dict[str, type[TaskConfig]] = {
    "cell_classification": CellTaskConfig,
    "regression": CellTaskConfig,
    "multitask": CellTaskConfig,
    "gene_classification": GeneTaskConfig,
}


def read_task(uri: str) -> TaskConfig:
    """Read a task file.

    Raises
    ------
    InputError
        It is no TOML, names no known task, or an option of the task is unknown or wrong.
    """
    fix = "See jobs/configs/task_*.toml for examples."
    try:
        value: dict[str, Any] = tomllib.loads(storage.read_bytes(storage.absolute(uri)).decode())
    except FileNotFoundError:
        raise InputError(uri, "--task names a TOML file", "no such file", "Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(uri, "--task names a TOML file", str(error), fix) from None
    name = value.get("task")
    if name not in TASKS:
        raise InputError(uri, f"task must be one of {', '.join(TASKS)}", repr(name), fix)
    if isinstance(genes := value.get("genes"), str):
        value["genes"] = storage.resolve(storage.absolute(uri).rsplit("/", 1)[0], genes)  # beside the task file
    try:
        return TASKS[str(name)].model_validate(value)
    except ValidationError as error:
        raise InputError(uri, "every option of a task must be known and valid", _explain(error), fix) from None


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        where = ".".join(str(step) for step in problem["loc"]) or "the file"
        problems.append(f"{where}: {problem['msg']}")
    return "; ".join(problems)
