"""Averages of the weights of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def fed_average(state_dicts: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of the weights and buffers of networks of one architecture.

    McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1: sum_i (n_i / sum n) w_i, summed in double precision.

    Args:
        state_dicts: at least one, with the same keys and shapes.
        weights: n_i, one for each, finite, >= 0, not all 0.

    Returns:
        New tensors of the same types. Buffers that are not of floating-point numbers, such as counters, are those of the first.

    Raises:
        ValueError: numbers that do not fit, keys that differ, or weights outside their range.
    """
    share = torch.tensor(weights, dtype=torch.double)
    if not len(state_dicts) or share.shape != (len(state_dicts),):
        raise ValueError(f"weights: expected one for each of at least one network, got {len(weights)} for {len(state_dicts)}")
    if not share.isfinite().all() or (share < 0).any() or share.sum() <= 0:
        raise ValueError(f"weights: expected finite numbers >= 0, not all 0, got {list(weights)}")
    first = state_dicts[0]
    if any(each.keys() != first.keys() for each in state_dicts):
        raise ValueError("state_dicts: expected the same names in each, got networks of different architectures")
    share = (share / share.sum()).tolist()
    return {
        name: sum((part * each[name].double() for part, each in zip(share, state_dicts, strict=True)), torch.zeros(())).to(value.dtype)
        if value.is_floating_point()
        else value.clone()
        for name, value in first.items()
    }
