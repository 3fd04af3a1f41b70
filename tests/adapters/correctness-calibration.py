"""Adapter of the fixtures ``correctness-calibration``: metrics, and the loss with its gradient, made by the paper's code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from preceptor.losses.hard import hard_loss
from preceptor.methods.correctness_calibration import correctness_loss, one_hot_mse
from preceptor.metrics.calibration import adaptive_ece, classwise_ece, confidence_brier, correctness_auroc, ece, ks_error, mce
from preceptor.metrics.classification import brier, nll
from preceptor.models.calibrators import TemperatureNetwork

NAMES = {"hidden": "embed_layer.0", "out": "temperature_layer"}


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Item values of one case."""
    return _metrics(params, inputs["logits"], inputs["labels"]) if params["kind"] == "metrics" else _loss(params, inputs)


def _metrics(params: dict[str, Any], logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    bins = params.get("bins", 15)
    return {
        "ece": ece(logits, labels, bins=bins),
        "classwise_ece": classwise_ece(logits, labels, bins=bins),
        "adaptive_ece": adaptive_ece(logits, labels, bins=bins, edges="quantiles"),
        "mce": mce(logits, labels, bins=bins),
        "max_weighted_bin_gap_called_mce": mce(logits, labels, bins=bins, weighted=True),
        "top1_brier": confidence_brier(logits, labels),
        "multiclass_brier": brier(logits, labels),
        "multiclass_brier_mean_over_NK": brier(logits, labels) / logits.shape[1],
        "ks": ks_error(logits, labels),
        "ks_as_called_in_repo_arguments_swapped": _swapped_ks(logits, labels),
        "auroc": correctness_auroc(logits, labels),
        "nll": nll(logits, labels),
    }


def _swapped_ks(logits: Tensor, labels: Tensor) -> Tensor:
    """Sorted by correctness, wrong ones first: the sum of c - a rises over these and falls over the others, in whatever order."""
    confidence, predicted = logits.detach().softmax(dim=1).max(dim=1)
    right = predicted == labels
    gap = confidence - right.to(confidence)
    return torch.stack([gap[~right].sum(), gap.sum()]).abs().max() / len(labels)


def _loss(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The network is that of the inputs ``param.*``; the gradient is that of the mean."""
    logits, features, labels = inputs["logits"], inputs["features"], inputs["labels"]
    hidden = len(inputs["param.embed_layer.0.weight"])
    limits = tuple(params.get("temperature_clamp", (0.1, 10.0)))
    network = TemperatureNetwork(features.shape[1], hidden=hidden, temperature_range=limits).double()
    own = {f"{a}.{kind}": inputs[f"param.{b}.{kind}"] for a, b in NAMES.items() for kind in ("weight", "bias")}
    network.load_state_dict({name: value.detach() for name, value in own.items()})
    scaled = network(logits, features)
    balanced = params.get("class_balanced", True)
    kinds = {
        "ca": lambda: correctness_loss(scaled, labels, balanced=balanced),
        "ce": lambda: hard_loss(scaled, {"y": labels}),
        "mse-one-hot": lambda: one_hot_mse(scaled, labels),
    }
    loss = kinds[params.get("loss", "ca")]()
    weights = dict(network.named_parameters())
    gradients = dict(zip(weights, torch.autograd.grad(loss.mean(), list(weights.values()), retain_graph=True), strict=True))
    return {
        "temperature": network.temperatures(features),
        "calibrated_confidence": scaled.softmax(dim=1).amax(dim=1),
        "loss": loss,
        "grad": {f"{b}.{kind}": gradients[f"{a}.{kind}"] for a, b in NAMES.items() for kind in ("weight", "bias")},
    }
