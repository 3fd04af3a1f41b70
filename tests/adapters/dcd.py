"""Adapter of the fixtures ``dcd``, made by the paper's code: weights without effect, the teacher's scores sorted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from preceptor.losses.candidates import select_candidates
from preceptor.methods.dcd import dcd_loss, teacher_columns


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Values of one case. The temperature cancels."""
    extra = {}
    if params["op"] == "loss_as_released":
        student, teacher = inputs["student_scores"], inputs["teacher_scores"]
        place = params.get("positive_column", 0)
        order = torch.tensor([place, *(column for column in range(student.shape[1]) if column != place)])
        student, teacher = student[:, order], teacher[:, order]
    else:
        everything = inputs["teacher_scores_all"]
        candidates = select_candidates(everything, params["hard_negatives"])
        student, teacher = inputs["student_scores_all"].gather(1, candidates), teacher_columns(everything, candidates, align="sorted")
        extra = {"student_candidates": candidates}
    alone = {"loss_distill": 1.0, "loss_self": 0.0}
    parts = {name: dcd_loss(student, teacher, alpha=alpha, weighting="none").total.sum() for name, alpha in alone.items()}
    return {"loss": dcd_loss(student, teacher, alpha=params["alpha"], weighting="none").total.sum(), **parts, **extra}
