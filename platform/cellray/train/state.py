"""What a training is made of at a step, by name: weights, optimiser and schedule, as safetensors and JSON.

The same files whether one worker holds the weights, all hold copies, or each holds a part (FSDP2): so a training can go
on with another number of workers. Workers draw their random numbers from the step's number, hence there is no random
state to keep.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from cellray.errors import InputError

MODEL_STATE, OPTIMIZER_STATE, LOOP_STATE = "model_state.safetensors", "optimizer_state.safetensors", "loop_state.json"


@dataclass(frozen=True)
class State:
    """A copy of the state in the memory of the CPU.

    Attributes
    ----------
    weights
        By the parameter's or buffer's name.
    slots
        What the optimiser keeps, by `NAME|SLOT`.
    numbers
        Everything else, as JSON.
    """

    weights: dict[str, Tensor]
    slots: dict[str, Tensor]
    numbers: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the files into a local folder."""
        save_file(self.weights, folder / MODEL_STATE)
        save_file(self.slots, folder / OPTIMIZER_STATE)
        (folder / LOOP_STATE).write_text(json.dumps(self.numbers))


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the tensor of each parameter and stored buffer, tied ones once."""
    yield from module.named_parameters()
    stored = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in stored)


def capture(module: nn.Module, optimizer: Optimizer, numbers: dict[str, Any], *, keep: bool) -> State | None:
    """Copy the state.

    Parameters
    ----------
    module
        Without the wrapping for several workers.
    optimizer
        Of some of the module's parameters.
    numbers
        Everything else that is to be kept, as JSON.
    keep
        Whether this worker wants it; all workers must call this, as gathering the parts takes them all.
    """
    weights = {name: _whole(value, keep=keep) for name, value in weights_of(module)}
    slots = {
        f"{name}|{slot}": _whole(value, keep=keep)
        for name, parameter in module.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }
    return State(weights, slots, numbers) if keep else None


def load_state(folder: Path, module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Restore what `State.write` wrote; returns the numbers.

    Raises
    ------
    InputError
        The state is that of another model.
    """
    load_weights(folder, module)
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(folder / OPTIMIZER_STATE).items():
        name, slot = key.rsplit("|", 1)
        slots.setdefault(name, {})[slot] = value
    for name, parameter in module.named_parameters():
        if name in slots:
            optimizer.state[parameter] = {slot: _like(value, parameter) for slot, value in slots[name].items()}
    numbers: dict[str, Any] = json.loads((folder / LOOP_STATE).read_text())
    return numbers


def load_weights(folder: Path, module: nn.Module) -> None:
    """Restore the weights alone.

    Raises
    ------
    InputError
        They are those of another model.
    """
    stored, wanted = load_file(folder / MODEL_STATE), dict(weights_of(module))
    if {k: v.shape for k, v in stored.items()} != {k: v.shape for k, v in wanted.items()}:
        found = f"{len(stored)} tensors for {len(wanted)}, or others"
        raise InputError(str(folder), "a checkpoint must hold this model's weights", found, "Delete it.")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(_like(stored[name], tensor))


def _whole(value: Tensor, *, keep: bool) -> Tensor:
    """Return a copy of a tensor, of all workers' parts, on the CPU; an empty one where it is not to be kept."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().to("cpu", copy=True).contiguous() if keep else torch.empty(0)


def _like(value: Tensor, model: Tensor) -> Tensor:
    """Put a whole tensor where another one lies: on its device, cut as it is cut.

    A number, as AdamW's count of steps, is not cut; fused AdamW wants it beside the weights.
    """
    if isinstance(model, DTensor) and value.ndim > 0:
        return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)
    return value.to(model.device)
