"""EDCO, against the released score of one answer: lists of candidates may differ in length."""

from __future__ import annotations

import torch

from preceptor.losses.token_stats import candidate_entropy, prefix_score


def run(params: dict, inputs: dict) -> dict:
    """Entropies of the tokens and the score."""
    tokens = inputs["topk_logprobs"]
    rows = [torch.as_tensor(row).double() for row in tokens]
    options = {"base": float(params.get("log_base", 2)), "eps": params.get("eps", 1e-12)}
    entropies = torch.stack([candidate_entropy(row, **options) for row in rows])
    score = prefix_score(entropies[None], torch.ones(1, len(rows)), fraction=params.get("top_fraction", 0.2))
    return {"entropy_mean": score, "token_entropies": entropies}
