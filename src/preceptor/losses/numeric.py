"""Arithmetic that every loss shares: precision, signs, products outside mixed precision."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """Turn float16 and bfloat16 into float32; leave float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def lift_to_zero(x: Tensor) -> Tensor:
    """Replace negative rounding errors of a quantity that is >= 0 by 0, and keep their gradient."""
    return torch.where(x < 0, x - x.detach(), x)


def gram(x: Tensor) -> Tensor:
    """Inner products of the rows of ``x``, shape (N, D) -> (N, N), in the precision of ``x`` even under mixed precision."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ x.mT
