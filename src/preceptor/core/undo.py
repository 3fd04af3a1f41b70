"""Going back to before a turn of the loop, when its batch turns out to have no finite loss or gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map

from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Roles


def remember(
    method: Method, roles: Roles, optimizers: Mapping[str, Optimizer], schedulers: Mapping[str, LRScheduler], state: State
) -> Callable[[], None]:
    """Return a function that takes buffers, memory, trained parameters, optimizers and schedules back to what they are now.

    A single phase that updates in the usual way fails before it steps: then parameters, optimizers and schedules are not copied.
    """
    first, *others = method.phases()
    usual = not others and type(method).update is Method.update and first.update == method.update
    tensors = [buffer for module in roles.values() for buffer in module.buffers()]
    parts: list[Optimizer | LRScheduler] = []
    if not usual:
        tensors += [p for optimizer in optimizers.values() for group in optimizer.param_groups for p in group["params"]]
        parts = [*optimizers.values(), *schedulers.values()]
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    saved = [(part, _copied(part.state_dict())) for part in parts]
    memory = _copied(state.memory)

    def back() -> None:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        for part, value in saved:
            part.load_state_dict(value)
        state.memory = memory

    return back


def _copied(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)
