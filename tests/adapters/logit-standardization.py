"""Adapter of the fixture ``logit-standardization``: the authors' KD and DKD of standardised logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.losses.divergence import forward_kl
from preceptor.methods.dkd import decoupled_kl
from preceptor.methods.logit_standardization import standardize_logits


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Item values of one case."""
    options = {name: params[name] for name in ("eps", "ddof") if name in params}
    student, teacher = (standardize_logits(inputs[f"{role}_logits"], **options) for role in ("student", "teacher"))
    temperature = params["temperature"]
    if params["function"] == "kd":
        loss = temperature**2 * forward_kl(student, teacher, temperature=temperature)
    else:
        tckd, nckd = decoupled_kl(student, teacher, inputs["labels"], temperature=temperature)
        loss = temperature**2 * (params["alpha"] * tckd + params["beta"] * nckd)
    return {"loss": loss, "standardized_student": student, "standardized_teacher": teacher}
