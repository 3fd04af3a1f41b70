"""Many processes: one copy of a role each, or one role sharded over all.

Both leave the modules bare: what is trained is what is saved. Replicas need nothing but equal weights at the start, since the loop adds
up gradients after the backward pass; sharding is torch's FSDP2, applied in place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from preceptor.core.reduce import world_size
from preceptor.core.types import Roles


def broadcast(roles: Roles) -> None:
    """Give every process rank 0's parameters and buffers; sharded roles are left alone."""
    if world_size() == 1:
        return
    with torch.no_grad():
        for name in sorted(roles):
            for tensor in (*roles[name].parameters(), *roles[name].buffers()):
                if not isinstance(tensor, DTensor):
                    dist.broadcast(tensor, src=0)


def shard(module: nn.Module) -> nn.Module:
    """Shard a role's parameters over all processes (FSDP2), in place: call it before the optimizer is made.

    Every child that holds parameters is a unit of its own, then the rest. Gradients are summed, not averaged: the loop has divided the
    loss by the global count already. On one process the module is returned as it is.
    """
    if world_size() == 1:
        return module
    for child in module.children():
        if any(True for _ in child.parameters()):
            _fully_shard(child)
    _fully_shard(module)
    return module


def _fully_shard(module: nn.Module) -> None:
    fully_shard(module)
    if isinstance(module, FSDPModule):
        module.set_gradient_divide_factor(1.0)


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
