"""Models as functions of their parameters: logits at other weights, and derivatives along a direction in weight space.

Nothing in a model changes: the weights stand in for its own during one call, in eval mode (no dropout, running statistics as they are).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils._pytree import tree_map

from preceptor.core.method import evaluating
from preceptor.models.taps import forward

Weights = Mapping[str, Tensor]
"""Some of a model's parameters by their names in ``named_parameters``."""


def logits_at(model: nn.Module, weights: Weights, inputs: Tensor | Mapping[str, Any]) -> Tensor:
    """Logits of a model whose parameters are those of ``weights``; the others are its own.

    Gradients flow to ``weights``. A model in half precision runs in single precision where no weight is in half.

    Args:
        model: see `preceptor.models.taps.forward`.
        weights: by name, shaped like the parameters; names that are left out stand for the model's own.
        inputs: (N, ...), or a mapping of keywords.

    Returns:
        Shape (N, ..., classes).
    """
    values = dict(weights)
    if values and not any(_is_half(value) for value in values.values()):
        inputs = tree_map(lambda leaf: leaf.float() if _is_half(leaf) else leaf, inputs)
        others = (*model.named_parameters(), *model.named_buffers())
        values |= {name: value.detach().float() for name, value in others if name not in values and _is_half(value)}
    with evaluating(model):
        return functional_call(_Logits(model), {f"model.{name}": value for name, value in values.items()}, (inputs,))


def along(
    function: Callable[[Weights], Tensor], weights: Weights, direction: Weights, *, differences: bool = False
) -> tuple[Tensor, Tensor]:
    """Value of a function of weights, and its derivative along a direction.

    Forward mode, which costs about one more forward pass. Where a part of the function has no forward mode, such as fused attention,
    or when asked for, central differences: two passes, an error of the order of (machine epsilon)^(2/3); the value is then their mean.

    Args:
        function: of the weights alone; calling it again gives the same.
        weights: where.
        direction: what the derivative is along, with the names of ``weights``; need not be of length 1.
        differences: whether to take central differences anyway.

    Returns:
        Value and derivative, shaped like what ``function`` returns; derivatives of a part that is constant are 0.
    """
    weights = {name: value.detach() for name, value in weights.items()}
    if not differences:
        try:
            value, slope, *_ = jvp(function, (weights,), (dict(direction),))
            return value, slope
        except (NotImplementedError, RuntimeError):  # what torch says of a missing forward mode; any other error comes again below
            pass
    size = float(torch.stack([value.double().norm() for value in weights.values()]).norm())
    length = float(torch.stack([value.double().norm() for value in direction.values()]).norm())
    eps = max(torch.finfo(value.dtype).eps for value in weights.values())
    h = eps ** (1 / 3) * max(1.0, size) / length if length else 1.0
    with torch.no_grad():
        ahead, behind = (function({name: value + sign * h * direction[name] for name, value in weights.items()}) for sign in (1, -1))
    return (ahead + behind) / 2, (ahead - behind) / (2 * h)


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor | Mapping[str, Any]) -> Tensor:
        return forward(self.model, inputs).logits
