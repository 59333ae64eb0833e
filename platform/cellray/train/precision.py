"""What training computes in, and its trades of time for memory: autocast, activations computed twice, compilation.

Weights and the optimiser's state are float32 throughout; autocast lets matrix products run in bfloat16.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from cellray.errors import InputError
from cellray.model.device import is_accelerator

Precision = Literal["auto", "float32", "bf16"]
Autocast = Callable[[], AbstractContextManager[object]]
"""Entered around a forward pass."""


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return what matrix products run in; None = float32, without autocast.

    Parameters
    ----------
    precision
        `float32`, `bf16`, or `auto`: bf16 on GPUs that have it, else float32.
    device
        Where to compute.

    Raises
    ------
    InputError
        The precision is unknown, or bf16 where the device has none.
    """
    if precision not in get_args(Precision):
        rule = f"must be one of {', '.join(get_args(Precision))}"
        raise InputError("--precision", rule, repr(precision), "Choose one of them.")
    has_bf16 = _has_bf16(device)
    if precision == "bf16" and not has_bf16:
        fix = "Use --precision auto, which takes float32 there."
        raise InputError("--precision bf16", "needs a device that computes in bfloat16", f"device {device}", fix)
    wanted = precision == "bf16" or (precision == "auto" and is_accelerator(device) and has_bf16)
    return torch.bfloat16 if wanted else None


def _has_bf16(device: torch.device) -> bool:
    if not is_accelerator(device):
        return True
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which to run the forward pass."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, a third more work.

    Dropout is drawn alike both times. The non-reentrant kind works with DDP, FSDP2 and frozen layers.
    """
    # transformers gave the method a new name in 5.2x and warns of the old one
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compile each transformer layer in place, for rows of any length; names of weights stay.

    Layers are alike and compile once, and what lies between (looking up masked positions) needs no compilation.
    """
    layers = model.base_model.get_submodule("encoder.layer")
    for layer in layers.children():
        layer.compile(dynamic=True, backend=backend)
