"""Several workers as one: wrapping a module for data-parallel training, and what its gradients need.

Weights are copied to every worker (DDP) or cut among them (FSDP2), on CPU (gloo) and CUDA (nccl) alike. The process
group is set up by whoever starts the workers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.models.bert.modeling_bert import BertLayer

from cellray.model.device import is_accelerator

Sharding = Literal["none", "full"]
ItemT = TypeVar("ItemT")


def _copied(module: nn.Module, device: torch.device) -> nn.Module:
    devices = [device] if is_accelerator(device) else None
    return DistributedDataParallel(module, device_ids=devices)


def _cut(module: nn.Module, device: torch.device) -> nn.Module:
    """Cut each transformer layer's weights among the workers, and then all others (FSDP2)."""
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))  # torch's own choice is by its build
    for layer in [m for m in module.modules() if isinstance(m, BertLayer)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


_WRAPPERS: dict[Sharding, Callable[[nn.Module, torch.device], nn.Module]] = {"none": _copied, "full": _cut}


def wrap(module: nn.Module, sharding: Sharding, device: torch.device, world_size: int) -> nn.Module:
    """Return a module, already on its device, made ready for a group of workers.

    Parameters
    ----------
    sharding
        `none`: every worker holds all weights (DDP). `full`: each holds a part, for models that fill a device (FSDP2).
    """
    return _WRAPPERS[sharding](module, device) if world_size > 1 else module


@contextmanager
def gradients_shared(module: nn.Module, *, shared: bool) -> Iterator[None]:
    """Average the gradients of the block's backward pass over the workers, or let them add up first."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(shared)
        yield
    elif isinstance(module, DistributedDataParallel) and not shared:
        with module.no_sync():
            yield
    else:
        yield


@torch.no_grad()
def scale_gradients(parameters: Sequence[nn.Parameter], factor: Tensor) -> None:
    """Multiply all gradients by a number that lies on their device."""
    gradients = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor.to(torch.float32))


def whole(value: Tensor) -> Tensor:
    """Return a tensor of all workers' parts."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gather_from_all(items: list[ItemT], world_size: int) -> list[ItemT]:
    """Return the items of all workers, in their order; all must call this."""
    if world_size == 1:
        return items
    found: list[list[ItemT]] = [[] for _ in range(world_size)]
    distributed.all_gather_object(found, items)
    return [item for part in found for item in part]


def agree(value: int, world_size: int) -> int:
    """Return the first worker's number; all must call this."""
    if world_size == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]
