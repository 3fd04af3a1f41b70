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
    old = inputs["old_log_prob"]
    advantages = extrapolated_advantages(old, inputs["teacher_log_prob"], inputs.get("reference_log_prob"), reward_scale=params["lambda"])
    clips = {"clip_low": params["clip_low"], "clip_high": params["clip_high"], "dual_clip": params["dual_clip_c"]}
    losses = ppo_surrogate(inputs["log_prob"], old, advantages, **clips)
    if (given := next((value for key, value in inputs.items() if "weights" in key), None)) is not None:
        losses = losses * given
    if "rollout_log_prob" in inputs:
        losses = losses * importance_weights(old, inputs["rollout_log_prob"], cap=params.get("importance_cap", 5.0))
    return {"advantages": advantages, "loss": aggregate(losses, inputs["response_mask"], mode=MODES[params["loss_agg_mode"]])}


def _jsd(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    if inputs.get("labels") is not None:
        counts = inputs["labels"] != -100
        student, teacher = student[counts], teacher[counts]
    losses = generalized_jsd(student, teacher, beta=params["beta"], temperature=params["temperature"])
    items = params.get("num_items_in_batch")
    return {"loss": losses if items is None else losses.sum() / items}
