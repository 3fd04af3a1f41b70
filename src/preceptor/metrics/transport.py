"""Distances between clouds of points."""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.losses.checks import check_counts


def sliced_wasserstein(a: Tensor, b: Tensor, *, projections: int = 128, generator: torch.Generator) -> float:
    """Sliced 2-Wasserstein distance: the root of the mean, over random directions, of the squared distance of the projections.

    Bonneel, Rabin, Peyre, Pfister 2015 (Journal of Mathematical Imaging and Vision 51); in one dimension the best pairing is by rank.
    Two draws of one distribution are not at 0: their distance is the noise floor.

    Args:
        a, b: points, shape (N, D), as many of each.
        projections: directions, at least 1.
        generator: of the directions, on the CPU.
    Returns:
        In units of the points, >= 0.
    Raises:
        ValueError: shapes that differ or are not (N, D), or no projection.
    """
    check_counts(projections=projections)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"b: expected points (N, D) like a, got {tuple(a.shape)} and {tuple(b.shape)}")
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64).to(a.device)
    directions /= directions.norm(dim=0)
    first, second = ((points.double() @ directions).sort(dim=0).values for points in (a, b))
    return float((first - second).square().mean().sqrt())
