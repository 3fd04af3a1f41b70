"""Arithmetic that every loss shares: precision, signs, products outside mixed precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """Turn float16 and bfloat16 into float32; leave float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def lift_to_zero(x: Tensor) -> Tensor:
    """Replace negative rounding errors of a quantity that is >= 0 by 0, in place, and keep their gradient.

    ``x`` is fresh from an operation whose gradient does not need it, such as a sum.
    """
    x.detach().clamp_(min=0)
    return x


def any_masked(logits: Tensor) -> bool:
    """Whether some logit is -inf."""
    return logits.numel() > 0 and logits.detach().amin().item() == -torch.inf


def all_finite(losses: Tensor) -> bool:
    """Whether no loss is infinite or not a number; less to look at than the logits they come from."""
    return math.isfinite(losses.detach().sum().item())


def gram(x: Tensor) -> Tensor:
    """Inner products of the rows of ``x``, shape (N, D) -> (N, N), in the precision of ``x`` even under mixed precision."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ x.mT
