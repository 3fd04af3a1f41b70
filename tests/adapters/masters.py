"""Adapter of the fixtures ``masters``: masks by magnitude as torch's own pruning makes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.teachers.masked import magnitude_mask


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Mask and masked weight of one tensor."""
    weight = inputs["weight"]
    mask = magnitude_mask(weight, params["ratio"]).to(weight.dtype)
    return {"mask": mask, "masked_weight": mask * weight.detach()}
