"""What every run records of where it comes from: data, parent model, configuration, code, environment."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from cellray.tracking.contract import Tracker
from cellray.tracking.environment import code_version, environment_tags, environment_text
from cellray.tracking.masking import mask

CONFIG, ENVIRONMENT = "config.json", "environment.txt"


@dataclass(frozen=True)
class Lineage:
    """What a run was made from; what does not apply stays None.

    Attributes
    ----------
    corpus, corpus_digest
        URI of the token corpus and the digest of its manifest.
    vocabulary_digest
        Of the corpus' vocabulary.
    parent_model, parent_digest
        URI of the model that training went on from, and its `ModelDirectory.digest`.
    """

    corpus: str | None = None
    corpus_digest: str | None = None
    vocabulary_digest: str | None = None
    parent_model: str | None = None
    parent_digest: str | None = None


def lineage_tags(lineage: Lineage) -> dict[str, str]:
    """Return the tags that tell what a run was made from and by which code."""
    given = {key: value for key, value in asdict(lineage).items() if value is not None}
    return given | code_version() | environment_tags()


def config_params(config: BaseModel) -> dict[str, object]:
    """Return a configuration as flat parameters: `space.learning_rate.low`."""
    return flatten(config.model_dump(mode="json"))


def record_origin(tracker: Tracker, config: BaseModel, lineage: Lineage) -> None:
    """Record where a run comes from: tags, the configuration as parameters and whole, the environment.

    Secrets are left out: see `cellray.tracking.masking`.

    Parameters
    ----------
    tracker
        The run.
    config
        Everything that was asked for.
    lineage
        What it is made from.
    """
    tracker.set_tags(lineage_tags(lineage))
    tracker.log_params(config_params(config))
    tracker.log_text(json.dumps(mask(config.model_dump(mode="json")), indent=1) + "\n", CONFIG)
    tracker.log_text(environment_text(), ENVIRONMENT)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested mappings as one, with names joined by dots. Lists stay values; secrets are masked by full name."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        shown = mask(value, str(key))
        if isinstance(shown, Mapping) and shown:
            flat |= flatten(shown, f"{name}.")
        else:
            flat[name] = shown
    return flat
