"""Adapter of the fixtures ``cce``: cross-entropy by PyTorch and Apple, Jensen-Shannon distillation by Liger, all through hidden states."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.losses.linear import linear_cross_entropy, linear_cross_entropy_lse, linear_divergence
from preceptor.models.heads import Head


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs of one case; ``chunk_rows`` is small, so that a case is several chunks."""
    if "teacher_hidden" in inputs:
        return _distillation(params, inputs)
    return _cross_entropy(params, inputs)


def _cross_entropy(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Row losses, reduced as the parameters say, with the log-normaliser and its penalty."""
    hidden, targets, ignored = inputs["embeddings"], inputs["targets"], params.get("ignore_index", -100)
    shift = int(params.get("shift") or 0)
    if shift:
        hidden, targets = hidden[..., :-shift, :], targets[..., shift:]
    head = Head(inputs["classifier"], inputs.get("bias"), params.get("softcap", params.get("soft_cap")))
    weights = inputs.get("class_weight")
    counts = targets != ignored
    rows = linear_cross_entropy(
        hidden,
        head,
        targets,
        ignore_index=ignored,
        class_weights=weights,
        label_smoothing=params.get("label_smoothing") or 0.0,
        chunk_rows=2,
    )
    _, lse = linear_cross_entropy_lse(hidden, head, targets, ignore_index=ignored, chunk_rows=2)
    total = counts.sum() if weights is None else weights.detach()[targets[counts]].sum()
    penalty = lse.square()
    outputs = {"lse": lse, "losses": rows}
    match params.get("reduction", "mean"):
        case "mean":
            return outputs | {"loss": rows.sum() / total, "z_loss": penalty.sum() / counts.sum()}
        case "sum":
            return outputs | {"loss": rows.sum(), "z_loss": penalty.sum()}
        case _:
            return outputs | {"loss": rows, "z_loss": penalty}


def _distillation(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Cross-entropy at temperature 1 and the divergence, each divided by the number of targets that count."""
    hidden, targets, ignored = inputs["student_hidden"], inputs["targets"], params.get("ignore_index", -100)
    head = Head(inputs["student_classifier"], inputs.get("student_bias"))
    counts = targets != ignored
    number = counts.sum().clamp_min(1)
    hard = linear_cross_entropy(hidden, head, targets, ignore_index=ignored, chunk_rows=2).sum() / number
    soft = linear_divergence(
        hidden,
        head,
        inputs["teacher_hidden"],
        Head(inputs["teacher_classifier"], inputs.get("teacher_bias")),
        kind="generalized_jsd",
        share=params.get("beta", 0.5),
        mask=counts,
        temperature=params.get("temperature", 1.0),
        chunk_rows=2,
    )
    soft_loss = soft.sum() / number
    loss = params.get("weight_hard", 0.5) * hard + params.get("weight_soft", 0.5) * soft_loss
    return {"loss": loss, "soft_loss": soft_loss, "hard_loss": hard}
