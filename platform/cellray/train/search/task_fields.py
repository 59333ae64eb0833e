"""Fields of a task file that can be searched: `task.class_weights`, or `task.heads.NAME.weight` of one head of several.

Only those that change how a label is learnt: with other labels or another split, trials would not be comparable.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cellray.errors import InputError, listing, said
from cellray.train.tasks.table import TaskConfig

TASK = "task."
_HEADS = "heads."
_FIELDS = ("class_weights", "weight")
_LOSS = "validation_loss"


def flat_tables(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the ranges of a space by name; those of a task lie in tables of tables, their names joined by dots.

    A range is a table whose `kind` is text; the table of a head that is called `kind` is none.
    """
    found: dict[str, Any] = {}
    for name, table in tables.items():
        deeper = isinstance(table, Mapping) and not isinstance(table.get("kind"), str)
        if deeper and table and (prefix or f"{name}." == TASK):
            found |= flat_tables(table, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}" if prefix else name.replace("-", "_")] = table
    return found


def is_task_field(name: str) -> bool:
    """Tell whether a name is one of a task's fields that can be searched."""
    if not name.startswith(TASK):
        return False
    place, _, field = name.removeprefix(TASK).rpartition(".")
    return field in _FIELDS and (not place or place.startswith(_HEADS))


def without_task_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a trial's values that are options of the job."""
    return {name: value for name, value in values.items() if not name.startswith(TASK)}


def with_task_fields(task: TaskConfig, values: Mapping[str, Any]) -> TaskConfig:
    """Return a task with some of its fields replaced; values that are not a task's are passed over.

    Raises
    ------
    InputError
        There is no such head or field.
    ValidationError
        A field refuses its value.
    """
    content = task.model_dump()
    for name, value in values.items():
        if name.startswith(TASK):
            place, _, field = name.removeprefix(TASK).rpartition(".")
            _table(content, place.removeprefix(_HEADS), name, field)[field] = value
    return type(task).model_validate(content)


def check_task_fields(space: Mapping[str, Any], task: TaskConfig, judged_by: set[str], subject: str) -> None:
    """Check the task's fields in a space.

    Parameters
    ----------
    space
        By name, each with `probes`.
    task
        What is searched for.
    judged_by
        Objectives.
    subject
        Where the space comes from, for messages.

    Raises
    ------
    InputError
        The task has no such field, it refuses a value, or the loss, which these weights scale, is an objective.
    """
    named = [name for name in space if name.startswith(TASK)]
    for name in named:
        for value in space[name].probes():
            try:
                with_task_fields(task, {name: value})
            except ValidationError as error:
                rule, found = f"[{name}] must lie within the field's own limits", said(error.errors()[0])
                raise InputError(subject, rule, f"{value!r}: {found}", "Correct the bounds.") from None
    if named and _LOSS in judged_by:
        rule = "trials whose labels have other weights have losses that cannot be compared"
        raise InputError("--objectives", rule, f"{_LOSS} with {listing(named)}", "Use another one, as macro_f1.")


def _table(content: dict[str, Any], head: str, name: str, field: str) -> dict[str, Any]:
    """Return the table of a task that holds a field: that of the named head, of the only one, or the whole."""
    heads = {each["name"]: each for each in content.get("heads", ())}
    found = heads.get(head) if head else next(iter(heads.values())) if len(heads) == 1 else None if heads else content
    if found is None or field not in found:
        known = [f"{TASK}{_HEADS}{each}.{field}" for each in heads for field in _FIELDS] or [f"{TASK}{_FIELDS[0]}"]
        raise InputError(f"[{name}]", "a field of the task must be named", listing(known), "Name one of those.")
    return found
