"""Predictions of a teacher made safe to show: temperatures by privacy, and probabilities with noise on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from preceptor.losses.checks import check_counts, check_positive, check_unit_interval


def check_scores(privacy: Tensor) -> None:
    """Refuse scores that are not in [0, 1].

    Raises:
        ValueError: naming the first that is not, NaN included.
    """
    wrong = ~((privacy >= 0) & (privacy <= 1))
    if wrong.any():
        raise ValueError(f"privacy: expected scores in [0, 1], got {privacy[wrong][0].item()}")


def privacy_temperature(privacy: Tensor, *, t_base: float = 1.0, t_max: float = 8.0, power: float = 1.0) -> Tensor:
    """A temperature for each item that rises with its privacy score rho: T = t_base + (t_max - t_base) rho^power.

    Args:
        privacy: rho, any shape, in [0, 1]; bool and integers count as 0 and 1.
        t_base: > 0, no unit.
        t_max: at least t_base.
        power: > 0.

    Returns:
        The shape of ``privacy``, float32 or float64.

    Raises:
        ValueError: a score outside [0, 1] or NaN, or a number outside its range.
    """
    check_positive(t_base=t_base, t_max=t_max, power=power)
    if t_max < t_base:
        raise ValueError(f"t_max: expected at least t_base, {t_base}, got {t_max}")
    check_scores(privacy)
    scores = privacy if privacy.dtype == torch.double else privacy.float()
    return t_base + (t_max - t_base) * scores**power


def check_noise(*, noise_scale: float, noise_minimum: float, noise_classes: int) -> None:
    """Refuse numbers that describe no noise.

    Raises:
        ValueError: a scale that is not finite and >= 0, a minimum outside [0, 1], or fewer than one class.
    """
    if not 0 <= noise_scale < math.inf:
        raise ValueError(f"noise_scale: expected a finite number >= 0, got {noise_scale}")
    check_unit_interval(noise_minimum=noise_minimum)
    check_counts(noise_classes=noise_classes)


def blurred(probabilities: Tensor, noise: Tensor, *, floor: float, possible: Tensor) -> Tensor:
    """Add noise to probabilities and bring them back to a distribution with no class below ``floor``.

    With V possible classes and e_c = max(p_c + noise_c - floor, 0):
        floor + (1 - V floor) e_c / sum e,   uniform where no e is left.
    This changes nothing where no noise is added and no class is below the floor.

    Args:
        probabilities: p, (..., classes), rows with sum 1.
        noise: same shape.
        floor: > 0 and below 1 / classes.
        possible: bool, same shape, at least one in a row; other classes get 0.

    Returns:
        (..., classes), rows with sum 1.

    Raises:
        ValueError: a floor outside its range.
    """
    if not 0 < floor * probabilities.shape[-1] < 1 and probabilities.shape[-1] > 1:
        raise ValueError(f"floor: expected a number in (0, 1 / {probabilities.shape[-1]}) for as many classes, got {floor}")
    count = possible.sum(dim=-1, keepdim=True).to(probabilities.dtype)
    excess = (probabilities + noise - floor).clamp_min(0.0) * possible
    total = excess.sum(dim=-1, keepdim=True)
    share = torch.where(total > 0, excess / torch.where(total > 0, total, 1.0), possible / count)
    return (floor + (1 - floor * count) * share) * possible
