"""Adapter of the fixtures ``gopd``: the policy loss by G-OPD (verl), the generalised Jensen-Shannon divergence by TRL."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.losses.divergence import generalized_jsd
from preceptor.losses.policy import Aggregation, aggregate, importance_weights, ppo_surrogate
from preceptor.methods.gopd import extrapolated_advantages

MODES: dict[str, Aggregation] = {
    "token-mean": "token-mean",
    "seq-mean-token-mean": "sequence-mean",
    "sequence-mean": "sequence-mean",
    "seq-mean": "sequence-mean",
    "seq-mean-token-sum": "sequence-sum",
}


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The loss of one case, with the advantages where there are any."""
    return _jsd(params, inputs) if "jsd" in params["function"] else _policy(params, inputs)


def _policy(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    old, scale = inputs["old_log_prob"], params.get("lambda", 1.0)
    advantages = extrapolated_advantages(old, inputs["teacher_log_prob"], inputs.get("reference_log_prob"), reward_scale=scale)
    clips = {"clip_low": params["clip_low"], "clip_high": params["clip_high"], "dual_clip": params["dual_clip_c"]}
    losses = ppo_surrogate(inputs["log_prob"], old, advantages, **clips)
    if (given := next((value for key, value in inputs.items() if "weight" in key and value is not None), None)) is not None:
        losses = losses * given
    if (sampled := next((value for key, value in inputs.items() if key.startswith("rollout_log_prob")), None)) is not None:
        losses = losses * importance_weights(old, sampled, cap=params.get("importance_cap", 5.0))
    return {"advantages": advantages, "loss": released_mean(losses, inputs["response_mask"].detach(), MODES[params["loss_agg_mode"]])}


def released_mean(values: Tensor, mask: Tensor, mode: Aggregation) -> Tensor:
    """`aggregate` with the 1e-8 that the released code adds to every number it divides by."""
    lengths = mask.sum(-1, keepdim=True)
    if mode == "sequence-mean":
        values = values * lengths / (lengths + 1e-8)
    number = mask.sum() if mode == "token-mean" else (lengths > 0).sum()
    return aggregate(values, mask, mode=mode) * number / (number + 1e-8)


def _jsd(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    if inputs.get("labels") is not None:
        counts = inputs["labels"] != -100
        student, teacher = student[counts], teacher[counts]
    losses = generalized_jsd(student, teacher, beta=params.get("beta", 0.5), temperature=params.get("temperature", 1.0))
    items, reduction = params.get("num_items_in_batch"), params.get("reduction", "batchmean")
    if items is not None:
        return {"loss": losses.sum() / items}
    if reduction == "mean":  # over the vocabulary too
        return {"loss": losses / student.shape[-1]}
    return {"loss": losses.sum(-1) if reduction == "batchmean" and losses.ndim == 2 else losses}  # without labels a mean over sequences
