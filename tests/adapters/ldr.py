"""Adapter of the fixtures ``ldr``, made by the paper's code."""

from __future__ import annotations

from typing import Any

import torch

from preceptor.losses.ldr import Member, Normalise, adaptation_cost, adapted, ldr, normalised


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Item values of one case; of the adaptive loss means, gradients and tables of all steps. Their cross-entropy is a mean: less log K."""
    words = params.get("logit_transform", "none")
    how: Normalise = "softplus" if "softplus" in words else "l1" if "divide" in words else "none"
    if params["kind"].startswith("aldr"):
        return _adaptive(params, inputs, how)
    margin, lam = params.get("margin", 0.0), params.get("lambda", 1.0)
    members: dict[str, Member] = {"cs": "cs", "topk": "top", "l2": "l2"}
    member = next((value for key, value in members.items() if key in params["kind"]), "kl")
    loss = ldr(inputs["logits"], inputs["targets"], lam=lam, margin=margin, member=member, normalise=how, top=params.get("k", 5))
    return {"loss": loss}


def _adaptive(params: dict[str, Any], inputs: dict[str, Any], how: Normalise) -> dict[str, Any]:
    base, strength = params["lambda0"], params["alpha_hat"]
    table = torch.full((params["n_train"],), base, dtype=torch.double)
    losses, gradients, tables = [], [], []
    for step in inputs["logits_per_step"]:
        logits = step.detach().requires_grad_()
        lam = adapted(normalised(logits, how), table[inputs["ids"]], base=base, strength=strength)
        table = table.index_put((inputs["ids"],), lam)
        loss = ldr(logits, inputs["targets"], lam=lam, margin=params["margin"], normalise=how)
        mean = (loss - adaptation_cost(lam, logits.shape[-1], base=base, strength=strength)).mean()
        losses.append(mean.item())
        gradients.append(torch.autograd.grad(mean, logits)[0])
        tables.append(table.tolist())
    return {"loss_per_step": losses, "grad_logits_per_step": torch.stack(gradients), "lambda_table_per_step": tables}
