"""What is wrong with a request or a file of options, in words: an unknown name is told with those there are.

Knows pydantic's models and reports; HTTP and files it does not know.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from cellray.errors import nearest, said


def problem_of(model: type[BaseModel] | None, problem: Mapping[str, Any]) -> str:
    """Return what is wrong, of one problem in a report of pydantic's; for an unknown name, what may have been meant.

    Parameters
    ----------
    model
        What was to be made; None: it is not known, and names are not told.
    problem
        An entry of `ValidationError.errors()`.
    """
    if problem["type"] != "extra_forbidden" or model is None:
        return said(problem)
    known = names_at(model, problem["loc"])
    meant = nearest(str(problem["loc"][-1]), known)
    told = f"did you mean {meant}?" if meant else f"known: {', '.join(known)}"
    return f"there is no such name here ({told})"


def names_at(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Return the names that could stand in a place, in place of its last step.

    Parameters
    ----------
    model
        What the place is in.
    place
        Names of fields, keys of mappings and positions in lists.
    """
    models = [model]
    for step in place[:-1]:
        fields = [each.model_fields[str(step)] for each in models if str(step) in each.model_fields]
        models = [within for field in fields for within in _models(field.annotation)] or models  # a key, a position
    return list(dict.fromkeys(name for each in models for name in each.model_fields))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401  # any type there is
    """Yield the models that a type is of, whatever lists and mappings they are in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
