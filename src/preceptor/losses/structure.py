"""Losses between the maps that two networks make at several depths: pixel by pixel, and of how depths go together.

Liu et al. 2020, Efficient Crowd Counting via Structured Knowledge Transfer (arXiv:2003.10120). The paper sums over pixels and entries
of Gram matrices; so do these functions, one value per example. Sums grow with the image: weights belong to one size of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_choice, check_floating, check_positive, check_same_shape
from preceptor.losses.numeric import upcast

Pairs = Literal["dense", "adjacent"]
"""Which depths are related: all pairs, as in the paper, or neighbours alone."""


def intra_layer(student: Sequence[Tensor], teacher: Sequence[Tensor], *, eps: float = 1e-8) -> Tensor:
    """How far the channels of each pixel point away from the teacher's, summed over pixels and depths.

    Liu et al. 2020 (arXiv:2003.10120), Sec. 3.2: sum_k sum_hw (1 - cos_c(S_k, T_k)).

    Args:
        student: maps brought to the teacher's channels, each (N, C_k, H_k, W_k).
        teacher: maps of the same shapes; treated as constant.
        eps: floor of a vector's length, > 0.

    Returns:
        Shape (N,), in [0, 2 pixels of all depths].

    Raises:
        TypeError: maps are not floating point.
        ValueError: numbers or shapes of maps differ, or eps <= 0.
    """
    check_positive(eps=eps)
    _check_maps(student, teacher)
    apart = [
        (1 - F.cosine_similarity(upcast(s), upcast(t).detach(), dim=1, eps=eps)).sum(dim=(1, 2))
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(apart).sum(dim=0)


def inter_layer(student: Sequence[Tensor], teacher: Sequence[Tensor], *, pairs: Pairs = "dense", eps: float = 1e-5) -> Tensor:
    """Squared difference of how the channels of each pair of depths go together.

    Liu et al. 2020 (arXiv:2003.10120), Sec. 3.3: sum over pairs i < j of |G_ij^T - G_ij^S|^2, see `layer_grams`.

    Args:
        student: maps brought to the teacher's channels, each (N, C_k, H_k, W_k).
        teacher: maps of the same shapes; treated as constant.
        pairs: see `Pairs`.
        eps: of the instance normalisation, > 0.

    Returns:
        Shape (N,), >= 0.

    Raises:
        TypeError: maps are not floating point.
        ValueError: as `layer_grams`, or numbers or shapes of maps differ.
    """
    _check_maps(student, teacher)
    grams = zip(layer_grams(student, pairs=pairs, eps=eps), layer_grams([t.detach() for t in teacher], pairs=pairs, eps=eps), strict=True)
    return torch.stack([(s - t).square().sum(dim=(1, 2)) for s, t in grams]).sum(dim=0)


def layer_grams(maps: Sequence[Tensor], *, pairs: Pairs = "dense", eps: float = 1e-5) -> list[Tensor]:
    """Correlations over pixels between the channels of two depths, for each pair i < j in order.

    Maps are max-pooled (kernel = stride = a power of 2, the last window cut off at the border) to the smallest of them and normalised per
    example and channel, (x - mean) / sqrt(variance + eps) with the biased variance; then G_ij = X_i X_j^T / (H W).

    Args:
        maps: at least 2, each (N, C_k, H_k, W_k).
        pairs: see `Pairs`.
        eps: > 0; a channel that is constant gives 0.

    Returns:
        Tensors (N, C_i, C_j), entries in [-1, 1]; M (M - 1) / 2 of them for all pairs of M maps.

    Raises:
        TypeError: maps are not floating point.
        ValueError: fewer than 2 maps, no maps of one batch, a size that no pooling brings to the smallest, a smallest map of one pixel.
    """
    check_positive(eps=eps)
    check_choice(Pairs, pairs=pairs)
    check_floating(**{f"maps[{k}]": each for k, each in enumerate(maps)})
    if len(maps) < 2 or any(each.ndim != 4 or len(each) != len(maps[0]) for each in maps):
        raise ValueError(f"maps: expected at least 2 of shape (N, C, H, W) with one N, got {[tuple(each.shape) for each in maps]}")
    smallest = min((each.shape[2:] for each in maps), key=lambda size: size[0] * size[1])
    if smallest[0] * smallest[1] < 2:
        raise ValueError(f"maps: expected at least 2 pixels in the smallest, got {tuple(smallest)}: nothing varies over one pixel")
    normal = []
    for k, each in enumerate(maps):
        flat = _pooled(upcast(each), smallest, f"maps[{k}]").flatten(2)
        middle = flat - flat.mean(dim=2, keepdim=True)
        normal.append(middle / (middle.square().mean(dim=2, keepdim=True) + eps).sqrt())
    chosen = itertools.pairwise(normal) if pairs == "adjacent" else itertools.combinations(normal, 2)
    with torch.autocast(maps[0].device.type, enabled=False):
        return [a @ b.mT / a.shape[2] for a, b in chosen]


def counting_losses(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared differences of a density map from the true one and from the teacher's, summed over pixels.

    Liu et al. 2020 (arXiv:2003.10120), Sec. 3.4: L_h = sum (D_S - D)^2, L_s = sum (D_S - D_T)^2.

    Args:
        student: densities, shape (N, ...).
        teacher: same shape; treated as constant.
        target: same shape; its sum is the count.

    Returns:
        Hard and soft loss, both (N,), >= 0.

    Raises:
        TypeError: densities are not floating point.
        ValueError: shapes differ.
    """
    check_floating(student=student, teacher=teacher, target=target)
    check_same_shape(student=student, teacher=teacher, target=target)
    hard, soft = ((upcast(student) - upcast(each).detach()).square().flatten(1).sum(dim=1) for each in (target, teacher))
    return hard, soft


def _pooled(x: Tensor, size: tuple[int, ...], name: str) -> Tensor:
    kernel = 1
    while kernel < max(x.shape[2:]):
        if all(-(-side // kernel) == wanted for side, wanted in zip(x.shape[2:], size, strict=True)):
            break
        kernel *= 2
    if any(-(-side // kernel) != wanted for side, wanted in zip(x.shape[2:], size, strict=True)):
        raise ValueError(f"{name}: expected {tuple(size)} times a power of 2, up to the border, got {tuple(x.shape[2:])}")
    return x if kernel == 1 else F.max_pool2d(x, kernel, ceil_mode=True)


def _check_maps(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    if len(student) != len(teacher) or not student:
        raise ValueError(f"student: expected as many maps as the teacher's {len(teacher)}, at least one, got {len(student)}")
    for k, (s, t) in enumerate(zip(student, teacher, strict=True)):
        check_floating(**{f"student[{k}]": s, f"teacher[{k}]": t})
        check_same_shape(**{f"teacher[{k}]": t, f"student[{k}]": s})
        if s.ndim != 4:
            raise ValueError(f"student[{k}]: expected a map (N, C, H, W), got {tuple(s.shape)}")
