"""Federated curricula, against released pacing functions and scores of linear models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from preceptor.data.curricula import order_samples, pacing
from preceptor.methods.fl_curricula import sample_scores


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Pool sizes, or scores, orders and the pool of clients."""
    if params["op"] == "pacing":
        grow = pacing(params["function"], params["a"], params["b"], params["total_steps"], params["total_items"])
        return {"pool_size": [grow(step) for step in inputs["steps"].tolist()]}
    scores = []
    for client, (x, y) in enumerate(zip(inputs["x"], inputs["y"], strict=True)):
        server, expert = (linear(inputs[f"w_{name}"], inputs[f"b_{name}"]) for name in ("global", "expert"))
        trained = client in params["clients_with_local_model"]
        own = [linear(inputs["w_local"][client], inputs["b_local"][client])] if trained else []
        models = {"G": [server], "L": own or [server], "LG": [server, *own], "E": [expert]}[params["mode"]]
        scores.append(sample_scores(models, {"x": x, "y": y}) * len(models))  # released: the sum, where this package takes the mean
    clients = torch.stack([score.mean() for score in scores])
    order = order_samples(clients, "curr")
    size = pacing(params["client_pacing"], params["a"], params["b"], params["total_steps"], len(clients))(params["step"])
    return {
        "sample_score": scores,
        "sample_order": [order_samples(score, "curr") for score in scores],
        "client_score": clients[:, None],
        "client_order": order,
        "client_pool": order[:size],
    }


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer with these weights."""
    layer = nn.Linear(*weight.T.shape, dtype=weight.dtype)
    layer.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return layer
