"""Adapter of the fixture ``pld``: the listing of the paper's appendix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from preceptor.methods.pld import pld_loss


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Item values of one case; items to be ignored are not among them."""
    student, teacher, labels = inputs["student_logits"], inputs["teacher_logits"], inputs.get("labels")
    weights = inputs.get("weights", params.get("weights", "teacher"))
    weights = torch.tensor(weights) if isinstance(weights, list) else weights
    if labels is not None and "ignore_index" in params:
        counts = labels != params["ignore_index"]
        student, teacher, labels = student[counts], teacher[counts], labels[counts]
    return {"loss": pld_loss(student, teacher, labels, teacher_temperature=params.get("teacher_temperature", 1.0), weights=weights)}
