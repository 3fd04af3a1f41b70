"""Adapter of the fixtures ``mcmi``, made by the paper's code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from preceptor.losses.hard import hard_loss
from preceptor.methods.mcmi import class_centroids, conditional_mutual_information, kl_to_centroid


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Item values of one case; the labels of ``centroid_logits`` are those of ``logits``."""
    logits, labels, earlier = inputs["logits"], inputs["labels"], inputs["centroid_logits"]
    centroids = class_centroids(earlier, labels)
    ce = hard_loss(logits, {"y": labels})
    cmi = kl_to_centroid(logits, labels, centroids)
    return {
        "centroids": centroids,
        "ce": ce,
        "cmi_batch": cmi,
        "loss": params["ce_weight"] * ce + params["cmi_weight"] * cmi,
        "grad_student": _gradient(params["ce_weight"] * ce + params["cmi_weight"] * cmi, logits),
        "cmi_of_centroid_logits": conditional_mutual_information(earlier, labels),
    }


def _gradient(items: Tensor, logits: Tensor) -> Tensor:
    """Gradient of the mean, by ``logits``: the runner cannot tell which input the fixture's name means."""
    (gradient,) = torch.autograd.grad(items.mean(), logits, retain_graph=True)
    return gradient
