"""The frontier of cost and accuracy: which models are worth their price, and how that moved over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Steps:
    """V(c), the best accuracy for at most c: ``accuracy[i]`` from ``cost[i]`` on, both strictly increasing; NaN below ``cost[0]``."""

    cost: tuple[float, ...]
    accuracy: tuple[float, ...]

    def value(self, cost: float) -> float:
        """V at a cost."""
        place = int(np.searchsorted(self.cost, cost, side="right"))
        return self.accuracy[place - 1] if place else math.nan

    def price(self, accuracy: float) -> float:
        """The least cost with which an accuracy is reached; infinite where none is."""
        return next((cost for cost, best in zip(self.cost, self.accuracy, strict=True) if best >= accuracy), math.inf)


def frontier(cost: Sequence[float], accuracy: Sequence[float], *, ties: bool = False) -> list[int]:
    """The models that no other beats: none costs no more and is no less accurate, one of the two strictly.

    Args:
        cost: (N,) >= 0; NaN for a price that is not known, which leaves the model out.
        accuracy: (N,), NaN likewise.
        ties: whether models with the same cost and accuracy are all kept; else the first.
    Returns:
        Their numbers, by rising cost.
    Raises:
        ValueError: two lengths, or a negative cost.
    """
    if len(cost) != len(accuracy):
        raise ValueError(f"accuracy: expected {len(cost)} numbers like cost, got {len(accuracy)}")
    if any(value < 0 for value in cost):
        raise ValueError(f"cost: expected numbers >= 0, got {min(cost)}")
    known = [i for i in range(len(cost)) if not (math.isnan(cost[i]) or math.isnan(accuracy[i]))]
    kept: list[int] = []
    best = -math.inf
    for i in sorted(known, key=lambda i: (cost[i], -accuracy[i], i)):
        same = bool(kept) and (cost[i], accuracy[i]) == (cost[kept[-1]], accuracy[kept[-1]])
        if accuracy[i] > best or (ties and same):
            kept.append(i)
            best = accuracy[i]
    return kept


def steps(cost: Sequence[float], accuracy: Sequence[float]) -> Steps:
    """The step function of the frontier."""
    kept = frontier(cost, accuracy)
    return Steps(cost=tuple(cost[i] for i in kept), accuracy=tuple(accuracy[i] for i in kept))


def progress(cost: Sequence[float], accuracy: Sequence[float], released: Sequence[str]) -> list[tuple[str, Steps]]:
    """The frontier of the models out by each date.

    Args:
        cost: see `frontier`.
        accuracy: see `frontier`.
        released: (N,) dates that sort as text, YYYY-MM or YYYY-MM-DD; "" leaves a model out.
    Returns:
        Every date with the frontier from then on, in order.
    """
    dated = []
    for date in sorted({when for when in released if when}):
        out = [i for i, when in enumerate(released) if when and when <= date]
        dated.append((date, steps([cost[i] for i in out], [accuracy[i] for i in out])))
    return dated


def hypervolume(found: Steps, *, low: float, high: float, base: float) -> float:
    """The area under the frontier above an accuracy, over the logarithm of cost: integral of max(V(c) - base, 0) d ln c from low to high.

    Where no model is that cheap V counts as ``base``; a cost below ``low``, such as 0 of a model at home, counts as ``low``.

    Raises:
        ValueError: not 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"low: expected 0 < low < high, got {low} and {high}")
    cuts = [*(min(max(cost, low), high) for cost in found.cost), high]
    return sum(max(best - base, 0.0) * math.log(until / since) for since, until, best in zip(cuts, cuts[1:], found.accuracy, strict=False))
