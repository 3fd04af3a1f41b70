"""The same architecture again, with weights of its own: peers of a student and the generations of a chain."""

from __future__ import annotations

import copy
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from preceptor.models.folder import is_transformers
from preceptor.models.reference import Reference, build


@runtime_checkable
class _Redrawn(Protocol):
    """A module that draws its parameters anew, as torch's layers do."""

    def reset_parameters(self) -> None: ...


def fresh_copy(model: nn.Module) -> nn.Module:
    """Build a model of the same architecture whose weights are drawn anew.

    A reference model is built from its ``config``, a transformers model from its configuration. Of any other, a copy is made and every
    layer with a ``reset_parameters`` calls it; parameters that belong to no such layer (a position embedding, a scale) keep their values.
    The draws come from a seed that torch's global generator gives, not from that generator itself: a copy is never equal to a model that
    was made from the generator's present state.

    Args:
        model: not changed.
    Returns:
        On the device and in the dtype of ``model``, in its mode, every parameter requiring grad where the model's does.
    Raises:
        ValueError: no layer of the model can draw its parameters anew.
    """
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = _rebuilt(model)
    some = next(model.parameters(), None)
    if some is not None:
        nn.Module.to(fresh, device=some.device, dtype=some.dtype)
    for new, old in zip(fresh.parameters(), model.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return fresh.train(model.training)


def _rebuilt(model: nn.Module) -> nn.Module:
    if isinstance(model, Reference):
        return build(model.config)
    fresh = copy.deepcopy(model)
    if is_transformers(model):
        return type(model)(fresh.config)  # pyright: ignore[reportCallIssue, reportArgumentType]
    redrawn = [module for module in fresh.modules() if isinstance(module, (_Redrawn, nn.MultiheadAttention))]
    if not redrawn:
        raise ValueError(f"model: expected layers with reset_parameters, got {type(model).__name__}, which has none")
    for module in redrawn:
        module._reset_parameters() if isinstance(module, nn.MultiheadAttention) else module.reset_parameters()
    return fresh
