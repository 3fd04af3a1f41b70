"""Losses between features of one example: hints and attention maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_floating, check_same_shape
from preceptor.losses.numeric import upcast


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference between the features of student and teacher.

    Romero et al. 2015, FitNets (arXiv:1412.6550), Eq. 3, with the student already passed through the regressor r:
        L = ||r(f_s) - f_t||^2 / (number of elements).
    Deviation: the paper takes half the squared norm; the mean over elements keeps the weight independent of the size of the map.

    Args:
        student: regressed features, shape (N, ...).
        teacher: features, same shape; treated as constant.

    Returns:
        Shape (N,), >= 0.

    Raises:
        TypeError: features are not floating point.
        ValueError: shapes differ, or there is no axis of examples.
    """
    check_floating(student=student, teacher=teacher)
    if student.ndim < 2:
        raise ValueError(f"student: expected features of shape (N, ...), got {tuple(student.shape)}")
    check_same_shape(student=student, teacher=teacher)
    squares = F.mse_loss(upcast(student), upcast(teacher).detach(), reduction="none").flatten(1)
    return squares.sum(dim=1) / squares.shape[1]  # the gradient of a mean would be written out in full


def attention_map(features: Tensor, *, p: int = 2) -> Tensor:
    """Where a convolutional map is active: the normalised mean of its powers over channels.

    Zagoruyko, Komodakis 2017 (arXiv:1612.03928), Sec. 3.1:
        A(F) = a / ||a||_2,   a = mean_c F_c^p, flattened over positions (the norm is at least 1e-12, so that a map of zeros gives zeros).
    Deviation: the paper takes |F_c|^p, which is the same for even p.

    Args:
        features: shape (N, channels, height, width).
        p: the power, >= 1.

    Returns:
        Shape (N, height * width), unit norm.

    Raises:
        TypeError: features are not floating point.
        ValueError: features do not have four axes, or p < 1.
    """
    check_floating(features=features)
    if features.ndim != 4:
        raise ValueError(f"features: expected shape (N, channels, height, width), got {tuple(features.shape)}")
    if p < 1:
        raise ValueError(f"p: expected an integer >= 1, got {p}")
    return F.normalize(upcast(features).pow(p).mean(dim=1).flatten(1), dim=1, eps=1e-12)


def attention_transfer(student: Tensor, teacher: Tensor, *, p: int = 2) -> Tensor:
    """Mean squared difference between the attention maps of student and teacher.

    Zagoruyko, Komodakis 2017 (arXiv:1612.03928), Sec. 3.1, Eq. 2:
        L = mean over positions of (A(f_s) - A(f_t))^2.
    Where the sizes differ, the larger map is average-pooled to the smaller, axis by axis. Numbers of channels may differ.
    Deviation: the paper takes the norm of the difference; the mean of squares, the form of the public implementations, is smooth at 0.

    Args:
        student: features, shape (N, channels, height, width).
        teacher: features, shape (N, other channels, other height, other width); treated as constant.
        p: the power of the attention map, >= 1.

    Returns:
        Shape (N,), >= 0.

    Raises:
        TypeError: features are not floating point.
        ValueError: features do not have four axes, the numbers of examples differ, or p < 1.
    """
    check_floating(student=student, teacher=teacher)
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise ValueError(
            f"teacher: expected shape (N, channels, height, width) with N like student {tuple(student.shape)}, got {tuple(teacher.shape)}"
        )
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    pooled = [f if f.shape[2:] == size else F.adaptive_avg_pool2d(upcast(f), size) for f in (student, teacher.detach())]
    maps = [attention_map(f, p=p) for f in pooled]
    return (maps[0] - maps[1]).square().mean(dim=1)
