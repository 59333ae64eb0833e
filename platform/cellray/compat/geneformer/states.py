"""Cell states as Geneformer's classes are told them, and as our screens are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellray.errors import InputError, listing

_KEYS = ("state_key", "start_state", "goal_state", "alt_states")


@dataclass(frozen=True)
class CellStates:
    """States that shifts are measured towards.

    Attributes
    ----------
    column
        Column of the dataset that names them.
    start, goal, alternatives
        Their names.
    """

    column: str
    start: str
    goal: str
    alternatives: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (self.start, self.goal, *self.alternatives)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "CellStates":
        """Read `cell_states_to_model`.

        Raises
        ------
        InputError
            A key lacks or is unknown, or a state stands there twice.
        """
        fix = "Write {'state_key': COLUMN, 'start_state': A, 'goal_state': B, 'alt_states': [C]}."
        subject = "cell_states_to_model"
        lacking, unknown = set(_KEYS[:3]) - set(given), set(given) - set(_KEYS)
        if lacking or unknown:
            found = f"no {listing(lacking)}" if lacking else f"also {listing(unknown)}"
            raise InputError(subject, f"has the keys {listing(_KEYS)}", found, fix)
        alternatives = tuple(map(str, given.get("alt_states") or ()))
        read = cls(str(given["state_key"]), str(given["start_state"]), str(given["goal_state"]), alternatives)
        if len(set(read.names)) < len(read.names):
            raise InputError(subject, "names different states", listing(read.names), fix)
        return read
