"""Direct coverage optimisation, against the released code: F times cross-entropy, with its series for F where N p < 0.1."""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.losses.coverage import confidence_factor
from preceptor.losses.policy import token_log_probs


def run(params: dict, inputs: dict) -> dict:
    """A table of F, or loss, F and log-probability of each sequence."""
    if params.get("kind") == "factor_table":
        return {"F": torch.stack([released_factor(inputs["p"].detach(), n) for n in inputs["N"].tolist()])}
    shift = params.get("shift", 0)
    logits, labels = inputs["logits"], inputs["labels"]
    logits, labels = logits[:, : logits.shape[1] - shift], labels[:, shift:]
    mask = labels != params.get("ignore_index", -100)
    log_prob = token_log_probs(logits, labels.where(mask, 0)).masked_fill(~mask, 0.0).sum(1)
    factor = released_factor(log_prob.detach().exp(), params["N"])
    lengths = mask.sum(1) if str(params.get("token_normalisation", "mean")).startswith("mean") else 1
    loss = -factor * log_prob / lengths
    return {"loss": loss, "per_sequence_loss": loss, "factor": factor, "sequence_logprob": log_prob}


def released_factor(p: Tensor, n: float) -> Tensor:
    """F, from a quotient of two quadratic series where N p < 0.1."""
    above = 1 - (n - 1) * p + (n - 1) * (n - 2) * p**2 / 2
    below = 1 - (n - 1) * p / 2 + (n - 1) * (n - 2) * p**2 / 6
    return torch.where(p * n < 0.1, above / below, confidence_factor(p.log(), num_samples=n))
