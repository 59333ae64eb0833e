"""Which weights are trained, and how fast: frozen layers, LoRA, layer-wise learning rates, weight decay.

Works on any model that holds its encoder as `bert` (transformers' names), before it is wrapped for several workers.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import BertModel

from cellray.errors import InputError

LORA_TARGETS = ("query", "key", "value", "dense")
"""Linear layers LoRA may be added to; `dense` are the three others of a layer (attention output, feed forward)."""
_LAYERS = "bert.encoder.layer."
_EMBEDDINGS = "bert.embeddings."

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers in a model's weights: those that are trained, and all."""

    trainable: int
    total: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's weights; tied ones once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ParameterCount(sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes))


def freeze_layers(model: nn.Module, n: int) -> None:
    """Keep the embeddings and the first `n` transformer layers as they are; 0 freezes nothing.

    Raises
    ------
    InputError
        The model has fewer layers.
    """
    bert = _encoder(model)
    layers = len(bert.encoder.layer)
    if not 0 <= n <= layers:
        rule = f"frozen layers must lie in 0..{layers}, the layers of the model"
        raise InputError("--freeze-layers", rule, str(n), "Freeze fewer layers.")
    for module in [bert.embeddings, *bert.encoder.layer[:n]] if n else []:
        module.requires_grad_(requires_grad=False)


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] = ("query", "value"),
    seed: int = 0,
) -> None:
    """Train low-rank additions to the encoder in place of its own weights (Hu et al. 2021), in place.

    Heads and pooling stay trainable; layers that were frozen get no additions. To freeze layers afterwards freezes
    their additions.

    Parameters
    ----------
    model
        Holds its encoder as `bert`.
    rank
        Of the additions.
    alpha
        They are scaled by alpha / rank.
    dropout
        Of their input, in training.
    targets
        Which linear layers, from `LORA_TARGETS`.
    seed
        Of the random half of the additions; the other half begins at zero, so the model's output does not change.

    Raises
    ------
    InputError
        A target is unknown or there is none, or the rank is not positive, or no layer is left to train.
    """
    from peft import LoraConfig, inject_adapter_in_model

    _check_lora(rank, targets)
    bert = _encoder(model)
    open_layers = [i for i, layer in enumerate(bert.encoder.layer) if any(p.requires_grad for p in layer.parameters())]
    if not open_layers:
        raise InputError("--lora-rank", "needs a layer that is not frozen", "all are frozen", "Freeze fewer layers.")
    config = LoraConfig(
        r=rank,
        lora_alpha=cast("int", alpha),  # peft only ever divides it
        lora_dropout=dropout,
        target_modules=list(targets),
        layers_to_transform=open_layers,
        layers_pattern="layer",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, bert)


def _check_lora(rank: int, targets: Sequence[str]) -> None:
    unknown = [target for target in targets if target not in LORA_TARGETS]
    if unknown or not targets:
        found = ", ".join(map(repr, unknown)) or "none"
        raise InputError("--lora-targets", f"must be some of {', '.join(LORA_TARGETS)}", found, "Correct the names.")
    if rank < 1:
        raise InputError("--lora-rank", "must be positive", str(rank), "Choose 8, for example.")


def merge_lora(model: ModelT) -> ModelT:
    """Add the low-rank additions to the weights they belong to, in place: a plain model with the same output."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())
    if adapted:
        del _encoder(model).peft_config
    return model


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return AdamW's groups of the weights that are trained.

    Layer-wise decay of the learning rate (Howard & Ruder 2018; Sun et al. 2019): whatever lies above the encoder learns
    at `learning_rate`, the last of L layers at `learning_rate * layer_decay`, the first at `layer_decay ** L` of it,
    the embeddings at `layer_decay ** (L + 1)`. Biases, LayerNorm and other vectors are spared the weight decay.

    Parameters
    ----------
    model
        Holds its encoder as `bert`.
    learning_rate
        Of the heads.
    weight_decay
        Of the matrices.
    layer_decay
        Above 0 and at most 1, which is one rate for all.

    Returns
    -------
    list[dict[str, Any]]
        From the heads down, each with `params`, `lr`, `weight_decay` and `name`, in an order that depends on names
        alone.

    Raises
    ------
    InputError
        The decay is out of range, or nothing is trained.
    """
    if not 0 < layer_decay <= 1:
        raise InputError("layer_decay", "must lie above 0 and not above 1", str(layer_decay), "Choose 0.9, or 1.")
    layers = len(_encoder(model).encoder.layer)
    members: defaultdict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[_depth(name, layers), parameter.ndim > 1].append(parameter)
    if not members:
        raise InputError("model", "some weights must be trained", "all are frozen", "Freeze fewer layers.")
    return [
        {
            "params": members[depth, decayed],
            "lr": learning_rate * layer_decay**depth,
            "weight_decay": weight_decay if decayed else 0.0,
            "name": f"depth {depth}, {'matrices' if decayed else 'vectors'}",
        }
        for depth, decayed in sorted(members, key=lambda key: (key[0], not key[1]))
    ]


def _depth(name: str, layers: int) -> int:
    """Return how far below the heads a weight lies: 0 for the heads, 1 for the last layer, L + 1 for the embeddings."""
    if name.startswith(_EMBEDDINGS):
        return layers + 1
    if name.startswith(_LAYERS):
        return layers - int(name.removeprefix(_LAYERS).split(".")[0])
    return 0


def _encoder(model: nn.Module) -> BertModel:
    bert = model.bert
    assert isinstance(bert, BertModel)
    return bert
