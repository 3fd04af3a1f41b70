"""Features of a teacher seen twice: as they are, and without what is constant over the map."""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.losses.checks import check_floating
from preceptor.losses.numeric import upcast


def remove_dc(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) less each channel's mean over positions: the 2-D cosine transform without its coefficient (0, 0).

    Raises:
        ValueError: not four axes.
    """
    if x.ndim != 4:
        raise ValueError(f"x: expected maps (N, C, H, W), got {tuple(x.shape)}")
    return x - x.mean(dim=(2, 3), keepdim=True)


def dual_view(student: Tensor, teacher: Tensor, *, alternative: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared distances of directions over channels, added up over positions, with and without the constant of each channel.

    Fan, Li, Lin et al. 2024, ScaleKD (arXiv:2411.06786), without its weights: with p and t of length 1 at each position,
        sum over positions of |p - t|^2 = sum of (2 - 2 cos(p, t)).
    A position of zeros has no direction and no gradient; lengths up to 1e-12, or to the rounding of the mean, count as that.

    Args:
        student: predicted tokens (N, H W, C), in rows.
        teacher: map (N, C, H, W); treated as constant.
        alternative: predictions of the second view, of a projector of its own; None: those of the first.
    Returns:
        Direct and alternative view, each (N,), in [0, 4 H W].
    Raises:
        TypeError: features are not floating point.
        ValueError: shapes do not fit: tokens of a class are dropped before.
    """
    second = student if alternative is None else alternative
    check_floating(student=student, teacher=teacher, alternative=second)
    wanted = (len(teacher), *teacher.shape[2:], teacher.shape[1]) if teacher.ndim == 4 else ()
    if not wanted:
        raise ValueError(f"teacher: expected a map (N, C, H, W), got {tuple(teacher.shape)}")
    expected = (wanted[0], wanted[1] * wanted[2], wanted[3])
    for name, tokens in {"student": student, "alternative": second}.items():
        if tokens.shape != expected:
            raise ValueError(f"{name}: expected tokens {expected} for the teacher's map {tuple(teacher.shape)}, got {tuple(tokens.shape)}")
    target = upcast(teacher.detach())
    maps = [upcast(tokens).transpose(1, 2).reshape(target.shape) for tokens in (student, second)]
    floors = _noise(maps[1]), _noise(target)
    least = torch.full_like(floors[0], 1e-12), torch.full_like(floors[1], 1e-12)
    return _distance(maps[0], target, least), _distance(remove_dc(maps[1]), remove_dc(target), floors)


def _distance(student: Tensor, teacher: Tensor, floors: tuple[Tensor, Tensor]) -> Tensor:
    first, second = (_directions(x, floor) for x, floor in zip((student, teacher), floors, strict=True))
    return (first - second).square().sum(dim=(1, 2, 3))


def _directions(x: Tensor, floor: Tensor) -> Tensor:
    """Length 1 over channels; 0, without gradient, where the length is rounding noise."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.masked_fill(length <= floor, torch.inf)


def _noise(x: Tensor) -> Tensor:
    """The length below which what is left of a map (N, C, H, W) without its mean is rounding, (N, 1, 1, 1)."""
    return (8 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=1).amax(dim=(1, 2))).clamp_min(1e-12)[
        :, None, None, None
    ]
