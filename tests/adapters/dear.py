"""Adapter of the fixtures ``dear``: losses of groups, nDCG, replies and windows."""

from __future__ import annotations

from typing import Any

import torch

from preceptor.losses.groups import lambdarank, listnet, ranknet
from preceptor.methods.dear import group_distill_loss
from preceptor.metrics.ranking import ndcg
from preceptor.teachers.listwise import parse_ranking, rerank

MAINS = {
    "softmax_ce": "ce",
    "ranknet_teacher": "ranknet",
    "ranknet_binary": "ranknet-binary",
    "listnet_teacher": "listnet",
    "listnet_binary": "listnet-binary",
    "ranknet_binary_softmax_ce": "ranknet-ce",
}


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Values of one case, by the function that it names."""
    function = params["function"]
    if "ndcg" in function:
        return ranked(params, inputs)
    if "parse" in function:
        return {"orders": [parse_ranking(text, params["n"]) for text in inputs["texts"]]}
    if "windows" in function:
        return reordered(params, inputs)
    student, teacher = inputs["student_scores"], inputs.get("teacher_scores")
    if function.startswith("RankLoss"):
        loss = next(loss for name, loss in (("lambda", lambdarank), ("list", listnet), ("", ranknet)) if name in function)
        return {"loss": loss(student, teacher)}
    positive = torch.full((len(student),), params.get("positive_index", 0))
    options = {"temperature": params.get("temperature", 2.0), "alpha": params.get("alpha", 0.1)}
    return {"loss": sum(group_distill_loss(student, teacher, positive, main=MAINS[params["loss_type"]], **options))}


def ranked(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, dict[str, float]]:
    gain = "exponential" if "exp" in params["function"] else "linear"
    found = {k: ndcg(inputs["qrels"], inputs["run"], k, gain).queries for k in params["k"]}
    return {query: {f"ndcg_cut_{k}": values[query] for k, values in found.items()} for query in inputs["qrels"]}


def reordered(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """With an agent that knows the relevance of each passage."""
    names, worth, seen = inputs["initial_order"], inputs["oracle_relevance"], []

    def agent(messages: list[dict[str, str]]) -> str:
        shown = [message["content"].split("] ")[1] for message in messages[1:-1:2]]
        seen.append(len(shown))
        return " > ".join(f"[{1 + shown.index(name)}]" for name in sorted(shown, key=lambda name: -worth[name]))

    ranges = {"start": params["rank_start"], "end": params["rank_end"], "window": params["window_size"], "step": params["step"]}
    order = rerank("", names, agent, **ranges).order
    return {"windows_seen": seen, "final_order": [names[at] for at in order]}
