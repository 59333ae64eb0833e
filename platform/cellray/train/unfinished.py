"""What was asked of an unfinished training or search, kept beside it: other options do not take its place unsaid.

Knows folders and the names of checkpoints. What is trained, and when it is over, is its callers' business.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cellray import storage
from cellray.errors import InputError
from cellray.train.checkpoints import newest_steps

_RECORD = "asked.json"
_SHOWN, _LONGEST = 6, 60
_CONTENTS = {"corpus", "model"}
"""Told by digests, which say nothing to a person."""


@dataclass(frozen=True)
class Asked:
    """What a job is asked for, and where it keeps what it needs to go on.

    Attributes
    ----------
    folder
        `OUTPUT.training` or `OUTPUT.search`.
    request
        Digest of `options`.
    options
        All that decides the result, by the names of the command line; tables of files as mappings.
    steps, trainings
        To be done: the steps of a training, and how many trainings there are.
    """

    folder: str
    request: str
    options: Mapping[str, Any]
    steps: int = 0
    trainings: int = 1

    def require_training(self) -> None:
        """Check that no other training, which left a checkpoint, is unfinished here.

        Raises
        ------
        InputError
            There is one; the message says how far it came and what was asked for otherwise.
        """
        steps, own = newest_steps(self.folder), self.request[:12]
        if any(own in name for name in steps) or not steps:
            return
        before = self._before()
        others = {name: step for name, step in steps.items() if str(before.get("request"))[:12] in name}
        found = others or steps
        of = f" of {before['steps']:,}" if others else ""
        reached = f"one that reached step {max(found.values()):,}{of}"
        if others and before["trainings"] > 1:
            reached += f" in {len(found)} of {before['trainings']} trainings"
        raise self._refusal("training", reached, before["options"] if others else None)

    def require_search(self, trials: str) -> None:
        """Check that no trials of another search lie in a folder: they have the names that this one's would have.

        Raises
        ------
        InputError
            There are some.
        """
        before = self._before().get("options")
        begun = len(storage.glob(storage.join(trials, "*")))
        if begun and before is not None and differences(before, self.options):
            raise self._refusal("search", f"one with {begun} trial(s) begun", before)

    def write(self) -> None:
        """Keep what is asked for."""
        record = {"request": self.request, "options": self.options, "steps": self.steps, "trainings": self.trainings}
        storage.write_bytes(self._uri, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())

    @property
    def _uri(self) -> str:
        return storage.join(self.folder, _RECORD)

    def _before(self) -> dict[str, Any]:
        """Return what was kept, nothing where an earlier version kept nothing."""
        found: dict[str, Any] = storage.read_json(self._uri) if storage.exists(self._uri) else {}
        return found

    def _refusal(self, what: str, reached: str, before: Mapping[str, Any] | None) -> InputError:
        rule, others = f"an unfinished {what} goes on with the options it was begun with", "Give those options"
        if before is None:
            found = "with other options"
        elif differ := differences(before, self.options):
            found = f"begun with {'; '.join(differ)}"
        else:
            rule, others = f"an unfinished {what} goes on with the version that began it", "Install that version"
            found = "begun with these options by a version of cellray that made something else of them"
        fix = f"{others} to go on with it, choose another --output, or remove {self.folder} to give it up."
        return InputError(self.folder, rule, f"{reached}, {found}", fix)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words which options differ: `--learning-rate 0.001, not 0.0005`."""
    old, new = dict(_flat(before)), dict(_flat(json.loads(json.dumps(now))))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    told = [_difference(name, old.get(name), new.get(name)) for name in names]
    return [*told[:_SHOWN], *([f"{len(told) - _SHOWN} more"] if len(told) > _SHOWN else [])]


def _difference(name: str, old: Any, new: Any) -> str:  # noqa: ANN401  # JSON
    shown = name if "." in name else f"--{name.replace('_', '-')}"
    text = f"{shown} {_plain(old)}, not {_plain(new)}"
    if name in _CONTENTS or len(text) > _LONGEST:
        return f"another {shown}"
    return text


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield single values, those of tables with their path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> str:  # noqa: ANN401  # JSON
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
