"""Adapter of the fixture ``skt``, made by the paper's code: the four weighted terms and the first Gram matrix."""

from __future__ import annotations

from typing import Any

from preceptor.losses.structure import counting_losses, inter_layer, intra_layer, layer_grams


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The values of one case."""
    student, teacher = inputs["student_features"], inputs["teacher_features"]
    hard, soft = counting_losses(student[-1], teacher[-1], inputs["target_density"])
    eps = params.get("instance_norm_eps", 1e-5)
    inter = params["lambda_inter"] * inter_layer(student, teacher, eps=eps)
    intra = params["lambda_intra"] * intra_layer(student[:-1], teacher[:-1])
    grams = layer_grams(student, eps=eps)
    terms = {"loss_hard": hard, "loss_soft": soft, "loss_inter": inter, "loss_intra": intra}
    total = hard + soft + inter + intra
    outputs = {name: value.sum() for name, value in {**terms, "loss": total}.items()}
    return {**outputs, "n_pairs": len(grams), "gram_student_first_pair": grams[0][0]}
