"""Adapter of the fixtures ``rmt``, made by the paper's code: both losses, and the whole of a step on linear models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from preceptor.core.online import PREDICTION
from preceptor.core.state import State
from preceptor.core.stream import as_stream
from preceptor.losses.contrastive import nearest_prototypes, prototype_contrast
from preceptor.methods.rmt import RMT, symmetric_cross_entropy


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The values of one case."""
    return {"symmetric_cross_entropy": _agreement, "contrastive": _contrast, "total": _total}[params["op"]](params, inputs)


def _agreement(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    values = symmetric_cross_entropy(inputs["student_logits"], inputs["teacher_logits"], alpha=params.get("alpha", 0.5))
    return {"per_sample": values, "loss": values}


def _contrast(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    views = inputs["features_test"], inputs["features_aug"]
    return {
        "nearest_prototype": nearest_prototypes(views[0], inputs["prototypes"]),
        "loss": prototype_contrast(*views, inputs["prototypes"], _projector(inputs), temperature=params["temperature"]),
    }


def _total(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    roles = {name: nn.Sequential(_linear(inputs[f"w_{name}"], inputs[f"b_{name}"])) for name in ("student", "teacher")}
    roles = {"student": roles["student"], "mean_teacher": roles["teacher"], "projector": _projector(inputs)}
    method = RMT(
        alpha=params.get("sce_alpha", 0.5),
        temperature=params.get("temperature", 0.1),
        self_training_weight=params.get("lambda_ce_trg", 1.0),
        contrast_weight=params.get("lambda_cont", 1.0),
        source_weight=params.get("lambda_ce_src", 1.0),
        augment=lambda x, generator: inputs["x_aug"],
        prototypes=inputs.get("prototypes"),
    )
    state = State(total_steps=1)
    if "x_src" in inputs:
        state.streams = {"source": as_stream([{"x": inputs["x_src"], "y": inputs["y_src"]}])}
    batch = method.prepare({"x": inputs["x_test"]}, roles, state)
    with torch.no_grad():
        signal = method.signal(batch, roles, state)
    loss = torch.stack([term.mean() for term in method.loss(batch, signal, roles, state).values()]).sum()
    gradient = torch.autograd.grad(loss, roles["student"][0].weight, retain_graph=True)[0]
    return {
        "ensemble_logits": state.memory[PREDICTION],
        "loss": loss,
        "grad_student": gradient,
    }


def _projector(inputs: dict[str, Any]) -> nn.Module:
    if "proj_w1" not in inputs:
        return nn.Identity()
    return nn.Sequential(_linear(inputs["proj_w1"], inputs["proj_b1"]), nn.ReLU(), _linear(inputs["proj_w2"], inputs["proj_b2"]))


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return layer
