"""The recorded run of a training job: begun with what made it, ended as the job ends, its model registered."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cellray import storage
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.model.checkpoint import CONFIG, ModelDirectory
from cellray.models import ModelReference
from cellray.tracking import Tracker, start_run
from cellray.tracking.ending import closing
from cellray.tracking.options import TrackingOptions, register_published
from cellray.tracking.record import Lineage, record_origin

logger = logging.getLogger(__name__)


@contextmanager
def recorded(
    config: TrackingOptions,
    name: str,
    request: str,
    corpus: Corpus,
    parent: ModelReference | None,
    facts: Mapping[str, object],
) -> Iterator[Tracker]:
    """Yield the run of a job: a new one, or the unfinished one of the same request.

    Parameters
    ----------
    config
        The job's whole configuration.
    name
        For people.
    request
        Digest of what was asked for.
    corpus, parent
        What the model is made from.
    facts
        More parameters, as the number of steps.
    """
    tracker = start_run(config.tracking_uri, config.experiment, name, dict(facts), {}, key=request)
    with closing([tracker]):
        lineage = Lineage(
            corpus=corpus.uri,
            corpus_digest=corpus.manifest.digest,
            vocabulary_digest=corpus.vocabulary.digest,
            parent_model=parent.uri if parent else None,
            parent_digest=parent.digest if parent else None,
        )
        record_origin(tracker, config, lineage)
        yield tracker


@contextmanager
def nested(parent: Tracker, config: TrackingOptions, names: Mapping[str, str]) -> Iterator[list[Tracker]]:
    """Yield a run below another for each name; keys by name, see `recorded`."""
    trackers = [
        start_run(config.tracking_uri, config.experiment, name, {}, {}, key=key, parent=parent)
        for name, key in names.items()
    ]
    with closing(trackers):
        yield trackers


def made_before(output: str, request: str) -> dict[str, Any] | None:
    """Return the provenance of the model that this very request published before, None where there is nothing.

    Raises
    ------
    InputError
        The output holds anything else.
    """
    if not storage.exists(storage.join(output, CONFIG)):
        storage.require_vacant(output)
        return None
    made = ModelDirectory.open(output).provenance
    if made.get("request") != request:
        fix = "Choose another --output, or delete this one."
        raise InputError(output, "the output must be empty or hold this very result", "another model", fix)
    logger.info("%s is complete already: nothing to do", output)
    return made


def register(config: TrackingOptions, model: str, request: str, corpus: Corpus, tracker: Tracker | None) -> None:
    """Register a published model as the options say; without a tracker, as one that was made before."""
    register_published(config, model, tracker, key=request, tags={"corpus_digest": corpus.manifest.digest})
