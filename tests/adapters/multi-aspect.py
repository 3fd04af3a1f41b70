"""Adapter of the fixtures ``multi-aspect``, made by the paper's code."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.methods.multi_aspect import aspect_loss


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Item values of one case."""
    terms = aspect_loss(
        inputs["student_logits"],
        inputs["labels"],
        inputs["aspect_probs"].double(),  # hard targets may be integers
        num_classes=params["num_classes"],
        aspect_weight=params.get("alpha", 4.0),
        hard_weight=params.get("ce_weight", 1.0),
    )
    return {"loss": terms["hard"] + terms["aspects"], "loss_ce": terms["hard"], "loss_aspect_weighted": terms["aspects"]}
