"""Adapter of the fixtures ``classic-kd``: vision losses by mdistiller, token divergences by TRL and DistiLLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from preceptor.losses.divergence import (
    forward_kl,
    generalized_jsd,
    js_distance,
    log_probs,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    total_variation,
)
from preceptor.losses.features import attention_transfer, hint_loss
from preceptor.losses.relations import rkd_angle, rkd_distance
from preceptor.methods.dkd import decoupled_kl


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Item values of one case."""
    function = params["function"]
    if function in ("kd", "dkd"):
        return {"loss": _vision(function, params, inputs)}
    if function == "at":
        pairs = zip(inputs["student_maps"], inputs["teacher_maps"], strict=True)
        return {"loss": torch.stack([attention_transfer(s, t, p=params.get("p", 2)) for s, t in pairs]).sum(dim=0)}
    if function in ("fitnet", "fitnets", "hint"):
        return {"loss": hint_loss(inputs["student_features"], inputs["teacher_features"])}
    if function == "rkd":
        student, teacher = inputs["student_features"], inputs["teacher_features"]
        distance = rkd_distance(student, teacher, squared=params.get("squared", False), eps=params.get("eps", 1e-12))
        return {"loss": params.get("distance_weight", 25) * distance + params.get("angle_weight", 50) * rkd_angle(student, teacher)}
    return _tokens(function, params, inputs)


def _vision(function: str, params: dict[str, Any], inputs: dict[str, Any]) -> Tensor:
    student, teacher, temperature = inputs["student_logits"], inputs["teacher_logits"], params["temperature"]
    if function == "kd":
        return temperature**2 * forward_kl(student, teacher, temperature=temperature)
    tckd, nckd = decoupled_kl(student, teacher, inputs["labels"], temperature=temperature)
    return temperature**2 * (params["alpha"] * tckd + params["beta"] * nckd)


def _tokens(function: str, params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Divergences of the tokens that count; DistiLLM's ``lam`` is the share that each function documents."""
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    if inputs.get("labels") is not None:
        counts = inputs["labels"] != params.get("ignore_index", -100)
        student, teacher = student[counts], teacher[counts]
    temperature = params.get("temperature", 1.0)
    match function:
        case "forward_kl":
            loss = forward_kl(student, teacher, temperature=temperature)
        case "reverse_kl":
            loss = reverse_kl(student, teacher, temperature=temperature)
        case "skewed_forward_kl":
            loss = skew_forward_kl(student, teacher, skew=params.get("lam", 0.1), temperature=temperature)
        case "skewed_reverse_kl":
            loss = skew_reverse_kl(student, teacher, skew=params.get("lam", 0.1), temperature=temperature)
        case "generalized_jsd":
            loss = generalized_jsd(student, teacher, beta=params.get("beta", 0.5), temperature=temperature)
        case "js_distance":
            loss = js_distance(student, teacher, student_share=params.get("lam", 0.9), temperature=temperature)
        case "symmetric_kl":
            loss = symmetric_kl(student, teacher, reverse_share=params.get("lam", 0.9), temperature=temperature)
        case "tv_distance":
            loss = total_variation(student, teacher, temperature=temperature)
        case _:
            raise ValueError(f"function: expected one of the fixture's functions, got {function!r}")
    outputs = {"loss": loss}
    if function in ("forward_kl", "skewed_forward_kl"):
        log_p = log_probs(teacher, temperature=temperature)
        outputs["loss_as_official_cross_entropy"] = loss - (log_p.exp() * log_p).sum(dim=-1)
    return outputs
