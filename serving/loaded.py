"""One model in memory: its weights once, whatever layer is asked for; its heads and its states.

Knows how a model is opened and what it can be asked; requests, queues and Ray it does not know.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from threading import Lock
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertModel

from cellray.api.schema import HeadInfo, ModelStamp, Pooling
from cellray.data.collate import TokenRows
from cellray.data.session import default_threads
from cellray.errors import InputError
from cellray.infer.embed import embed_rows
from cellray.infer.predict_worker import predict_rows
from cellray.infer.replicas import TOKEN_BUDGET
from cellray.infer.states import read_states
from cellray.model.annotator_directory import load_annotator
from cellray.model.checkpoint import ModelDirectory
from cellray.model.device import compute_device
from cellray.model.encoder import CellEncoder, check_layer, load_encoder
from cellray.model.heads import HeadSpec
from cellray.model.pooling import check_pooling, is_gene_token
from cellray.models import ModelReference, open_model
from cellray.tracking.registry import is_registered_name
from cellray.vocabulary import CLS, GeneVocabulary
from serving.config import ModelOptions
from serving.encoding import Encoder


@dataclass(frozen=True)
class Files:
    """What a model is made from, but its weights.

    Attributes
    ----------
    directory, reference, vocabulary, states
        Of the model.
    input_size
        Most tokens of a cell.
    """

    directory: ModelDirectory
    reference: ModelReference
    vocabulary: GeneVocabulary
    input_size: int
    states: dict[str, NDArray[np.float32]]


def open_files(name: str, options: ModelOptions) -> Files:
    """Open what a model is made from: what is wrong with it is found before its weights are loaded.

    Raises
    ------
    InputError
        There is no such model, it is damaged, or vocabulary and states do not fit.
    """
    directory, reference = open_model(options.uri, options.tracking_uri)
    vocabulary = _vocabulary(options, directory.vocabulary, reference.uri)
    input_size = min(vocabulary.input_size, int(directory.config.max_position_embeddings))
    directory.require_vocabulary(vocabulary, f"the vocabulary of {name!r}", input_size)
    states = _states(options.states, int(directory.config.hidden_size), f"models.{name}.states")
    return Files(directory, reference, vocabulary, input_size, states)


class LoadedModel:
    """A model that answers; stays what it is when another version takes its place.

    Parameters
    ----------
    name
        What requests call it.
    options
        Where it is and how it computes.

    Raises
    ------
    InputError
        There is no such model, it is damaged, or vocabulary and states do not fit.
    """

    def __init__(self, name: str, options: ModelOptions) -> None:
        files = open_files(name, options)
        directory, reference = files.directory, files.reference
        self.options, self.directory, self.version = options, directory, reference.uri
        self.vocabulary, self.input_size, self.states = files.vocabulary, files.input_size, files.states
        device = compute_device(gpu=options.num_gpus > 0, option="num_gpus")
        self._all_layers = load_encoder(directory, 0, device)
        self._annotator = load_annotator(directory, device) if directory.heads else None
        self.gene_v = is_gene_token(self.vocabulary, device)
        self.encode = Encoder(self.vocabulary, self.input_size)
        self.token_budget = options.token_budget or TOKEN_BUDGET["gpu" if options.num_gpus else "cpu"]
        shown = reference.uri if is_registered_name(reference.uri) else reference.uri.rstrip("/").rsplit("/", 1)[-1]
        self.stamp = ModelStamp(name=name, uri=shown, digest=directory.digest, vocabulary_digest=self.vocabulary.digest)
        self._encoders: dict[int, CellEncoder] = {}
        self._lock = Lock()

    @property
    def width(self) -> int:
        """Size of an embedding."""
        return self._all_layers.width

    @cached_property
    def poolings(self) -> list[Pooling]:
        """Poolings that fit the vocabulary."""
        return [each for each in get_args(Pooling) if each != "cls" or CLS in self.vocabulary.special_tokens]

    @property
    def heads(self) -> list[HeadInfo]:
        """What the model tells besides embeddings."""
        return [
            HeadInfo(name=head.name, kind=head.kind, level=head.level, classes=list(head.classes))
            for head in self.directory.heads
        ]

    def encoder(self, layer: int) -> CellEncoder:
        """Return the encoder of a hidden state.

        Raises
        ------
        InputError
            The model has no such layer.
        """
        layers = check_layer(self.directory, layer)
        with self._lock:
            if layers not in self._encoders:
                self._encoders[layers] = first_layers(self._all_layers, layers)
            return self._encoders[layers]

    def check(self, pooling: str, layer: int) -> None:
        """Check that embeddings of a kind can be had.

        Raises
        ------
        InputError
            The model has no such layer, or no `<cls>` to pool by.
        """
        check_pooling(pooling, self.vocabulary)
        try:
            check_layer(self.directory, layer)
        except InputError as error:  # where the model lies is nobody's business
            raise InputError(f"model {self.stamp.name!r}", error.rule, error.found, error.fix) from None

    def embed(self, rows: TokenRows, pooling: str, layer: int) -> list[NDArray[np.float32]]:
        """Embed token rows; see `cellray.infer.embed.embed_rows`."""
        return embed_rows(self.encoder(layer), rows, pooling, self.gene_v, self.token_budget)

    def prediction_heads(self) -> tuple[list[HeadSpec], str]:
        """Return the heads that predictions are of, and their level: those of cells, else those of genes.

        Raises
        ------
        InputError
            The model is not fine-tuned.
        """
        heads = self.directory.heads
        if not heads:
            fix = "Ask a model that GET /v1/models lists with heads."
            raise InputError(f"model {self.stamp.name!r}", "predictions need a fine-tuned model", "no heads", fix)
        level = "cell" if any(head.level == "cell" for head in heads) else "gene"
        return [head for head in heads if head.level == level], level

    def predict(self, rows: TokenRows) -> list[dict[str, NDArray[np.float32]]]:
        """Return what the heads tell of each token row: of the cell, or of each of its gene tokens."""
        assert self._annotator is not None, "asked for heads first"
        heads, level = self.prediction_heads()
        found = predict_rows(self._annotator, rows, [head.name for head in heads], self.token_budget)
        if level == "cell":
            return [{name: values[i : i + 1] for name, values in found.items()} for i in range(len(rows.lengths))]
        gene_t = self.gene_v.cpu().numpy()[rows.input_ids]
        ends = np.concatenate([[0], np.cumsum(gene_t)])[rows.offsets]
        return [{name: values[start:stop] for name, values in found.items()} for start, stop in pairwise(ends.tolist())]

    def prepare(self) -> None:
        """Compute one small row, so that the first request does not wait for what is made at first use."""
        gene = next(iter(self.vocabulary.genes.values()))
        self.embed(TokenRows(np.array([gene], np.uint16), np.array([0, 1])), "cell", -1)


def set_threads(options: ModelOptions) -> None:
    """Let torch use the threads that a replica may use."""
    torch.set_num_threads(options.threads or default_threads(options.max_replicas, options.num_cpus))


def first_layers(encoder: CellEncoder, layers: int) -> CellEncoder:
    """Return an encoder of the first layers of another, whose weights it shares."""
    config = BertConfig.from_dict(encoder.bert.config.to_dict() | {"num_hidden_layers": 0})
    with torch.device("meta"):  # nothing is filled: all parts are the other's
        bert: Any = BertModel(config, add_pooling_layer=False)
    config.num_hidden_layers, config._attn_implementation = layers, encoder.bert.config._attn_implementation
    bert.embeddings, bert.encoder.layer = encoder.bert.embeddings, encoder.bert.encoder.layer[:layers]
    return CellEncoder(bert, encoder.pad_id).eval()


def _vocabulary(options: ModelOptions, own: GeneVocabulary | None, uri: str) -> GeneVocabulary:
    if options.vocabulary is None and own is None:
        fix = "Set its `vocabulary`: jobs.build_vocabulary --from-geneformer makes one."
        raise InputError(uri, "the genes of its tokens must be known", "no vocabulary.json", fix)
    return own if own is not None else GeneVocabulary.load(str(options.vocabulary))


def _states(uri: str | None, width: int, option: str) -> dict[str, NDArray[np.float32]]:
    """Read the embeddings of all states of a file."""
    return {} if uri is None else read_states(uri, None, width, option)
