"""Curricula over a pool: which samples a round of training takes, from one score per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.losses.checks import check_unit_interval


def ranked(scores: Tensor, *, skip_top: float = 0.0) -> Tensor:
    """The samples of a pool by falling score, ties to the earlier one.

    Args:
        scores: one for each sample, shape (N,); NaN is unscored and left out.
        skip_top: share in [0, 1] of the scored samples with the largest scores that is left out, as outliers.

    Returns:
        int64 positions (n,), n <= N.

    Raises:
        ValueError: another shape, or a share outside [0, 1].
    """
    check_unit_interval(skip_top=skip_top)
    if scores.ndim != 1:
        raise ValueError(f"scores: expected shape (samples,), got {tuple(scores.shape)}")
    unscored = scores.isnan()
    order = scores.masked_fill(unscored, -torch.inf).argsort(descending=True, stable=True)
    order = order[~unscored[order]]
    return order[int(skip_top * len(order) + 1e-9) :]


def choose(order: Tensor, number: int, *, mix_random: float = 0.0, generator: torch.Generator) -> Tensor:
    """The samples of a round: the first ones of an order, some of them replaced by random others.

    Args:
        order: positions in a pool, int64 (n,), the wanted ones first.
        number: how many, at least 1; all where there are no more.
        mix_random: share in [0, 1] of the round that is drawn uniformly from the rest of the order instead.
        generator: on the CPU; used only with mix_random.

    Returns:
        int64 positions (min(number, n),), drawn ones last.

    Raises:
        ValueError: a number below 1 or a share outside its range.
    """
    if number < 1:
        raise ValueError(f"number: expected at least 1, got {number}")
    check_unit_interval(mix_random=mix_random)
    number = min(number, len(order))
    first = number - round(mix_random * number)
    rest = order[first:]
    drawn = torch.randperm(len(rest), generator=generator)[: number - first].to(order.device)
    return torch.cat([order[:first], rest[drawn]])
