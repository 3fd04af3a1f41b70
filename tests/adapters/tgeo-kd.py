"""Adapter of the fixtures ``tgeo-kd``: what the ratio network sees, with class averages over the batch, and the loss at given ratios."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.methods.tgeo_kd import trilateral_state


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The values of one case; the loss has a factor of the temperature squared, ``kd_per_sample`` has not."""
    student, teacher, labels, alpha = (inputs[name] for name in ("student_logits", "teacher_logits", "labels", "alpha"))
    predictions = teacher.softmax(-1)
    same = (labels[:, None] == labels).double()
    averages = same @ predictions / same.sum(-1, keepdim=True)
    soft = forward_kl(student, teacher, temperature=params["temperature"])
    loss = alpha * params["temperature"] ** 2 * soft + (1 - alpha) * hard_loss(student, {"y": labels})
    (gradient,) = torch.autograd.grad(loss.mean(), student, retain_graph=True)
    state = trilateral_state(student, teacher, labels, averages)
    return {"state": state, "kd_per_sample": soft, "loss": loss, "grad_student": gradient}
