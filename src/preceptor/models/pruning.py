"""Lottery tickets: prune the smallest weights of the whole network, go back to early weights, train what is left, repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Tensors of a network by name."""


def magnitude_masks(weights: Weights, masks: Weights | None = None, *, rate: float = 0.2) -> dict[str, Tensor]:
    """Prune the share ``rate`` of what is left, smallest magnitudes of all tensors together first.

    Frankle, Carbin 2019 (arXiv:1803.03635), Sec. 1; global as in Frankle et al. 2020 (arXiv:1912.05671).

    Args:
        weights: what may be pruned: of a network its matrices and kernels.
        masks: 1 where a weight was left before; None: everywhere.
        rate: in [0, 1); the number pruned is rounded.
    Returns:
        1 where a weight is left, 0 elsewhere, shaped and named like ``weights``.
    Raises:
        ValueError: the rate is outside its range, or there are no weights.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate: expected a number in [0, 1), got {rate}")
    if not weights:
        raise ValueError("weights: expected at least one tensor, got none")
    left = {name: torch.ones_like(value) if masks is None else masks[name] for name, value in weights.items()}
    sizes = torch.cat([torch.where(left[name] > 0, value.detach().abs(), torch.inf).flatten() for name, value in weights.items()])
    count = round(rate * float(sum(mask.sum() for mask in left.values())))
    flat = torch.cat([mask.flatten() for mask in left.values()]).index_fill(0, sizes.topk(count, largest=False).indices, 0)
    pieces = flat.split([value.numel() for value in weights.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(weights.items(), pieces, strict=True)}


def masked(weights: Weights, masks: Weights) -> dict[str, Tensor]:
    """Weights with 0 where a mask is 0; those without a mask stay."""
    return {name: value.detach() * masks[name] if name in masks else value.detach().clone() for name, value in weights.items()}


def sparsity(masks: Weights) -> float:
    """Share of weights pruned; 1 - (1 - rate)^j after j rounds."""
    return 1 - sum(float(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def iterative_pruning(
    train: Callable[[Weights, Weights], Weights],
    rewind: Weights,
    prunable: Callable[[str, Tensor], bool],
    *,
    rounds: int,
    rate: float = 0.2,
) -> list[dict[str, Tensor]]:
    """Train, prune, go back, repeat.

    Args:
        train: of first weights (pruned ones are 0) and masks makes trained weights; it keeps pruned ones at 0.
        rewind: the weights that every round starts from.
        prunable: says by name and tensor what may be pruned.
        rounds: >= 1.
        rate: see `magnitude_masks`.
    Returns:
        The masks after each round.
    """
    names = [name for name, value in rewind.items() if prunable(name, value)]
    masks = {name: torch.ones_like(rewind[name]) for name in names}
    history = []
    for _ in range(rounds):
        trained = train(masked(rewind, masks), masks)
        masks = magnitude_masks({name: trained[name] for name in names}, masks, rate=rate)
        history.append(masks)
    return history
