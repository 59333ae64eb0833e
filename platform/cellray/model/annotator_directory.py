"""Directories of fine-tuned models: how training starts from a model directory, and what it leaves.

A fine-tuned directory is a BERT encoder for transformers as it is (`bert.*`); heads and pooling lie beside it
(`heads.*`, `pooling.*`), described in `provenance.json`. There is no way to start from random weights.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cellray import schema
from cellray.errors import InputError, listing
from cellray.model.annotator import AnnotatedEncoder
from cellray.model.checkpoint import WEIGHTS, ModelDirectory, publish_model
from cellray.model.encoder import load_layers
from cellray.model.head_pooling import check_head_pooling
from cellray.model.heads import HeadSpec, check_heads
from cellray.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)

_OWN = ("heads.", "pooling.")  # weights beside the encoder's


def start_annotator(
    model: ModelDirectory,
    heads: Sequence[HeadSpec],
    pooling: str,
    *,
    seed: int = 0,
    dropout: float = 0.1,
    emb_layer: int = 0,
    vocabulary: GeneVocabulary | None = None,
) -> AnnotatedEncoder:
    """Return the model that fine-tuning starts from: a pretrained encoder, heads that are kept or new.

    Parameters
    ----------
    model
        A pretrained or fine-tuned directory of ours, or an official one (masked genes, sequence or token classifier),
        whose heads are left out. All weights of the encoder must be there.
    heads
        What the model shall tell. A head that the directory has under the same name, of the same kind, level and
        classes and on the same pooling, is kept; its classes may come in another order, and a regression's another
        mean and std change its weights so that it tells the same.
    pooling
        `cell`, `cls` or `attention`; weights of an attention the directory has are kept.
    seed
        Of new heads.
    dropout
        Before the heads, in training; the encoder's own is that of its configuration.
    emb_layer
        Hidden state the heads see: 0 = the last one, -1 = the one before. Layers above are left out.
    vocabulary
        The corpus's, for an official directory, which has none.

    Raises
    ------
    InputError
        Weights are missing, the pooling or the layer does not exist, or it is not known which tokens are genes.
    """
    known = model.vocabulary or vocabulary
    if known is None:
        fix = "Give the vocabulary of the corpus."
        raise InputError(model.uri, "fine-tuning must know which tokens are genes", "a model without vocabulary", fix)
    model.require_vocabulary(known, "the corpus", 0)
    check_heads(heads)
    check_head_pooling(pooling, known)
    if pooling == "attention" and all(spec.level == "gene" for spec in heads):
        rule = "needs a head at cell level, or nothing would train it"
        raise InputError("pooling attention", rule, "heads at gene level alone", "Use cell.")
    with model.files() as directory:
        bert = load_layers(model, emb_layer, directory)
        made = AnnotatedEncoder(bert, heads, pooling, known, dropout=dropout, seed=seed, emb_layer=emb_layer)
        stored = _own_weights(directory / WEIGHTS, model.uri) if model.heads else {}
    same_pooling = emb_layer == 0 and model.provenance.get("pooling") == pooling
    kept = dict(_kept(made, model, stored, same_pooling=same_pooling))
    new = [spec.name for spec in heads if f"heads.{spec.name}.weight" not in kept]
    if old := {spec.name for spec in heads} - set(new):
        logger.info("heads kept from %s: %s; new: %s", model.uri, listing(old), listing(new))
    made.load_state_dict(kept, strict=False)
    return made


def _kept(
    made: AnnotatedEncoder, model: ModelDirectory, stored: Mapping[str, Tensor], *, same_pooling: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a directory's pooling and heads that mean the same in a new model."""
    if same_pooling:
        yield from ((key, tensor) for key, tensor in stored.items() if key.startswith("pooling."))
    earlier = {spec.name: spec for spec in model.heads}
    for spec in made.specs:
        old = earlier.get(spec.name)
        on_same_states = same_pooling if spec.level == "cell" else made.emb_layer == 0
        if old is not None and on_same_states and _is_same(old, spec):
            weight, bias = (stored[f"heads.{spec.name}.{part}"] for part in ("weight", "bias"))
            if spec.classes:
                order = [old.classes.index(name) for name in spec.classes]
                weight, bias = weight[order], bias[order]
            else:  # the same numbers in their own unit
                weight = weight * (old.std / spec.std)
                bias = (bias * old.std + old.mean - spec.mean) / spec.std
            yield from ((f"heads.{spec.name}.weight", weight), (f"heads.{spec.name}.bias", bias))


def _is_same(old: HeadSpec, new: HeadSpec) -> bool:
    return (old.kind, old.level, set(old.classes)) == (new.kind, new.level, set(new.classes))


def save_annotator(model: AnnotatedEncoder, vocabulary: GeneVocabulary, provenance: Mapping[str, Any], uri: str) -> str:
    """Write the directory of a fine-tuned model; it appears whole or not at all. Returns the digest of its weights.

    `provenance.json` gets `heads`, `pooling` and `emb_layer` (which hidden state of the parent its last one is).
    LoRA must have been merged (`cellray.train.parameters.merge_lora`).
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    assert not any("lora_" in name for name in state), "LoRA must be merged before a model is published"

    def write(local: Path) -> None:
        config = type(model.bert.config).from_dict(model.bert.config.to_dict() | {"architectures": ["BertModel"]})
        config.save_pretrained(local)
        save_file(state, local / WEIGHTS, metadata={"format": "pt"})

    described = {
        "heads": [spec.to_json() for spec in model.specs],
        "pooling": model.pooling_name,
        "emb_layer": model.emb_layer,
    }
    return publish_model(write, vocabulary, {**provenance, **described}, uri)


def load_annotator(model: ModelDirectory, device: torch.device | str = "cpu") -> AnnotatedEncoder:
    """Load a fine-tuned model of ours, to predict with.

    Raises
    ------
    InputError
        The directory has no heads, or weights are missing.
    """
    require_heads(model)
    assert model.vocabulary is not None  # `require_heads` saw to it
    check_head_pooling(str(model.provenance.get("pooling")), model.vocabulary)
    with model.files() as directory:
        bert = load_layers(model, 0, directory)
        made = AnnotatedEncoder(bert, model.heads, str(model.provenance["pooling"]), model.vocabulary)
        made.emb_layer = int(model.provenance.get("emb_layer", 0))
        stored = _own_weights(directory / WEIGHTS, model.uri)
    wanted = {name: tensor.shape for name, tensor in made.state_dict().items() if name.startswith(_OWN)}
    wrong = [name for name, shape in wanted.items() if name not in stored or stored[name].shape != shape]
    if wrong or set(stored) - set(wanted):
        found = f"{listing(wrong or set(stored) - set(wanted), 3)} {'missing or of another size' if wrong else 'more'}"
        rule = "the weights must be those of the heads in provenance.json"
        raise InputError(model.uri, rule, found, "Restore the model directory.")
    made.load_state_dict(stored, strict=False)
    return made.to(device).eval()


def require_heads(model: ModelDirectory) -> None:
    """Check that a directory holds a fine-tuned model of ours.

    Raises
    ------
    InputError
        It does not; the message says what it holds.
    """
    if model.heads and model.vocabulary is not None:
        return
    objective = model.provenance.get("objective")
    kind = "/".join(model.config.architectures or ["BERT"])
    if model.heads:
        found = f"no {schema.VOCABULARY}"
    elif objective is not None:
        found = f"a model without heads, trained on: {objective}"
    else:
        found = f"a {kind} of another origin, which does not say what its classes are"
    fix = "Fine-tune it first with jobs.finetune, which starts from any such model."
    raise InputError(model.uri, "predicting needs a model with heads", found, fix)


def _own_weights(weights: Path, name: str) -> dict[str, Tensor]:
    """Read pooling and heads."""
    try:
        with safe_open(weights, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.startswith(_OWN)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        found = " ".join(str(error).split())[:200]
        raise InputError(name, f"{WEIGHTS} must be whole", found, "Restore the model directory.") from None
