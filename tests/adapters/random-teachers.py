"""Adapter of the fixtures ``random-teachers``: a linear encoder layer with its activation, then a bottleneck without hidden layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from preceptor.methods.random_teachers import distances
from preceptor.models.bottleneck import BottleneckProjector
from preceptor.models.nulls import interpolate


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The values of one case."""
    teacher = {name: value.detach() for name, value in inputs["teacher"].items()}
    fresh = {name: value.detach() for name, value in inputs["fresh"].items()}
    student = {name: value.requires_grad_() for name, value in interpolate(teacher, fresh, params["alpha"]).items()}
    says = {name: _outputs(weights, inputs["X"].detach(), params) for name, weights in (("teacher", teacher), ("student", student))}
    temperatures = {"temperature": params["student_temperature"], "teacher_temperature": params["teacher_temperature"]}
    values = {
        name: distances(says["student"], says["teacher"], distance=name, **temperatures).mean() for name in ("cross-entropy", "kl", "mse")
    }
    gradients = torch.autograd.grad(values["cross-entropy"], list(student.values()))
    return {
        "student_init": student,
        **{f"{name}_logits": logits for name, logits in says.items()},
        "cross_entropy": values["cross-entropy"],
        "kl": values["kl"],
        "mse": values["mse"],
        "grad": dict(zip(student, gradients, strict=True)),
    }


def _outputs(weights: dict[str, Tensor], x: Tensor, params: dict[str, Any]) -> Tensor:
    """Logits; layers of the encoder and hidden ones of the projector have names that begin with 0, the bottleneck's with 1."""
    *hidden, narrow = sorted(name.removesuffix(".weight") for name in weights if name.endswith(".weight") and "lin2" not in name)
    for layer in hidden:
        x = F.gelu(F.linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
    last = weights["1.lin2.weight"]
    projector = BottleneckProjector(
        inputs=x.shape[1], hidden=(), bottleneck=last.shape[1], outputs=last.shape[0], unit_weights=params["weight_normalised_last_layer"]
    )
    named = {"layers.0.weight": weights[f"{narrow}.weight"], "layers.0.bias": weights[f"{narrow}.bias"], "last.weight": last}
    return functional_call(projector, named, (x,))
