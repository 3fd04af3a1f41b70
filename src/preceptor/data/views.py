"""Transformed copies of images: what a model says about them tells how much its answer hangs on details."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.data.hashing import generator

_NOISE = 6  # so that the noise is not one that the caller drew by the same seed


def transformed(x: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Three copies: a quarter of a pixel to the right, contrast times 1.5, noise of a quarter of the batch's standard deviation.

    Args:
        x: images of any size, shape (N, ..., H, W), floating point.
        seed: of the noise, which is the same on every device.

    Returns:
        Copies of the same shape; pixels may leave the range of ``x``.
    """
    left = F.pad(x, (1, 0))[..., :-1]
    middle = x.mean(dim=(-2, -1), keepdim=True)
    noise = torch.randn(x.shape, generator=generator(seed, _NOISE)).to(x)
    return 0.75 * x + 0.25 * left, middle + 1.5 * (x - middle), x + 0.25 * x.std() * noise
