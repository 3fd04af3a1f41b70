"""Adapter of the fixtures ``scalekd``, made by the paper's code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from preceptor.losses.dual_view import dual_view
from preceptor.models.attention_projectors import CrossAttentionProjector

PLACES = {
    "query_conv1x1": "query_map",
    "student_conv3x3": "conv",
    "student_bn": "norm",
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
    "attn_out": "output",
    "ffn_in": "feed_forward.0",
    "ffn_out": "feed_forward.2",
    "norm": "layer_norm",
}


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Values and gradients of one case."""
    if params["op"] == "dual_view":
        tokens, teacher = inputs["student_tokens"], inputs["teacher_map"]
        sums = dict(zip(("direct", "alternative"), dual_view(tokens, teacher), strict=True))
        losses = {name: params[f"alpha_{name}"] * value.sum() / len(tokens) for name, value in sums.items()}
        grads = {f"grad_student_{name}": torch.autograd.grad(loss, tokens, retain_graph=True)[0] for name, loss in losses.items()}
        return {f"loss_{name}": loss for name, loss in losses.items()} | grads | {"loss": losses["direct"] + losses["alternative"]}
    x, own = inputs["student_map"], params["own_query"]
    given = inputs.get("query_tokens", inputs.get("query"))
    tokens = inputs["query_embedding.weight"] if own else given[0]
    projector = CrossAttentionProjector(
        student_width=x.shape[1],
        teacher_width=tokens.shape[1],
        student_grid=tuple(x.shape[2:]),
        query_grid=(len(tokens), 1),
        heads=params["heads"],
        kappa=params["softmax_scale"],
        learned_query=own,
    ).double()
    weights = {"positions": inputs["pos_embed"]} | ({"table": tokens} if own else {})
    for name, value in inputs.items():
        place, _, kind = name.rpartition(".")
        if place in PLACES:
            weights[f"{PLACES[place]}.{kind}"] = value.flatten(1) if place == "query_conv1x1" and value.ndim == 4 else value
    projector.load_state_dict({name: value.detach() for name, value in weights.items()}, strict=False)
    projector.train(params.get("bn_mode", "train") == "train")
    out = projector(x, None if own else given)
    (gradient,) = torch.autograd.grad((out * inputs["out_weight"]).sum(), x)
    return {"tokens": out, "grad_student": gradient}
