"""Adapter of the fixtures ``ghosts``: slopes and radii of small tanh networks along a first step, and the quadratic model of the KL."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from preceptor.methods.ghosts import kl_quadratic, radius
from preceptor.models.functional import along, logits_at


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The values of one case."""
    if params.get("kind") == "kl_quadratic":
        start = params["direction"].replace(" ", "") == "KL(p(0)||p(tau))"
        actual, model, bound = kl_quadratic(inputs["z"], inputs["a"], params["tau"], from_start=start)
        return {"klActual": actual, "klQuad": model, "remainder": (actual - model).abs(), "bound": bound}
    return _step(params, inputs)


def _step(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Slopes along the first step of Adam without its learning rate and sign, which is g / (|g| + eps), or along the gradient g."""
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    weights = {name: inputs[key].detach() for name, key in zip(names, ("W1", "b1", "W2", "b2"), strict=True)}
    hidden, features = weights["0.weight"].shape
    model = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, len(weights["2.bias"]))).double()
    model.load_state_dict(weights)
    loss = nn.functional.cross_entropy(model(inputs["X"]), inputs["y"])
    gradient = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    if "adam" in params["direction"].lower():
        gradient = {name: g / (g.abs() + 1e-8) for name, g in gradient.items()}
    norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
    direction = {name: g / norm for name, g in gradient.items()}
    logits, slopes = along(lambda w: logits_at(model, w, inputs["X"]), weights, direction)
    rho, rate = radius(logits, slopes).min(), params.get("lr", 1.0)
    tau = params.get("tau", rate * norm)
    spread = slopes.amax(-1) - slopes.amin(-1)
    return {
        **{"loss": loss, "logits": logits, "logit_slopes": slopes, "spread": spread, "delta_a": spread.max()},
        **dict.fromkeys(("update_norm", "grad_norm", "gradient_norm", "direction_norm"), norm),
        **{"rho_a": rho, "tau": tau, "r": tau / rho, "lr_effective": rate * torch.clamp(rho / tau, max=1.0)},
    }
