"""Which device a model computes on: the CPU, or whatever accelerator torch finds."""

import torch

from cellray.errors import InputError


def is_accelerator(device: torch.device) -> bool:
    """Tell whether a device is anything but the CPU."""
    return device.type != "cpu"


def compute_device(*, gpu: bool, option: str) -> torch.device:
    """Return the device of a process: the accelerator if it reserves one, else the CPU.

    Parameters
    ----------
    gpu
        Whether it reserves one.
    option
        What asked for it, for the message.

    Raises
    ------
    InputError
        Torch sees no accelerator.
    """
    if not gpu:
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator(check_available=True)  # not: compiled for one
    if device is None:
        raise InputError(option, "needs a GPU that torch can use", "none on the worker", "Set it to 0.")
    return device
