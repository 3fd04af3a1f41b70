"""Networks of linear layers with sigmoids between them, for rules of learning that are stated for such layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from preceptor.models.taps import find_layer, forward, layer_names


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a network by name, in order of definition.

    Raises:
        ValueError: it has none.
    """
    layers = {name: layer for name in layer_names(network) if isinstance(layer := find_layer(network, name), nn.Linear)}
    if not layers:
        raise ValueError(f"student: expected linear layers with sigmoids between, got {type(network).__name__} without a linear layer")
    return layers


def check_sigmoids(network: nn.Module, inputs: Tensor | Mapping[str, Any]) -> None:
    """Refuse a network that is not made of linear layers with sigmoids, and nothing else, between; found out by running it once.

    What comes before the first layer and after the last is free, as long as it has no parameters that require grad.

    Args:
        network: in its usual mode; dropout between layers is something else between.
        inputs: a batch, as `preceptor.models.taps.forward` takes it.
    Raises:
        ValueError: one line that names the first layer that does not fit, or says that weights are sharded.
    """
    if any(isinstance(p, DTensor) for p in network.parameters()):
        raise ValueError("student: expected weights that are whole on every process, got sharded ones")
    layers = linear_layers(network)
    kind, own = type(network).__name__, {p for layer in layers.values() for p in layer.parameters()}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and parameter not in own:
            raise ValueError(f"student: expected linear layers with sigmoids between, got {kind}, which also trains {name}")
    names = list(layers)
    seen = forward(network, inputs, (*names, *(f"{name}:input" for name in names))).features
    for before, name in zip(("", *names), names, strict=False):
        given = seen[f"{name}:input"]
        if given.ndim != 2:
            raise ValueError(f"student: expected a vector per example (N, D) at {name}, got {tuple(given.shape)}")
        said = seen[before].sigmoid() if before else given
        if given.shape != said.shape or not torch.allclose(given, said, equal_nan=True):
            raise ValueError(
                f"student: expected linear layers with sigmoids between, got {kind}, in which {name} is not given the sigmoid of {before}"
            )


def chain(inputs: Tensor, layers: Iterable[Iterable[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Run linear layers with sigmoids between.

    Args:
        inputs: shape (N, D).
        layers: weight (units, inputs) and, where there is one, bias (units,) of each.
    Returns:
        What each layer is given, (N, inputs), and its logits, (N, units).
    """
    given, logits = [], []
    for parameters in layers:
        given.append(inputs)
        logits.append(F.linear(inputs, *parameters))
        inputs = logits[-1].sigmoid()
    return given, logits
