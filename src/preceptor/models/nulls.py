"""Teachers that know nothing, beside which every result of distillation stands, and weights between two draws of one network."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from preceptor.models.fresh import fresh_copy

Weights = Mapping[str, Tensor]
"""Tensors of a network by name."""


def random_teacher(model: nn.Module, *, seed: int) -> nn.Module:
    """A frozen network of the same architecture with weights of the seed, in eval mode; torch's global random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fresh_copy(model).requires_grad_(False).eval()


class NoiseTeacher(nn.Module):
    """Says standard normal logits that have nothing to do with its input: other ones at each call, the same ones in each run.

    Args:
        classes: C.
        seed: of the draws.
    """

    def __init__(self, *, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.classes, self.generator = classes, torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C)."""
        return torch.randn(len(x), self.classes, generator=self.generator).to(x)


class ConstantTeacher(nn.Module):
    """Says the same logits of every input.

    Args:
        logits: shape (C,).
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C)."""
        return self.get_buffer("logits").expand(len(x), -1)


def interpolate(first: Weights, second: Weights, share: float, *, keep_variance: bool = True) -> dict[str, Tensor]:
    """Weights between two draws: ((1 - share) first + share second) / d, d = sqrt(share^2 + (1 - share)^2).

    Sarnthein, Bachmann, Anagnostidis, Hofmann 2023 (arXiv:2302.12091). Of independent draws of equal variance the result has it too.

    Args:
        first, second: the same names and shapes.
        share: in [0, 1]; 0 is the first, 1 the second.
        keep_variance: whether to divide by d.
    Returns:
        Without gradient.
    Raises:
        ValueError: names or shapes differ, or the share is outside its range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number in [0, 1], got {share}")
    return _mixed(first, second, 1 - share, share, math.hypot(share, 1 - share) if keep_variance else 1.0)


def neighbourhood(first: Weights, second: Weights, distance: float) -> dict[str, Tensor]:
    """Weights around a draw: (first + distance second) / sqrt(1 + distance^2). Otherwise as `interpolate`; distance >= 0."""
    if not distance >= 0:
        raise ValueError(f"distance: expected a number >= 0, got {distance}")
    return _mixed(first, second, 1.0, distance, math.hypot(1, distance))


def _mixed(first: Weights, second: Weights, a: float, b: float, scale: float) -> dict[str, Tensor]:
    wrong = [name for name in first.keys() | second.keys() if name not in first or name not in second]
    wrong += [name for name in first.keys() & second.keys() if first[name].shape != second[name].shape]
    if wrong:
        raise ValueError(f"second: expected the names and shapes of first, got a difference at {min(wrong)!r}")
    return {name: ((a * value.detach() + b * second[name].detach()) / scale) for name, value in first.items()}
