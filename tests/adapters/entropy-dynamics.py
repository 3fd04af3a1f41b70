"""Adapter of the fixtures ``entropy-dynamics``: discriminators, advantages, filters and the policy loss by Trinity-RFT."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.losses.entropy_filters import clip_b, clip_v, entropy_discriminator
from preceptor.losses.policy import Aggregation, aggregate, group_advantages, ppo_surrogate, token_log_probs

MODES: dict[str, Aggregation] = {
    "token-mean": "token-mean",
    "seq-mean-token-mean": "sequence-mean",
    "sequence-mean": "sequence-mean",
    "seq-mean": "sequence-mean",
    "seq-mean-token-sum": "sequence-sum",
}


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Every output of one case."""
    logits, actions, mask = inputs["logits"], inputs["actions"], inputs["response_mask"].detach()
    s, n, _ = entropy_discriminator(logits, actions)
    rewards = inputs["rewards"].detach().double()
    advantages = group_advantages(rewards, inputs["group"], eps=params["adv_eps"]).unsqueeze(1) * mask
    if params["kind"] == "clip_b":
        kept = clip_b(s, advantages, mask, mu=params["mu"])
    else:
        kept = clip_v(s, n, advantages, mask, mu=params["mu"], max_share=params.get("max_frac"))
        kept &= clip_v(s, n, -(advantages == 0).double(), mask, mu=params["mu"], max_share=None)  # released code: without advantage too
    clips = {"clip_low": params["clip_low"], "clip_high": params["clip_high"], "dual_clip": params["dual_clip_c"]}
    losses = ppo_surrogate(inputs["log_prob"], token_log_probs(logits, actions).detach(), advantages, **clips)
    return {
        "S": s,
        "N": n,
        "advantages": advantages,
        "keep_mask": kept.to(mask.dtype),
        "n_clipped": (mask - kept.to(mask.dtype)).sum(),
        "loss": released_mean(losses, kept.to(mask.dtype), MODES[params["loss_agg_mode"]]),
    }


def released_mean(values: Tensor, mask: Tensor, mode: Aggregation) -> Tensor:
    """`aggregate` as released: 1e-8 is added to numbers of tokens, and sequences that the filter emptied count too."""
    lengths = mask.sum(-1, keepdim=True)
    if mode == "token-mean":
        return aggregate(values, mask, mode=mode) * lengths.sum() / (lengths.sum() + 1e-8)
    if mode == "sequence-mean":
        values = values * lengths / (lengths + 1e-8)
    return aggregate(values, mask, mode=mode) * (lengths > 0).double().mean()
