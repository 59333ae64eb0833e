"""Base of all job configurations: typed, frozen, unknown options refused.

A job's options come, in falling order of weight, from the command line, from the environment (`CELLRAY_NAME`) and from
a TOML file (`--config FILE.toml`). The same classes are ordinary pydantic models when used from Python.
"""

import argparse
import logging
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cellray.errors import InputError, listing, nearest, said

logger = logging.getLogger(__name__)

ENV_PREFIX = "CELLRAY_"
TRACEBACK = "CELLRAY_TRACEBACK"
"""Environment variable: set it to see where an unexpected error came from."""
WORKER_LOGS = "CELLRAY_WORKER_LOGS"
"""Environment variable: set it to see what Ray workers print."""
MODEL_CACHE = "CELLRAY_CACHE"
"""Environment variable: folder of downloaded models, default `cellray` in the user's cache folder."""
API_KEY = "CELLRAY_API_KEY"
"""Environment variable: the key that `cellray.client` sends."""
API_KEYS = "CELLRAY_API_KEYS"
"""Environment variable of a server: its keys, hashed, as the text of a file of keys."""
OFFICIAL_FILES = "CELLRAY_GENEFORMER"
"""Environment variable: a folder of released models and dictionaries, for `cellray.compat`."""
SWITCHES = {TRACEBACK, WORKER_LOGS, MODEL_CACHE, API_KEY, API_KEYS, OFFICIAL_FILES}


class JobConfig(BaseModel):
    """Options of a job; subclasses add fields with a description, a unit and a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)

    @field_validator("*", mode="after")
    @classmethod
    def _drop_empty_names(cls, value: object) -> object:
        """Read an empty name in a list as none: `--obs-columns ""`."""
        if isinstance(value, tuple) and any(isinstance(item, str) for item in value):
            return tuple(item.strip() for item in value if item.strip())
        return value


def both_bounds(value: object) -> object:
    """Take one number for the least and the most of something: for a field validator that runs before the others."""
    if isinstance(value, int | str) or (isinstance(value, list | tuple) and len(value) == 1):
        only = value if isinstance(value, int | str) else value[0]
        return (only, only)
    return value


def check_bounds(option: str, bounds: tuple[int, int]) -> None:
    """Check a least and a most number.

    Raises
    ------
    ValueError
        The least is below 1 or above the most.
    """
    low, high = bounds
    if not 1 <= low <= high:
        raise ValueError(f"{option} {low},{high}: at least 1, and not more at least than at most")


ConfigT = TypeVar("ConfigT", bound=JobConfig)


class _Environment(EnvSettingsSource):
    """Reads lists as the command line does: separated by commas."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ANN401
        """Split text; JSON lists are understood too."""
        if isinstance(value, str) and not value.startswith("["):
            return value.split(",")
        return super().decode_complex_value(field_name, field, value)


class _Settings(BaseSettings):
    """Where values come from; mixed with a job's own class by `parse_config`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        cli_enforce_required=False,
    )

    file_values: ClassVar[dict[str, Any]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the command line (which pydantic-settings adds in front) over the environment over the TOML file."""
        return init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, cls.file_values)


class _CommandLine(CliSettingsSource):  # type: ignore[type-arg]
    """The command line, with placeholders for people in place of Python's names of types."""

    def _metavar_format(self, obj: Any) -> str:  # noqa: ANN401
        shown = super()._metavar_format(obj)
        return _PLACEHOLDERS.get(shown, shown)

    def _help_format(self, *args: Any, **options: Any) -> str:  # noqa: ANN401
        shown = super()._help_format(*args, **options)
        shown = shown.removesuffix(" (default: None)").removesuffix(" (default: ())")
        return _TUPLE.sub(lambda found: f"(default: {_as_typed(found[1])})", shown)


_TUPLE = re.compile(r"\(default: \(([^()]*)\)\)$")


def _as_typed(items: str) -> str:
    """Return the items of a printed tuple as they are typed: `1, 1` -> `1,1`."""
    return ",".join(item.strip().strip("'") for item in items.split(",") if item.strip())


_PLACEHOLDERS = {
    "str": "TEXT",
    "Path": "PATH",
    "int": "N",
    "float": "X",
    "tuple[str,...]": "A,B,...",
    "tuple[int,int]": "N,N",
}


def parse_config(config_class: type[ConfigT], argv: Sequence[str], program: str) -> ConfigT:
    """Read a job's options from the command line, the environment and a TOML file.

    Parameters
    ----------
    config_class
        The job's configuration class.
    argv
        Command line without the program's name.
    program
        Name shown by `--help`, which prints every option with its default and leaves with status 0.

    Raises
    ------
    InputError
        An unknown option, a missing one or a value of the wrong type or range.
    """
    pre = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    pre.add_argument("--config", type=Path)
    try:
        known, rest = pre.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(program, "--config names a TOML file", str(error), _help(program)) from None
    _warn_of_unknown_variables(config_class)
    settings_class: Any = type(
        config_class.__name__,
        (_Settings, config_class),
        {
            "__module__": __name__,
            "__doc__": f"{config_class.__doc__}\n\n--config FILE.toml reads options from a file; the environment"
            f" ({ENV_PREFIX}OPTION_NAME) and the command line outweigh it.",
            "file_values": _read_toml(known.config),
        },
    )
    try:
        command_line = _CommandLine(settings_class, cli_parse_args=rest, cli_prog_name=program)
        settings = settings_class(_cli_settings_source=command_line)
    except ValidationError as error:
        raise _explain(error, config_class, program) from None
    except SettingsError as error:
        found = _slips(str(error), config_class)
        raise InputError(program, "every option must be known", found, _help(program)) from None
    return config_class(**settings.model_dump())


def make_config(config_class: type[ConfigT], values: Mapping[str, Any], subject: str) -> ConfigT:
    """Make a job's options from values, with the errors of the command line.

    Raises
    ------
    InputError
        An unknown option, a missing one or a value of the wrong type or range; `subject` names the caller.
    """
    try:
        return config_class(**values)
    except ValidationError as error:
        raise _explain(error, config_class, subject, f"See help({subject}).", _argument) from None


def _read_toml(path: Path | None) -> dict[str, Any]:
    """Read a configuration file; options may be written with dashes, as on the command line."""
    if path is None:
        return {}
    try:
        return {key.replace("-", "_"): value for key, value in tomllib.loads(path.read_text()).items()}
    except FileNotFoundError:
        raise InputError(str(path), "--config names a TOML file", "no such file", "Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(str(path), "--config names a TOML file", str(error), "Correct the file.") from None


def _warn_of_unknown_variables(config_class: type[JobConfig]) -> None:
    """Warn of variables that look like options and are none, as after a slip of the finger."""
    known = {ENV_PREFIX + name.upper() for name in config_class.model_fields} | SWITCHES
    for name in sorted(os.environ):
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            logger.warning("the environment variable %s is no option of this job", name)


def _explain(
    error: ValidationError,
    config_class: type[JobConfig],
    program: str,
    fix: str | None = None,
    typed: Callable[[str], str] | None = None,
) -> InputError:
    """Turn pydantic's report into one line that names the options as they are typed."""
    typed = typed or _option
    options = [typed(name) for name in config_class.model_fields]
    found = []
    for problem in error.errors():
        option = typed(str(problem["loc"][0])) if problem["loc"] else "options"
        match problem["type"]:
            case "missing":
                found.append(f"{option} is missing")
            case "extra_forbidden":
                found.append(f"{option} is not an option of this job (options: {listing(options, limit=99)})")
            case "value_error" if not problem["loc"]:
                found.append(str(problem["ctx"]["error"]))
            case _:
                found.append(f"{option} {problem['input']!r}: {said(problem)}")
    return InputError(program, "every option must be known and valid", "; ".join(found), fix or _help(program))


def _slips(message: str, config_class: type[JobConfig]) -> str:
    """Name the options that are none, each with the one that was probably meant."""
    options = [_option(name) for name in config_class.model_fields]
    unknown = [word.split("=")[0] for word in message.split() if word.startswith("--")]
    near = [(word, nearest(word, options)) for word in unknown]
    return ", ".join(f"{word} (did you mean {match}?)" if match else word for word, match in near) or message


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def _argument(field: str) -> str:
    return field


def _help(program: str) -> str:
    return f"See {program} --help."
