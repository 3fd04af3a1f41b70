"""Many processes: one copy of a role each, or one role sharded over all.

Both leave the modules bare: what is trained is what is saved. Replicas need nothing but equal weights at the start, since the loop adds
up gradients after the backward pass; sharding is torch's FSDP2, applied in place.
"""

from __future__ import annotations

import atexit
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from preceptor.core.reduce import world_size
from preceptor.core.types import Roles


def check_world(processes: int, connected: int, environ: Mapping[str, str]) -> None:
    """Refuse processes that were launched as several of which each believes to be alone: all of them would write.

    Args:
        processes: how many accelerate counts; it decides which one writes.
        connected: how many torch.distributed connects, from `preceptor.core.reduce.world_size`.
        environ: the environment variables that the launcher set.
    Raises:
        ValueError: the launcher started, or was asked for, another number; the message holds a launch line that works.
    """
    asked = max(connected, *(int(environ.get(name, 1)) for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")))
    # `accelerate launch --cpu --num_processes N` starts one process; that it was asked for several shows in these variables alone.
    unstarted = "ACCELERATE_DYNAMO_BACKEND" in environ and "MASTER_ADDR" in environ and "WORLD_SIZE" not in environ
    if asked != processes or (unstarted and processes == 1):
        expected = str(asked) if asked > 1 else "several, as accelerate was asked for"
        line = f"ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node {asked if asked > 1 else 'N'} ..."
        raise ValueError(f"world size: expected {expected}, got {processes}; on CPUs launch with: {line}")


def broadcast(roles: Roles) -> None:
    """Give every process rank 0's parameters and buffers; sharded roles are left alone.

    Raises:
        ValueError: see `check_world`.
    """
    check_world(PartialState().num_processes, world_size(), os.environ)
    if world_size() == 1:
        return
    atexit.unregister(_settle)  # handlers run the last one first, and each as often as it was registered
    atexit.register(_settle)
    with torch.no_grad():
        for name in sorted(roles):
            for tensor in (*roles[name].parameters(), *roles[name].buffers()):
                if not isinstance(tensor, DTensor):
                    message = tensor.contiguous()
                    dist.broadcast(message, src=0)
                    tensor.copy_(message)


def _settle() -> None:
    """Give gloo's threads the time to drop the tensors of the last messages.

    One that has to ask for Python's lock when Python has already gone aborts the process ("terminate called without an active
    exception"). Destroying the group would join them, but not where a role is sharded: torch's caches keep the mesh, which keeps the
    group.
    """
    time.sleep(0.1)


def shard(module: nn.Module) -> nn.Module:
    """Shard a role's parameters over all processes (FSDP2), in place: call it before the optimizer is made.

    Every process gets its part of rank 0's weights. Every child that holds parameters is a unit of its own, then the rest; a child is
    to be called, not only to have its parameters read. Gradients are summed, not averaged: the loop has divided the loss by the global
    count already. All roles of one optimizer are sharded or none is. On one process the module is returned as it is.

    Raises:
        ValueError: see `check_world`.
    """
    broadcast({"": module})
    if world_size() == 1:
        return module
    device = "cpu" if dist.get_backend() == "gloo" else torch.accelerator.current_accelerator(check_available=True)
    mesh = init_device_mesh(str(device), (world_size(),))
    for unit in (*_units(module), module):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)  # else a look at the parameters after a validation sees others
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return module


def _units(module: nn.Module) -> list[nn.Module]:
    """Children to shard on their own: those that share no parameter with the rest."""
    uses = Counter(p for _, p in module.named_parameters(remove_duplicate=False))
    own = {child: Counter(p for _, p in child.named_parameters(remove_duplicate=False)) for child in _children(module)}
    return [child for child, counts in own.items() if counts and all(uses[p] == count for p, count in counts.items())]


def _children(module: nn.Module) -> Iterator[nn.Module]:
    """Children that can be called; containers such as ModuleList are opened."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from _children(child)
        else:
            yield child


def from_all(value: Any) -> list[Any]:
    """Every process's value, in order of rank; all processes must call it."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def whole(tree: Any) -> Any:
    """Gather every sharded tensor of a nested container; all processes must call it."""
    return tree_map(lambda leaf: leaf.full_tensor() if isinstance(leaf, DTensor) else leaf, tree)


def load_whole(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a gathered state dict into a module that may be sharded."""
    present = module.state_dict()
    module.load_state_dict({name: _like(value, present[name]) if name in present else value for name, value in weights.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a gathered optimizer state into an optimizer of parameters that may be sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: {key: _like(value, parameters[index]) if isinstance(value, Tensor) and value.ndim else value for key, value in entry.items()}
        for index, entry in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _like(value: Tensor, sample: Tensor) -> Tensor:
    if isinstance(sample, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(sample.device), sample.device_mesh, sample.placements)
    return value
