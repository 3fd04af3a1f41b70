"""Adapter of the fixtures ``mtard``, made by the paper's code: steps of the balancers, and the attack on a linear model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from preceptor.data.perturb import pgd
from preceptor.losses.balance import balance_temperatures, balance_weights
from preceptor.methods.mtard import soft_target_loss, softened_entropy


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The values of one case."""
    return _attack(params, inputs) if params["op"] == "pgd_inner" else _balance(params, inputs)


def _balance(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Consecutive steps; the predecessor, without rates and bounds of temperatures, keeps both at 1."""
    options = {"eps": params.get("eps", 1e-5), "reduction": "examples" if params.get("reduction") == "batchmean" else "entries"}
    temperatures = {name: params.get(f"temp_init_{name}", 1.0) for name in ("adv", "nat")}
    weights = dict(zip(("adv", "nat"), params.get("weights_init", (0.5, 0.5)), strict=True))
    outputs: dict[str, Any] = {}
    first: dict[str, float] = {}
    for step in range(len(inputs["student_adv"])):
        students = {name: inputs[f"student_{name}"][step].detach().requires_grad_() for name in weights}
        teachers = {name: inputs[f"teacher_{name}"][step] for name in weights}
        losses = {
            name: soft_target_loss(students[name], teachers[name], temperature=temperatures[name], **options).mean() for name in weights
        }
        numbers = {name: loss.item() for name, loss in losses.items()}
        first = first or numbers
        temperatures = balance_temperatures(
            {name: softened_entropy(says, temperature=temperatures[name], **options).mean().item() for name, says in teachers.items()},
            temperatures,
            rate=params.get("temp_learn_rate", 0.0),
            low=params.get("temp_min", 1.0),
            high=params.get("temp_max", 10.0),
        )
        weights = balance_weights(
            numbers, first, weights, rate=params["weight_learn_rate"], power=params.get("power", params.get("beta", 1.0))
        )
        total = sum(weights[name] * loss for name, loss in losses.items())
        for what, values in {"kl": numbers, "temp": temperatures, "weight": weights}.items():
            for name, value in values.items():
                outputs.setdefault(f"{what}_{name}", []).append(value)
        outputs.setdefault("total_loss", []).append(total.item())
        gradients = torch.autograd.grad(total, list(students.values()))
        outputs |= {f"grad_student_{name}_last": gradient for name, gradient in zip(students, gradients, strict=True)}
    return outputs


def _attack(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    x, models = inputs["x"].detach(), {}
    for name in ("student", "teacher"):
        weight = inputs[f"w_{name}"].detach()
        models[name] = nn.Linear(weight.shape[1], weight.shape[0]).double()
        models[name].load_state_dict({"weight": weight, "bias": inputs[f"b_{name}"].detach()})
    moved = pgd(
        models["student"],
        x,
        inputs["y"],
        epsilon=params["epsilon"],
        step_size=params["step_size"],
        steps=params["steps"],
        box=tuple(params["clamp"]),
        start=x + params["start_noise_scale"] * inputs["unit_noise"].detach(),
    )
    return {"x_adv": moved, **{f"{name}_logits": model(moved) for name, model in models.items()}}
