"""Straight lines and planes through the weights of networks: how high the error rises between two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Tensors of a network by name; those that are not floating point are taken from the first of several."""

Value = Callable[[Weights], float]
"""What is measured of a network with these weights: its loss, its error, the error of a probe."""


def barrier(first: Weights, second: Weights, error: Value, *, points: int = 11) -> float:
    """The rise of the error on the line between two networks above the mean of their own errors.

    Frankle, Dziugaite, Roy, Carbin 2020 (arXiv:1912.05671), Sec. 2:
        max over g of err(g first + (1 - g) second) - (err(first) + err(second)) / 2.

    Args:
        first, second: weights of one architecture, such as two fine-tunings of one checkpoint in different order.
        error: see `Value`.
        points: on the line, both ends included, >= 2.
    Returns:
        At least half the difference of the two errors, 0 for two equal networks; in the unit of the error.
    Raises:
        ValueError: fewer than two points.
    """
    if points < 2:
        raise ValueError(f"points: expected at least 2, got {points}")
    errors = [error(_sum(second, (second, first), (1 - g, g))) for g in torch.linspace(0, 1, points, dtype=torch.float64).tolist()]
    return max(errors) - (errors[0] + errors[-1]) / 2


@dataclass(frozen=True)
class Plane:
    """The plane through three networks, with coordinates in which distances are those of the weights."""

    origin: Weights
    along: Weights  # unit direction from the origin to the first network
    across: Weights  # unit direction at right angles, on the side of the second

    def at(self, a: float, b: float) -> dict[str, Tensor]:
        """Weights at coordinates (a, b)."""
        return _sum(self.origin, (self.origin, self.along, self.across), (1.0, a, b))

    def place(self, weights: Weights) -> tuple[float, float]:
        """Coordinates of the point of the plane that is nearest to a network."""
        away = _sum(self.origin, (weights, self.origin), (1.0, -1.0))
        return _dot(away, self.along), _dot(away, self.across)


def plane(origin: Weights, first: Weights, second: Weights) -> Plane:
    """The plane through three networks of one architecture.

    Raises:
        ValueError: they lie on one line.
    """
    along = _unit(_sum(origin, (first, origin), (1.0, -1.0)), "first")
    away = _sum(origin, (second, origin), (1.0, -1.0))
    return Plane(
        origin, along, _unit(_sum(origin, (away, along), (1.0, -_dot(away, along))), "second", above=1e-6 * _dot(away, away) ** 0.5)
    )


def landscape(of: Plane, value: Value, a: Sequence[float], b: Sequence[float]) -> Tensor:
    """What is measured on a grid of a plane: shape (len(a), len(b)), float64."""
    return torch.tensor([[value(of.at(x, y)) for y in b] for x in a], dtype=torch.float64)


def _sum(like: Weights, parts: Sequence[Weights], factors: Sequence[float]) -> dict[str, Tensor]:
    return {
        name: sum((factor * part[name].detach() for part, factor in zip(parts, factors, strict=True)), torch.zeros_like(value))
        if value.is_floating_point()
        else value.clone()
        for name, value in like.items()
    }


def _dot(left: Weights, right: Weights) -> float:
    return sum(float((value.double() * right[name].double()).sum()) for name, value in left.items() if value.is_floating_point())


def _unit(weights: Weights, name: str, above: float = 0.0) -> dict[str, Tensor]:
    length = _dot(weights, weights) ** 0.5
    if length <= above:
        raise ValueError(f"{name}: expected a network off the line of the others, got one on it")
    return {key: value / length if value.is_floating_point() else value for key, value in weights.items()}
