"""Networks of flows: velocities whatever a model was trained to predict, flow maps, the solver, a small network for points.

A velocity is a module called as ``velocity(x, times)``, or ``velocity(x, times, cond)`` where there is a condition, or with a fourth
argument, ``guidance`` (N,), where its strength varies. It points towards the data, with time 1 at the noise; see `preceptor.losses.flow`.
A flow map's average velocity is called in the same ways, with durations in the place of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from preceptor.losses.checks import check_choice, check_counts, check_positive
from preceptor.losses.flow import map_point, per_item
from preceptor.losses.numeric import upcast
from preceptor.models.taps import find_layer

Predicts = Literal["velocity", "noise", "data"]
"""What a network was trained for: dx/dt in its own time, n, or x0."""
Derivative = Literal["jvp", "difference"]
"""Exactly by forward mode, or by a backward difference."""

_NEAR = 1e-3  # least distance from the end at which a prediction of noise or data tells no velocity


def ask(network: nn.Module, x: Tensor, times: Tensor, cond: Any = None, guidance: Tensor | None = None) -> Tensor:
    """Call a velocity or an average velocity with as many arguments as there are."""
    if guidance is not None:
        return network(x, times, cond, guidance)
    return network(x, times) if cond is None else network(x, times, cond)


class Velocity(nn.Module):
    """The velocity towards the data of a model trained on the straight lines between data and noise.

    With u = x0 - n and x = (1 - t) x0 + t n: u = (x - n) / (1 - t) = (x0 - x) / t. These are asked 0.001 away from where they divide by 0.

    Args:
        network: called as ``network(x, times)`` or ``network(x, times, cond)``, with its own times.
        predicts: see `Predicts`.
        noise_at: the network's own time of noise, 1 or 0; its data are at the other one.
        time_scale: what the network's time is multiplied by, such as 1000.
    Raises:
        ValueError: an unknown prediction, another time of noise, or a scale not > 0.
    """

    def __init__(self, network: nn.Module, *, predicts: Predicts = "velocity", noise_at: int = 1, time_scale: float = 1.0) -> None:
        super().__init__()
        check_choice(Predicts, predicts=predicts)
        check_positive(time_scale=time_scale)
        if noise_at not in (0, 1):
            raise ValueError(f"noise_at: expected 0 or 1, got {noise_at}")
        self.network, self.predicts, self.noise_at, self.time_scale = network, predicts, noise_at, time_scale

    def forward(self, x: Tensor, times: Tensor, cond: Any = None) -> Tensor:
        """Points (N, ...) and times (N,) to velocities (N, ...)."""
        if self.predicts == "noise":
            times = times.clamp(max=1 - _NEAR)
        if self.predicts == "data":
            times = times.clamp(min=_NEAR)
        said = ask(self.network, x, self.time_scale * (times if self.noise_at else 1 - times), cond)
        if self.predicts == "velocity":
            return -said if self.noise_at else said
        t = per_item(times, x)
        return ((x - said) / (1 - t) if self.predicts == "noise" else (said - x) / t).to(x.dtype)


class FlowMap(nn.Module):
    """The average velocity of a flow map, made of a velocity network: it is asked at time 1 - d, with an embedding of the duration d.

    The embedding is added to what the named layer gives, the network's embedding of time, and starts at 0.

    Args:
        network: trained in place; a copy of the teacher to start from the teacher.
        time_layer: name of the layer that embeds the time, whose output is (N, width).
        width: of that output.
    """

    def __init__(self, network: nn.Module, time_layer: str, width: int) -> None:
        super().__init__()
        self.network, self.time_layer, self.duration = network, time_layer, _zero_linear(width)

    def forward(self, noise: Tensor, durations: Tensor, cond: Any = None, guidance: Tensor | None = None) -> Tensor:
        """Noise (N, ...) and durations (N,) to average velocities (N, ...)."""
        with _added(find_layer(self.network, self.time_layer), self.duration(_waves(durations, noise.dtype))):
            return ask(self.network, noise, 1 - durations, cond, guidance)


class WithGuidance(nn.Module):
    """A network that is told the strength of guidance, by an embedding that is added as in `FlowMap` and starts at 0."""

    def __init__(self, network: nn.Module, time_layer: str, width: int) -> None:
        super().__init__()
        self.network, self.time_layer, self.strength = network, time_layer, _zero_linear(width)

    def forward(self, x: Tensor, times: Tensor, cond: Any, guidance: Tensor) -> Tensor:
        """As `ask` calls it."""
        with _added(find_layer(self.network, self.time_layer), self.strength(_waves(guidance, x.dtype))):
            return ask(self.network, x, times, cond)


class PointFlow(nn.Module):
    """A perceptron for points: velocity or average velocity. The layer ``time`` embeds times (N,) to (N, width).

    Args:
        dimensions: of a point.
        width: of hidden layers.
        depth: hidden layers, at least 1.
        num_classes: classes that it can be conditioned on; one more stands for no condition. 0: none.
    """

    def __init__(self, dimensions: int, *, width: int = 64, depth: int = 3, num_classes: int = 0) -> None:
        super().__init__()
        check_counts(dimensions=dimensions, width=width, depth=depth)
        self.inputs, self.time = nn.Linear(dimensions, width), _TimeEmbedding(width)
        self.classes = nn.Embedding(num_classes + 1, width) if num_classes else None
        hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.body = nn.Sequential(nn.SiLU(), *hidden, nn.Linear(width, dimensions))

    def forward(self, x: Tensor, times: Tensor, cond: Tensor | None = None) -> Tensor:
        """Points (N, D), times (N,) and classes (N,) to velocities (N, D)."""
        hidden = self.inputs(x) + self.time(times.to(x.dtype))
        if self.classes is not None and cond is not None:
            hidden = hidden + self.classes(cond)
        return self.body(hidden)


class _TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(5, width)

    def forward(self, times: Tensor) -> Tensor:
        return self.linear(_waves(times, times.dtype))


def _waves(times: Tensor, dtype: torch.dtype) -> Tensor:
    """Five smooth functions of each number, (N,) -> (N, 5)."""
    angles = math.pi * times[:, None] * torch.tensor([1.0, 2.0], dtype=times.dtype, device=times.device)
    return torch.cat([times[:, None], angles.sin(), angles.cos()], dim=1).to(dtype)


def _zero_linear(width: int) -> nn.Linear:
    layer = nn.Linear(5, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@contextmanager
def _added(layer: nn.Module, term: Tensor) -> Iterator[None]:
    """For a moment a layer gives its output plus a term."""
    handle = layer.register_forward_hook(lambda *given: given[2] + term)
    try:
        yield
    finally:
        handle.remove()


def slope(
    function: Callable[[Tensor], Tensor], durations: Tensor, *, derivative: Derivative = "jvp", step: float = 1e-2
) -> tuple[Tensor, Tensor]:
    """Value of a function of durations and its derivative, item by item and without graph; attention is computed unfused.

    Args:
        function: from durations (N,) to (N, ...); no item depends on another's duration.
        durations: d, shape (N,), at least float32.
        derivative: by forward mode, or (F(d) - F(d - h)) / h with h = min(d, step), whose error is of the order of h; 0 at d = 0.
        step: of the difference, > 0.
    Returns:
        Value and derivative, shape (N, ...).
    Raises:
        ValueError: the function has no forward mode, or gives half precision, in which a difference is noise.
    """
    check_choice(Derivative, derivative=derivative)
    check_positive(step=step)
    durations = durations.detach()
    if derivative == "jvp":
        try:
            with sdpa_kernel(SDPBackend.MATH):
                value, tangent, *_ = jvp(function, (durations,), (torch.ones_like(durations),))
        except NotImplementedError as error:  # what torch raises for an operation without a forward derivative
            raise ValueError(f"derivative: the network has no forward mode, expected derivative='difference' ({error})") from error
        return value.detach(), tangent.detach()
    with torch.no_grad(), torch.autocast(durations.device.type, enabled=False):
        h = durations.clamp(max=step)
        value, before = function(durations), function(durations - h)
    if value.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"derivative: expected at least float32 for differences, got a network in {value.dtype}")
    spread = per_item(torch.where(h > 0, h, 1.0), value)
    return value, (value - before) / spread


@torch.no_grad()
def jump(average: nn.Module, noise: Tensor, cond: Any = None, *, duration: float = 1.0, guidance: Tensor | None = None) -> Tensor:
    """Where a flow map leads from noise in one call; duration 1 gives samples, less a point of the predicted path.

    Args:
        average: the average velocity F.
        noise: shape (N, ...).
        cond: what it is conditioned on.
        duration: in [0, 1].
        guidance: its strength (N,), for networks that take it.
    Returns:
        Shape (N, ...).
    """
    durations = torch.full((len(noise),), duration, dtype=upcast(noise).dtype, device=noise.device)
    return map_point(noise, ask(average, noise, durations, cond, guidance).to(noise.dtype), durations)


@torch.no_grad()
def solve(velocity: nn.Module, noise: Tensor, cond: Any = None, *, steps: int, euler: bool = False) -> Tensor:
    """Follow a velocity from noise to data in equal steps, by Heun's rule or Euler's.

    Args:
        velocity: towards the data.
        noise: shape (N, ...).
        cond: what it is conditioned on.
        steps: at least 1; two calls each, or one by Euler's rule.
        euler: whether by Euler's rule.
    Returns:
        Shape (N, ...).
    """
    check_counts(steps=steps)
    x, h = upcast(noise), 1 / steps
    for step in range(steps):
        first = _velocity_at(velocity, x, 1 - step * h, cond, noise.dtype)
        if euler:
            x = x + h * first
        else:
            x = x + h / 2 * (first + _velocity_at(velocity, x + h * first, max(1 - (step + 1) * h, 0.0), cond, noise.dtype))
    return x.to(noise.dtype)


def _velocity_at(velocity: nn.Module, x: Tensor, time: float, cond: Any, dtype: torch.dtype) -> Tensor:
    """The velocity of all points at one time, asked in a dtype and given in that of ``x``."""
    return ask(velocity, x.to(dtype), torch.full((len(x),), time, dtype=x.dtype, device=x.device), cond).to(x.dtype)


def best_noise(average: nn.Module, candidates: Tensor, score: Callable[[Tensor], Tensor], cond: Any = None) -> Tensor:
    """Noise whose one-step sample scores highest, to start a teacher's many steps from.

    Args:
        average: the average velocity of the flow map.
        candidates: noise, shape (K, N, ...): K to choose from for each of N points.
        score: from samples (N, ...) to numbers (N,).
        cond: what all K are conditioned on.
    Returns:
        Shape (N, ...).
    """
    scores = torch.stack([score(jump(average, noise, cond)) for noise in candidates])
    best = scores.argmax(dim=0)
    return candidates[best, torch.arange(candidates.shape[1], device=candidates.device)]
