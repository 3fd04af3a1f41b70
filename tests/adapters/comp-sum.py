"""Adapter of the fixtures ``comp-sum``: generalised cross-entropy (q = tau - 1) and torch's cross-entropy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.losses.comp_sum import comp_sum


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Item values of one case."""
    return {"loss": comp_sum(inputs["logits"], inputs["targets"], tau=params["tau"], temperature=params.get("rho", 1.0))}
