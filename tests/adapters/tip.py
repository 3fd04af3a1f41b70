"""TIP, against the losses and the token statistics of the released code."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from preceptor.losses.divergence import forward_kl, generalized_jsd, log_probs, reverse_kl
from preceptor.losses.token_stats import stats


def run(params: dict, inputs: dict) -> dict:
    """Losses of N tokens, or their entropy and Jensen-Shannon divergence in units of the largest possible."""
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    match params["function"]:
        case "compute_reverse_kl_loss":
            loss = reverse_kl(student, teacher)
        case "compute_forward_kl_loss":
            loss = forward_kl(student, teacher)
        case "compute_jsd_loss":
            loss = generalized_jsd(student, teacher, beta=params.get("beta", 0.5))
        case "_compute_per_token_entropy_and_jsd":
            vocabulary, scale = student.shape[-1], params.get("jsd_scale", 1.0)
            among = params.get("jsd_topk") or 0
            among = among if among < vocabulary else 0
            found = stats(log_probs(student), teacher=log_probs(teacher), kind="generalized_jsd", among=among)
            return {
                "norm_entropy": found.entropy / math.log(vocabulary) * scale,
                "norm_jsd": (found.divergence + released_floor(student, teacher, among)).clamp(min=0) / math.log(2) * scale,
            }
        case other:
            raise ValueError(f"function: expected one of the fixture's functions, got {other!r}")
    return {"loss": loss, "n_tokens": len(student)}


def released_floor(student: Tensor, teacher: Tensor, among: int) -> Tensor:
    """What it adds to the divergence that no probability of the mixture counts as less than 1e-8."""
    if among:
        chosen = teacher.topk(among, dim=-1).indices
        student, teacher = student.gather(-1, chosen), teacher.gather(-1, chosen)
    m = (student.softmax(-1) + teacher.softmax(-1)) / 2
    return -(torch.special.entr(m) + m * m.clamp(min=1e-8).log()).sum(-1)
