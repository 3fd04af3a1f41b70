"""Adapter of the fixtures ``nd-loss``, made by the paper's code."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.methods.nd_loss import nd_loss


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Item values of one case, and which regime each is in."""
    student, teacher = inputs["student_features"], inputs["teacher_features"]
    loss = params["nd_loss_factor"] * nd_loss(student, teacher, inputs["class_means"], inputs["labels"])
    return {"loss": loss, "student_norm_larger": student.norm(dim=1) > teacher.norm(dim=1)}
