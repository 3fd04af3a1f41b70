"""Adapter of the fixtures ``ska``: a run of the method on one batch; its log is the history, and the fixtures store weights transposed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from preceptor.core.run import train
from preceptor.methods.ska import SKA

LOGGED = {
    "entropy": "entropy",
    "cosine": "cosine",
    "tensor_net": "tensor_net",
    "knowledge_flow": "flow",
    "lagrangian": "lagrangian",
    "z_frobenius": "z_norm",
}


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The histories of every layer, and the weights at the end."""
    network = build([weight.detach() for weight in inputs["W"]], [bias.detach() for bias in inputs["b"]])
    records = []
    method = SKA(eta=params["eta"], net=params.get("net", "code"), inputs=params.get("inputs", "previous"))
    source = [{"x": inputs["X"].detach()}]
    train(method, {"student": network}, source, {}, steps=params["K"] - 1, progress=records.append)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    histories = {key: [[record.extras[f"{name}/{layer}"] for record in records] for layer in layers] for key, name in LOGGED.items()}
    histories["z_frobenius"] = [[column[0], *column] for column in histories["z_frobenius"]]  # twice with the first weights
    last = [network.get_submodule(layer) for layer in layers]
    return {**histories, "W_final": [layer.weight.mT for layer in last], "b_final": [layer.bias for layer in last]}


def build(weights: list[Tensor], biases: list[Tensor]) -> nn.Sequential:
    """Linear layers with these weights (in, out) and biases, a sigmoid after each."""
    modules: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(*weight.shape, dtype=torch.float64)
        layer.load_state_dict({"weight": weight.mT, "bias": bias})
        modules += [layer, nn.Sigmoid()]
    return nn.Sequential(*modules)
