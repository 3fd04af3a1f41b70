"""The straight line between two networks: where the error rises on it, they lie in different basins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from preceptor.models.nulls import interpolate


def errors_on_line(first: nn.Module, second: nn.Module, error: Callable[[nn.Module], float], *, points: int = 11) -> list[float]:
    """Errors of the networks g second + (1 - g) first, for ``points`` values of g from 0 to 1 in equal steps.

    Buffers are mixed as weights are: running statistics of batch normalisation between two networks fit neither, so let ``error`` run
    some training data first where there are any. Whole numbers are rounded towards 0.

    Args:
        first, second: of one architecture, such as two trainings of one checkpoint in different orders; not changed.
        error: of a network, such as its loss or its share of mistakes; it may change what it is given.
        points: both ends included, at least 2.
    Returns:
        In the unit of ``error``; the first and the last are those of the two networks.
    Raises:
        ValueError: fewer than two points, or architectures differ.
    """
    if points < 2:
        raise ValueError(f"points: expected at least 2, got {points}")
    ends = first.state_dict(), second.state_dict()
    errors = []
    for share in torch.linspace(0, 1, points, dtype=torch.float64).tolist():
        between = copy.deepcopy(first)
        between.load_state_dict(interpolate(*ends, share, keep_variance=False))
        errors.append(error(between))
    return errors


def error_barrier(errors: Sequence[float]) -> float:
    """How far the error rises between two networks above the mean of their own.

    Frankle, Dziugaite, Roy, Carbin 2020 (arXiv:1912.05671), Sec. 2:
        max over g of err(g) - (err(0) + err(1)) / 2.

    Args:
        errors: of `errors_on_line`, at least 2.
    Returns:
        In their unit, at least half the difference of the two ends; 0 for equal networks.
    Raises:
        ValueError: fewer than two errors.
    """
    if len(errors) < 2:
        raise ValueError(f"errors: expected at least 2, got {len(errors)}")
    return max(errors) - (errors[0] + errors[-1]) / 2
