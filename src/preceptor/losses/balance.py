"""Controllers that keep several teachers, or several terms of a loss, comparable while a student trains.

Zhao, Wang, Wei 2023 (arXiv:2306.16170). Both are functions of numbers: what lives between steps is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def balance_temperatures(
    entropies: Mapping[str, float], temperatures: Mapping[str, float], *, rate: float, low: float = 1.0, high: float = 10.0
) -> dict[str, float]:
    """Move each teacher's temperature one step towards equal entropies: down where its entropy is above their mean, up where below.

    Args:
        entropies: of any number of teachers, by name.
        temperatures: by the same names.
        rate: size of the step.
        low, high: bounds of temperatures.
    Returns:
        New temperatures; equal entropies leave all as they are, up to the bounds.
    """
    beyond = {name: math.fsum(own - other for other in entropies.values()) for name, own in entropies.items()}
    return {name: min(max(old - rate * ((beyond[name] > 0) - (beyond[name] < 0)), low), high) for name, old in temperatures.items()}


def balance_weights(
    losses: Mapping[str, float], first: Mapping[str, float], weights: Mapping[str, float], *, rate: float, power: float = 1.0
) -> dict[str, float]:
    """Move the weights of losses towards their shares in what is left of each, so that all shrink at the same rate.

    Args:
        losses: >= 0, of any number of terms, by name.
        first: their values at the first step; one of 0 counts as 1e-12.
        weights: >= 0, by the same names.
        rate: 0 keeps the weights, 1 replaces them.
        power: of the relative losses; above 1 favours the term that lags more strongly.
    Returns:
        New weights, >= 0, with sum 1; equal ones where all would be 0.
    """
    left = {name: (loss / max(first[name], 1e-12)) ** power for name, loss in losses.items()}
    total = math.fsum(left.values())
    shares = {name: value / total if total > 0 else 1 / len(left) for name, value in left.items()}
    moved = {name: max(old - rate * (old - shares[name]), 0.0) for name, old in weights.items()}
    total = math.fsum(moved.values())
    return {name: value / total if total > 0 else 1 / len(moved) for name, value in moved.items()}
