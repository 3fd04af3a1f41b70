"""Adapter of the fixtures ``dice``, made by the authors' code.

With several classes and no squares that code divides by the sums over all items, but takes the numerator of one item: that form is put
together here and not offered by the package.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.dice import damped_probs, dice_loss


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The loss of one case: one class over the set, several over each item."""
    logits, targets, mask = inputs["logits"], inputs["targets"], inputs.get("mask")
    alpha, smooth = params.get("alpha", 0.0), params.get("smooth", 1e-4)
    square, ratio = params.get("square_denominator", False), params.get("ohem_ratio", 0.0)
    single = logits.ndim == 1 or logits.shape[-1] == 1
    if mask is not None:
        mask = mask.detach().reshape(logits.shape[:1])
    if single:
        targets = targets.detach().reshape(logits.shape[:1])
        return {"loss": dice_loss(logits, targets, mask=mask, alpha=alpha, smooth=smooth, square=square, ohem_ratio=ratio)}
    if square:
        loss = dice_loss(logits, targets, mask=mask, alpha=alpha, smooth=smooth, square=True, level="example", class_reduction="sum")
        return {"loss": loss}
    u = damped_probs(logits, alpha=alpha)
    y = F.one_hot(targets, logits.shape[-1]).to(u) if targets.ndim < logits.ndim else targets.detach().to(u)
    if mask is not None:
        u, y = u * mask.unsqueeze(-1), y * mask.unsqueeze(-1)
    ratios = (2 * u * y + smooth) / (u.sum(dim=0) + y.sum(dim=0) + smooth)
    return {"loss": (1 - ratios).sum(dim=-1)}
