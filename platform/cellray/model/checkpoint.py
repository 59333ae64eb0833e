"""Model directories: Hugging Face layout plus `vocabulary.json` and `provenance.json`.

An official Geneformer directory has neither of the two and loads all the same; ours loads in transformers as it is.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from cellray import schema, storage
from cellray.errors import InputError
from cellray.formats import FORMAT_VERSION, require_known_version
from cellray.model.heads import HeadSpec
from cellray.vocabulary import PAD, GeneVocabulary, check_match

CONFIG, WEIGHTS, PROVENANCE = "config.json", "model.safetensors", "provenance.json"
_VERSION = 1
"""Of `provenance.json`; one that tells no version is of the first."""


@dataclass(frozen=True)
class ModelDirectory:
    """A model on disk or in object storage, opened but not loaded.

    Attributes
    ----------
    uri
        Its directory.
    config
        The transformers configuration.
    vocabulary
        None for an official directory, which holds none.
    provenance
        What the model was made from; empty for an official directory.
    digest
        SHA-256 of the weights' file.
    """

    uri: str
    config: BertConfig
    vocabulary: GeneVocabulary | None
    provenance: dict[str, Any]
    digest: str

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open a model directory.

        Raises
        ------
        InputError
            It holds no BERT model with safetensors weights, its weights were changed, or its vocabulary does not fit.
        """
        uri = storage.absolute(uri)
        fix = "Name a model directory made by jobs.pretrain, or an official Geneformer one with safetensors weights."
        for name in (CONFIG, WEIGHTS):
            if not storage.exists(storage.join(uri, name)):
                raise InputError(uri, f"a model directory holds {CONFIG} and {WEIGHTS}", f"no {name}", fix)
        fields = storage.read_json(storage.join(uri, CONFIG))
        if not isinstance(fields, dict) or fields.get("model_type") != "bert":
            found = f"model_type {fields.get('model_type')!r}" if isinstance(fields, dict) else "other JSON"
            raise InputError(storage.join(uri, CONFIG), "the model must be a BERT encoder", found, fix)
        try:
            config = BertConfig.from_dict(fields)
        except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
            found = " ".join(str(error).split())[:200]
            raise InputError(storage.join(uri, CONFIG), "it must be a valid BERT configuration", found, fix) from None
        provenance_uri = storage.join(uri, PROVENANCE)
        vocabulary_uri = storage.join(uri, schema.VOCABULARY)
        model = cls(
            uri=uri,
            config=config,
            vocabulary=GeneVocabulary.load(vocabulary_uri) if storage.exists(vocabulary_uri) else None,
            provenance=_read_object(provenance_uri) if storage.exists(provenance_uri) else {},
            digest=storage.sha256_file(storage.join(uri, WEIGHTS)),
        )
        model._check()
        return model

    @property
    def n_layers(self) -> int:
        """Number of transformer layers."""
        return int(self.config.num_hidden_layers)

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        return self.vocabulary.special_tokens[PAD] if self.vocabulary else int(self.config.pad_token_id or 0)

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        """What a fine-tuned model of ours tells, in the order of its provenance; empty for any other.

        Raises
        ------
        InputError
            The provenance describes heads in another way.
        """
        uri, described = storage.join(self.uri, PROVENANCE), self.provenance.get("heads", [])
        if not isinstance(described, list):
            found = type(described).__name__
            raise InputError(uri, "heads must be a list", found, "Restore the model directory.")
        return tuple(HeadSpec.from_json(value, uri) for value in described)

    def files(self) -> AbstractContextManager[Path]:
        """Yield a local directory with the model's files."""
        return storage.local_directory(self.uri)

    def require_vocabulary(self, vocabulary: GeneVocabulary, owner: str, input_size: int) -> None:
        """Check that this model understands the tokens of a corpus.

        Parameters
        ----------
        vocabulary, owner
            The corpus' vocabulary and what to call the corpus in a message.
        input_size
            Tokens of the corpus' longest possible row.

        Raises
        ------
        InputError
            Digests differ, or, for an official directory, which has none, numbers of tokens; or rows are too long.
        """
        if self.vocabulary is not None:
            check_match(f"model {self.uri}", self.vocabulary, owner, vocabulary)
        elif self.config.vocab_size != len(vocabulary):
            raise InputError(
                f"model {self.uri}",
                f"its embedding table must have a row for each token of {owner}",
                f"{self.config.vocab_size:,} rows for {len(vocabulary):,} tokens",
                "Tokenize with the dictionaries this model was trained with.",
            )
        if input_size > self.config.max_position_embeddings:
            raise InputError(
                f"model {self.uri}",
                f"it must take rows as long as those of {owner}",
                f"{self.config.max_position_embeddings:,} positions for rows of up to {input_size:,} tokens",
                f"Tokenize with --input-size {self.config.max_position_embeddings}.",
            )

    def _check(self) -> None:
        """Check weights and vocabulary against what the directory says of itself."""
        uri, told = storage.join(self.uri, PROVENANCE), self.provenance.get(FORMAT_VERSION)
        require_known_version(uri, "model directory", told, _VERSION, self.provenance.get("software"))
        recorded = self.provenance.get("weights_sha256")
        if recorded not in (None, self.digest):
            raise InputError(
                storage.join(self.uri, WEIGHTS),
                f"the weights must be those {PROVENANCE} names",
                "other content",
                "Restore the file.",
            )
        wanted = self.provenance.get("vocabulary_digest")
        if self.vocabulary is not None and wanted not in (None, self.vocabulary.digest):
            raise InputError(
                storage.join(self.uri, schema.VOCABULARY),
                f"the vocabulary must be the one {PROVENANCE} names",
                f"digest {self.vocabulary.digest[:12]} for {wanted[:12]}",
                "Restore the file.",
            )
        if self.vocabulary is not None and len(self.vocabulary) != self.config.vocab_size:
            raise InputError(
                self.uri,
                "vocabulary and embedding table must have one size",
                f"{len(self.vocabulary):,} tokens, {self.config.vocab_size:,} rows",
                "Restore the directory.",
            )


def _read_object(uri: str) -> dict[str, Any]:
    value = storage.read_json(uri)
    if not isinstance(value, dict):
        raise InputError(uri, "the file must hold a JSON object", type(value).__name__, "Restore the file.")
    return value


def save_model(model: PreTrainedModel, vocabulary: GeneVocabulary, provenance: dict[str, Any], uri: str) -> str:
    """Write a model directory; it appears whole or not at all. Returns the SHA-256 of its weights."""

    def write(local: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(local)

    return publish_model(write, vocabulary, provenance, uri)


def publish_model(
    write: Callable[[Path], None], vocabulary: GeneVocabulary, provenance: dict[str, Any], uri: str
) -> str:
    """Publish configuration and weights, which `write` puts into a local directory, with vocabulary and provenance.

    The directory appears whole or not at all. Returns the SHA-256 of its weights.
    """
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        local = Path(folder)
        write(local)
        (local / schema.VOCABULARY).write_bytes(vocabulary.to_json())
        digest = storage.sha256_file(str(local / WEIGHTS))
        record = {
            **provenance,
            FORMAT_VERSION: _VERSION,
            "vocabulary_digest": vocabulary.digest,
            "weights_sha256": digest,
        }
        (local / PROVENANCE).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        storage.publish_directory(local, uri, last=CONFIG)
    return digest


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing progress bars for one file and from reporting on each tensor."""
    shown, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hf_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if shown:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
