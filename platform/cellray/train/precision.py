"""In which number format a model computes: chosen by the device unless the user says."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from cellray.errors import InputError
from cellray.train.options import Precision

Autocast = Callable[[], AbstractContextManager[Any]]


def autocast(precision: Precision, device: torch.device) -> Autocast:
    """Return what is entered around a forward pass; weights and optimiser stay in float32.

    Parameters
    ----------
    precision
        `auto`: bf16 on GPUs that compute in it, float32 elsewhere.

    Raises
    ------
    InputError
        The device does not compute in bf16.
    """
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able and device.type == "cuda":
        found = torch.cuda.get_device_name(device)
        raise InputError("--precision bf16", "the device must compute in bf16", found, "Use --precision float32.")
    if precision == "bf16" or (precision == "auto" and able):
        return partial(torch.autocast, device.type, torch.bfloat16)
    return nullcontext
