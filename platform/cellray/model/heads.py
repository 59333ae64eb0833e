"""What a fine-tuned model tells of a cell or a gene: the description of a head, its loss, its answer.

Knows logits and targets. Which encoder the logits come from, and where targets are kept, it does not know.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from cellray.errors import InputError, listing

Kind = Literal["classification", "regression"]
Level = Literal["cell", "gene"]
KINDS: tuple[str, ...] = get_args(Kind)
LEVELS: tuple[str, ...] = get_args(Level)

NO_LABEL = -1
"""Class index of a cell or gene without a label; a missing regression target is NaN."""


@dataclass(frozen=True)
class HeadSpec:
    """One thing a model tells.

    Attributes
    ----------
    name
        Names the prediction's column and the head's weights; without `.` and `/`, which these use themselves.
    kind
        `classification` (one of several classes) or `regression` (a number).
    level
        One answer a `cell`, or one a `gene` token.
    classes
        Names of the classes in the order of the logits; empty for a regression.
    mean, std
        Of a regression's training targets: it is learnt as (target - mean) / std.
    """

    name: str
    kind: Kind
    level: Level
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.classes, tuple):
            raise TypeError(f"a head's name is text and its classes are a tuple of texts, not {self!r}")
        classifies = self.kind == "classification"
        for rule, broken, found in (
            ("a head needs a name without . and /", not self.name.strip() or set(self.name) & set("./"), self.name),
            (f"kind must be one of {', '.join(KINDS)}", self.kind not in KINDS, self.kind),
            (f"level must be one of {', '.join(LEVELS)}", self.level not in LEVELS, self.level),
            ("a regression has no classes", not classifies and self.classes, listing(self.classes)),
            ("a classification needs two classes at least", classifies and len(self.classes) < 2, self.classes),
            ("classes must be distinct", len(set(self.classes)) < len(self.classes), listing(self.classes)),
            ("a class needs a name", not all(isinstance(c, str) and c for c in self.classes), listing(self.classes)),
            ("mean must be a finite float", not _is_finite(self.mean), self.mean),
            ("std must be a positive, finite float", not _is_finite(self.std) or self.std <= 0, self.std),
        ):
            if broken:
                raise InputError(f"head {self.name!r}", rule, str(found), "Correct the task.")

    @property
    def width(self) -> int:
        """Numbers the head puts out for each cell or token."""
        return len(self.classes) or 1

    def to_json(self) -> dict[str, Any]:
        """Return this description as a JSON object."""
        return asdict(self) | {"classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: object, subject: str) -> Self:
        """Read a description.

        Parameters
        ----------
        value
            A JSON object.
        subject
            Where it was read, for messages.

        Raises
        ------
        InputError
            It is no description of a head.
        """
        rule, fix = "heads must be described as this version does it", "Restore the model directory."
        if not isinstance(value, Mapping):
            raise InputError(subject, rule, type(value).__name__, fix)
        unknown = set(value) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(subject, rule, f"unknown {listing(unknown)}", fix)
        try:
            return cls(**{**value, "classes": tuple(value.get("classes", ()))})
        except InputError as error:
            raise InputError(f"{subject}, {error.subject}", error.rule, error.found, fix) from None
        except TypeError as error:
            raise InputError(subject, rule, str(error), fix) from None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_heads(heads: Sequence[HeadSpec]) -> None:
    """Check that heads can be told apart.

    Raises
    ------
    InputError
        There is none, or two bear one name.
    """
    names = [head.name for head in heads]
    twice = {name for name in names if names.count(name) > 1}
    if twice or not names:
        found = f"{listing(twice)} twice" if twice else "none"
        raise InputError("heads", "a model needs heads, each of its own name", found, "Correct the task.")


def head_loss(
    spec: HeadSpec, logits: Tensor, target: Tensor, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed loss over all labelled cells (or tokens) and its weight; their quotient is the mean loss.

    Classification: cross entropy in nats, each cell weighing as its class does (as `torch.nn.CrossEntropyLoss`).
    Regression: squared error of the standardised target.

    Parameters
    ----------
    spec
        The head.
    logits
        Its output: cells (x tokens) x classes, or cells (x tokens) for a regression.
    target
        Class indices, `NO_LABEL` where unknown; or numbers in their own unit, NaN where unknown. Shape: that of the
        logits without classes.
    class_weights
        One a class, default: 1 each. Without meaning for a regression.

    Returns
    -------
    tuple[Tensor, Tensor]
        Two float32 scalars; (0, 0) where nothing is labelled.
    """
    if spec.kind == "regression":
        standardised = (target.to(torch.float32) - spec.mean) / spec.std
        missing = standardised.isnan()
        error = torch.where(missing, 0.0, logits.float() - standardised)  # not after squaring: its gradient
        return error.square().sum(), (~missing).sum().to(torch.float32)
    target_m = target.flatten().long()
    logits_mc = logits.float().reshape(-1, spec.width)
    loss = nn.functional.cross_entropy(
        logits_mc, target_m, weight=class_weights, ignore_index=NO_LABEL, reduction="sum"
    )
    labelled_m = target_m[target_m != NO_LABEL]
    if class_weights is None:
        return loss, torch.tensor(len(labelled_m), dtype=torch.float32, device=loss.device)
    return loss, class_weights[labelled_m].sum().to(torch.float32)


def head_answer(spec: HeadSpec, logits: Tensor) -> Tensor:
    """Return probabilities of the classes (same shape as the logits) or a regression's values in their own unit."""
    if spec.kind == "regression":
        return logits.float() * spec.std + spec.mean
    return torch.softmax(logits.float(), dim=-1)
