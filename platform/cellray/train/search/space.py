"""Search spaces: which training options are searched, and between which bounds; read from TOML.

Knows the options' own limits, through their pydantic classes, and nothing of trials, Optuna's studies or Ray.
"""

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from cellray import storage
from cellray.config import JobConfig
from cellray.errors import InputError, listing, nearest, said
from cellray.train.finetune import FinetuneConfig
from cellray.train.finetune_plan import ModelOptions
from cellray.train.options import OptimiserOptions
from cellray.train.search.task_fields import flat_tables, is_task_field, without_task_fields

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEARCHABLE = frozenset({*OptimiserOptions.model_fields, *ModelOptions.model_fields, "patience"})
"""Options that decide what is learnt; those of the subject, of tracking and of workers do not, and are not searched."""
_MOST_CORNERS = 1024
_INSIDE = 0.37  # of a range: no round number comes out, so that an integer option refuses a range of real ones
_FIX = "See jobs/configs/space_*.toml for examples."


class Range(JobConfig):
    """A real number between two bounds."""

    kind: Literal["uniform", "log_uniform"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        _check_bounds(self.low, self.high, log=self.kind == "log_uniform")
        return self

    def distribution(self) -> "BaseDistribution":
        """Return the bounds as Optuna takes them."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.kind == "log_uniform")

    def probes(self) -> list[Any]:
        """Return the bounds and a value between them."""
        return [self.low, self.high, self.low + _INSIDE * (self.high - self.low)]

    def decode(self, value: Any) -> Any:  # noqa: ANN401
        """Return the option's value, given Optuna's."""
        return value


class Integer(JobConfig):
    """A whole number between two bounds, both included."""

    kind: Literal["integer"]
    low: int
    high: int
    log: bool = False
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> "Integer":
        _check_bounds(self.low, self.high, log=self.log)
        if self.log and self.step != 1:
            raise ValueError("a logarithmic range has no step")
        if (self.high - self.low) % self.step:
            raise ValueError(f"high must be low and a whole number of steps of {self.step}")
        return self

    def distribution(self) -> "BaseDistribution":
        """Return the bounds as Optuna takes them."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def probes(self) -> list[Any]:
        """Return the bounds."""
        return [self.low, self.high]

    def decode(self, value: Any) -> Any:  # noqa: ANN401
        """Return the option's value, given Optuna's."""
        return int(value)


class Choice(JobConfig):
    """One of some values; a list stands for an option that takes several."""

    kind: Literal["choice"]
    values: list[bool | int | float | str | list[str]] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "Choice":
        if len(self._named()) < len(self.values):
            raise ValueError("the values must be distinct")
        return self

    def distribution(self) -> "BaseDistribution":
        """Return the values as Optuna takes them."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(list(self._named()))

    def probes(self) -> list[Any]:
        """Return all values."""
        return list(self.values)

    def decode(self, value: Any) -> Any:  # noqa: ANN401
        """Return the option's value, given its name."""
        return self._named()[value]

    def _named(self) -> dict[str, Any]:
        """Return the values by name: databases of studies keep text, and 1, 1.0 and true would be one."""
        return {value if isinstance(value, str) else json.dumps(value): value for value in self.values}


Parameter = Annotated[Range | Integer | Choice, Field(discriminator="kind")]
_PARAMETERS: TypeAdapter[dict[str, Range | Integer | Choice]] = TypeAdapter(dict[str, Parameter])


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes
    ----------
    parameters
        By option.
    subject
        Where it comes from, for messages.
    """

    parameters: Mapping[str, Range | Integer | Choice]
    subject: str = "space"

    def distributions(self) -> dict[str, "BaseDistribution"]:
        """Return what Optuna draws from, by option."""
        return {name: parameter.distribution() for name, parameter in self.parameters.items()}

    def decode(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options' values, given what Optuna drew."""
        return {name: self.parameters[name].decode(value) for name, value in drawn.items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: parameter.model_dump(mode="json") for name, parameter in self.parameters.items()}

    def probes(self) -> list[dict[str, Any]]:
        """Return points that cover the space's bounds: all corners, or where these are too many, each bound alone."""
        names, values = list(self.parameters), [parameter.probes() for parameter in self.parameters.values()]
        alone = [{name: value} for name, each in zip(names, values, strict=True) for value in each]
        number = 1
        for each in values:
            number *= len(each)
        if number > _MOST_CORNERS:
            corners: Sequence[Sequence[Any]] = [[each[0] for each in values], [each[-1] for each in values]]
        else:
            corners = list(itertools.product(*values))
        return [*alone, *(dict(zip(names, corner, strict=True)) for corner in corners)]

    def check(self, base: FinetuneConfig) -> None:
        """Check that every option takes what may be drawn for it.

        Parameters
        ----------
        base
            The options that are not searched.

        Raises
        ------
        InputError
            An option refuses a value, or some options one another's.
        """
        for values in self.probes():
            try:
                with_values(base, values)
            except ValidationError as error:
                problem = error.errors()[0]
                name = str(problem["loc"][0]) if problem["loc"] else ", ".join(values)
                rule = f"[{name}] must lie within the option's own limits"
                shown = values.get(name, values)
                raise InputError(self.subject, rule, f"{shown!r}: {said(problem)}", "Correct the bounds.") from None


def with_values(base: FinetuneConfig, values: Mapping[str, Any]) -> FinetuneConfig:
    """Return options with some of them replaced; values of fields of the task are passed over.

    Raises
    ------
    ValidationError
        A value is out of an option's limits.
    """
    return FinetuneConfig.model_validate({**base.model_dump(), **without_task_fields(values)})


def read_space(uri: str) -> Space:
    """Read a search space.

    Raises
    ------
    InputError
        It is no TOML, is empty, names an option that cannot be searched, or a range makes no sense.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(storage.read_bytes(storage.absolute(uri)).decode())
    except FileNotFoundError:
        raise InputError(uri, "--space names a TOML file", "no such file", "Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(uri, "--space names a TOML file", str(error), _FIX) from None
    tables = flat_tables(tables)
    if not tables:
        raise InputError(uri, "a space must hold at least one option", "none", _FIX)
    if unknown := [name for name in tables if name not in SEARCHABLE and not is_task_field(name)]:
        found = ", ".join(_with_guess(name) for name in unknown)
        own = "and of a task task.class_weights or task.heads.NAME.class_weights and .weight"
        rule = f"only these options can be searched: {listing(SEARCHABLE, limit=99)}, {own}"
        raise InputError(uri, rule, found, "Correct the name.")
    try:
        return Space(_PARAMETERS.validate_python(tables), uri)
    except ValidationError as error:
        raise InputError(uri, "every range must be complete and known", _explain(error), _FIX) from None


def _with_guess(name: str) -> str:
    near = nearest(name, sorted(SEARCHABLE))
    return f"{name!r} (did you mean {near!r}?)" if near else repr(name)


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        name, *rest = [str(step) for step in problem["loc"]]
        where = [step for step in rest if step not in {"uniform", "log_uniform", "integer", "choice"}][:1]
        problems.append(f"[{name}]{''.join(f' {step}' for step in where)}: {said(problem)}")
    return "; ".join(dict.fromkeys(problems))


def _check_bounds(low: float, high: float, *, log: bool) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range begins above 0, not at {low:g}")
