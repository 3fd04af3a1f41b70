"""What two networks need to talk inside: a forward pass that goes on from a state it is given, and translators of states and messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Size, Tensor, nn

from preceptor.core.method import evaluating
from preceptor.models.taps import Output, find_layer, forward


def resume(model: nn.Module, inputs: Tensor | Mapping[str, Any], layer: str, state: Tensor, layers: Sequence[str] = ()) -> Output:
    """Run a model with the output of one layer replaced: what comes after goes on from ``state``.

    Gradients flow to ``state`` and to the weights after the layer, not to those before it. Nothing is dropped out and no running
    statistic is used up or moved: the model is in eval mode for the moment.

    Args:
        model: see `preceptor.models.taps.forward`.
        inputs: what the layers before are called with, as any other pass.
        layer: a name of a layer, without ``":input"``.
        state: shaped like the layer's output.
        layers: whose features are read.

    Returns:
        Logits and features.

    Raises:
        ValueError: there is no such layer, or its output has another shape.
    """
    if layer.endswith(":input"):
        raise ValueError(f"layer: expected a layer whose output can be replaced, got {layer!r}")

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        own = output if isinstance(output, Tensor) else output[0]
        if own.shape != state.shape:
            raise ValueError(f"state: expected shape {tuple(own.shape)} as {layer!r} has, got {tuple(state.shape)}")
        given = state.to(own.dtype)
        return given if isinstance(output, Tensor) else (given, *output[1:])

    handle = find_layer(model, layer).register_forward_hook(replace)
    try:
        with evaluating(model):
            return forward(model, inputs, layers)
    finally:
        handle.remove()


class Translator(nn.Module):
    """Turns one network's upper states into messages, and messages into its lower states: two perceptrons with one hidden layer.

    Of maps (N, C, H, W) and tokens (N, L, D) the mean over positions is spoken about; what is heard is a whole state.

    Args:
        spoken: shape of the upper states, (N, D), (N, L, D) or (N, C, H, W).
        heard: shape of the lower states.
        message: M, numbers of a message.
        hidden: units of the hidden layers.
        rectified: lower states are never negative, and what is decoded is not either.
    Raises:
        ValueError: a state of another form, or a number below 1.
    """

    def __init__(self, spoken: Size, heard: Size, *, message: int, hidden: int, rectified: bool) -> None:
        super().__init__()
        for name, count in (("message", message), ("hidden", hidden)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, got {count}")
        for name, shape in (("spoken", spoken), ("heard", heard)):
            if not 2 <= len(shape) <= 4:
                raise ValueError(f"{name}: expected states (N, D), (N, L, D) or (N, C, H, W), got {tuple(shape)}")
        self.heard = heard[1:]
        width = spoken[1] if len(spoken) == 4 else spoken[-1]
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, message))
        last: list[nn.Module] = [nn.ReLU()] if rectified else []
        self.decoder = nn.Sequential(nn.Linear(message, hidden), nn.ReLU(), nn.Linear(hidden, math.prod(self.heard)), *last)

    def say(self, state: Tensor) -> Tensor:
        """The message (N, M) about upper states."""
        if state.ndim > 2:
            state = state.mean(dim=(2, 3) if state.ndim == 4 else 1)
        return self.encoder(state)

    def hear(self, message: Tensor) -> Tensor:
        """The lower states that messages (N, M) are understood as."""
        return self.decoder(message).unflatten(1, self.heard)
