"""The errors of this library: bad input, a remote store that does not answer, a training that cannot end."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SHOWN = 20
_NEAR = 0.75  # difflib's ratio; at its usual 0.6 `actors` passes for a slip of `corpus`


class InputError(ValueError):
    """Input that breaks a rule; the message says where, which rule, what was found and what to do.

    Parameters
    ----------
    subject
        File, option or object at fault.
    rule
        What must hold.
    found
        What was found instead.
    fix
        What the user can do about it.
    """

    def __init__(self, subject: str, rule: str, found: str, fix: str) -> None:
        super().__init__(subject, rule, found, fix)  # all arguments: the error must survive pickling between processes
        self.subject, self.rule, self.found, self.fix = subject, rule, found, fix

    def __str__(self) -> str:
        if "\n" in self.found:
            return f"{self.subject}: {self.rule}:{self.found}\n{self.fix}"
        return f"{self.subject}: {self.rule}; found {self.found}. {self.fix}"


class StorageError(Exception):
    """A remote store that failed again and again, in ways that pass by themselves.

    Says nothing of the file: it may be sound. So this is no `OSError`, which readers take for a damaged file.

    Parameters
    ----------
    uri
        What was asked for.
    operation
        What was asked.
    attempts
        How often.
    last
        What the store or the connection answered the last time.
    """

    def __init__(self, uri: str, operation: str, attempts: int, last: str) -> None:
        super().__init__(uri, operation, attempts, last)  # all arguments: it must survive pickling between processes
        self.uri, self.operation, self.attempts, self.last = uri, operation, attempts, last

    def __str__(self) -> str:
        return (
            f"{self.uri}: the storage did not do {self.operation} in {self.attempts} attempts; the last ended in "
            f"{self.last}. Nothing is wrong with the file as far as is known: run again when the storage is well."
        )


class TrainingError(RuntimeError):
    """A training that cannot come to its end, however often it is tried; the message is for the user as it is."""


def combined(errors: Sequence[InputError]) -> InputError:
    """Return one error for several: itself if it is one, else all of them, a line each."""
    distinct = list(dict.fromkeys(map(str, errors)))
    if len(distinct) == 1:
        return errors[0]
    more = [f"and {len(distinct) - _SHOWN} more"] if len(distinct) > _SHOWN else []
    shown = "".join(f"\n  {line}" for line in [*distinct[:_SHOWN], *more])
    fix = "Correct these files, or leave them out with --on-bad-file skip."
    return InputError(f"{len(distinct)} files", "every file must be sound", shown, fix)


def listing(names: Iterable[object], limit: int = 8) -> str:
    """Render names for an error message: sorted, quoted, cut after `limit`."""
    quoted = [repr(str(name)) for name in sorted(map(str, names))]
    if not quoted:
        return "none"
    return ", ".join(quoted[:limit]) + (f" and {len(quoted) - limit} more" if len(quoted) > limit else "")


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that was probably meant by an unknown word: one that differs in a letter or two, if there is one.

    Dashes in front, which all options have in common, do not count.
    """
    known = {name.lstrip("-"): name for name in names}
    near = difflib.get_close_matches(word.lstrip("-"), known, n=1, cutoff=_NEAR)
    return known[near[0]] if near else None


def said(problem: Mapping[str, Any]) -> str:
    """Return what is wrong, of one problem in a report of pydantic's, without the words of its own machinery.

    Parameters
    ----------
    problem
        An entry of `ValidationError.errors()`, with its context or without.
    """
    context = problem.get("ctx", {})
    match problem["type"]:
        case "union_tag_invalid" if context:
            name, known = str(context["discriminator"]).strip("'"), str(context["expected_tags"])
            meant = nearest(str(context["tag"]), [tag.strip("' ") for tag in known.split(",")])
            guess = f" (did you mean {meant!r}?)" if meant else ""
            return f"{name} must be one of {known}, not {str(context['tag'])!r}{guess}"
        case "union_tag_not_found" if context:
            return f"{str(context['discriminator']).strip(chr(39))} is missing"
        case _:
            return str(problem["msg"]).removeprefix("Value error, ")
