"""What options of another package's interface may be, and what to do where one cannot be had here.

Every option is either mapped to one of ours, or needs nothing, or is refused: none is passed over in silence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cellray.errors import InputError


@dataclass(frozen=True)
class Rule:
    """What an option may be.

    Attributes
    ----------
    allows
        Tells whether a value will do.
    rule, fix
        For the message, where it does not.
    fixes
        What to do in place of `fix` about some values, by the value.
    """

    allows: Callable[[Any], bool]
    rule: str
    fix: str
    fixes: Mapping[str, str] = field(default_factory=dict)


Rules = Mapping[str, Rule]


def one_of(*values: object, fix: str = "Choose one of them.", fixes: Mapping[str, str] | None = None) -> Rule:
    """Allow some values; `True` is not 1."""
    shown = f"must be {' or '.join(repr(value) for value in values)}"
    return Rule(
        lambda given: any(type(value) is type(given) and value == given for value in values), shown, fix, fixes or {}
    )


def whole_number(least: int, *, or_none: bool = False) -> Rule:
    """Allow whole numbers from `least` on."""
    shown = f"must be a whole number from {least} on{', or None' if or_none else ''}"

    def allows(given: Any) -> bool:  # noqa: ANN401
        number = isinstance(given, int) and not isinstance(given, bool) and given >= least
        return number or (or_none and given is None)

    return Rule(allows, shown, "Correct it.")


def instance(*kinds: type, what: str, fix: str = "Correct it.") -> Rule:
    """Allow values of some types."""
    return Rule(lambda given: isinstance(given, kinds), f"must be {what}", fix)


def check_options(owner: str, given: Mapping[str, Any], rules: Rules) -> None:
    """Check options.

    Parameters
    ----------
    owner
        The class, for the message.
    given
        Its options.
    rules
        Of those that may be wrong.

    Raises
    ------
    InputError
        One breaks its rule.
    """
    for name, rule in rules.items():
        if not rule.allows(given[name]):
            fix = rule.fixes.get(str(given[name]), rule.fix)
            raise InputError(f"{owner}({name}=...)", rule.rule, repr(given[name]), fix)


NUMBER_OF_PROCESSES = whole_number(1)
"""`nproc`: this process does the work, or Ray's."""
