"""The tasks there are, by the name a task file gives, and how such a file is read."""

import tomllib
from typing import Any

from pydantic import ValidationError

from cellray import storage
from cellray.errors import InputError, nearest, said
from cellray.train.folds import SplitConfig
from cellray.train.tasks.cells import CellHead, CellTaskConfig
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
    """Say in words what is wrong, with the names that stand in the file."""
    found = []
    for problem in error.errors():
        where = _where(problem["loc"])
        match problem["type"]:
            case "extra_forbidden":
                found.append(f"{where} is no option there{_meant(str(problem['loc'][-1]))}")
            case "missing":
                found.append(f"{where} is missing")
            case "value_error":
                found.append(str(problem["ctx"]["error"]))
            case "too_short" if len(error.errors()) > 1:  # what is wrong with the only head is told already
                pass
            case _:
                found.append(f"{where} {problem['input']!r}: {said(problem)}")
    return "; ".join(found)


def _where(place: tuple[int | str, ...]) -> str:
    """Return a place as the file has it: the only head may stand at the top, with its name as `label`."""
    steps = [str(step) for step in place]
    if steps[:2] == ["heads", "0"]:
        steps = ["label" if step == "name" else step for step in steps[2:]]
    elif steps and steps[0] == "heads" and len(steps) > 1:
        steps = [f"head {int(steps[1]) + 1}", *steps[2:]]
    return ".".join(steps)


def _meant(name: str) -> str:
    """Return the option that was probably meant, with the table of the file that it belongs in."""
    places = dict.fromkeys(("label", *CellTaskConfig.model_fields, *GeneTaskConfig.model_fields), "")
    places |= dict.fromkeys(CellHead.model_fields, "")
    places |= dict.fromkeys(SplitConfig.model_fields, " in [split]")
    near = nearest(name, places)
    return f" (did you mean {near}{places[near]}?)" if near else ""
