"""Adapter of the fixtures ``supercorrect``, made by the authors' code of direct preference optimisation with masked labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.losses.preference import dpo_loss, sequence_log_probs


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Log-probabilities of both texts under policy and reference, and the loss of every pair."""
    options = {"ignore_index": params.get("ignore_index", -100), "mean": bool(params.get("average_log_prob", False))}
    said = {
        f"{model}_{side}_logps": sequence_log_probs(inputs[f"{model}_{side}_logits"], inputs[f"{side}_labels"], **options)
        for model in ("policy", "ref")
        for side in ("chosen", "rejected")
    }
    return {**said, "loss": dpo_loss(*said.values(), beta=params["beta"], smoothing=params.get("label_smoothing", 0.0))}
