"""Adapter of the fixtures ``fidelity-paradox``: losses of KD_generalization, which adds an epsilon to the probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from preceptor.losses.divergence import log_probs
from preceptor.losses.masked import masked_divergence
from preceptor.losses.policy import sequence_means


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Loss of every sequence, or of every token for the Jensen-Shannon divergence."""
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    temperature = params.get("temperature", 1.0)
    if "jsd" in params["function"]:
        return {"loss": _jsd(params, inputs, temperature)}
    direction = "reverse" if "reverse" in params["function"] else "forward"
    mask = inputs.get("pad_mask", torch.ones(student.shape[:-1]))
    losses = masked_divergence(student, teacher, kind=f"{direction}_kl", mask=mask.detach(), temperature=temperature)
    losses = losses + released_epsilon(student, teacher, direction, temperature, params.get("epsilon", 1e-9))
    return {"loss": temperature**2 * sequence_means(losses, mask)[mask.bool().any(-1)]}


def released_epsilon(student: Tensor, teacher: Tensor, direction: str, temperature: float, epsilon: float) -> Tensor:
    """What the epsilon adds to KL(p || q): sum (p + e) (log(p + e) - log q), or to KL(q || p): sum (q + e) (log q - log p)."""
    log_q, log_p = (log_probs(logits, temperature=temperature) for logits in (student, teacher.detach()))
    if direction == "reverse":
        return epsilon * (log_q - log_p).sum(-1)
    p = log_p.exp()
    return ((p + epsilon) * (p + epsilon).log() - p * log_p - epsilon * log_q).sum(-1)


def _jsd(params: dict[str, Any], inputs: dict[str, Any], temperature: float) -> Tensor:
    """The mixture has the student's share beta, the weights the teacher's: where they differ, two skewed divergences."""
    student, teacher, beta = inputs["student_logits"], inputs["teacher_logits"], params.get("beta", 0.5)
    labels = inputs.get("labels")
    counts = torch.ones(student.shape[:-1], dtype=torch.bool) if labels is None else labels != params.get("ignore_index", -100)

    def divergence(kind: str, share: float) -> Tensor:
        return masked_divergence(student, teacher, kind=kind, share=share, mask=counts, temperature=temperature)[counts]

    if beta == 0.5:
        losses = divergence("generalized_jsd", beta)
    else:
        losses = beta * divergence("skew_forward_kl", 1 - beta) + (1 - beta) * divergence("skew_reverse_kl", beta)
    return losses / student.shape[-1] if params.get("reduction") == "mean" else losses
