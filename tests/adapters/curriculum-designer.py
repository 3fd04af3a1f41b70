"""Adapter of the fixtures ``curriculum-designer``: distances of classes, scores of orders, the released generator, and the F-score."""

from __future__ import annotations

from typing import Any

import torch

from preceptor.data.class_orders import class_distance, rank_orders, row_normalised, score_orders, variance_share
from preceptor.metrics.class_streams import f_score


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """All outputs of one case."""
    if params["op"] == "f_score":
        return {"f_score": [f_score(a, b) for a, b in zip(inputs["first_task_accuracy"], inputs["average_accuracy"], strict=True)]}
    distance = inputs.get("distance")
    if "prototypes" in inputs:
        classes = torch.arange(len(inputs["prototypes"]))
        found = class_distance(inputs["prototypes"], classes, metric=params.get("metric", "cosine"))
        if distance is not None:
            torch.testing.assert_close(found, distance.detach(), rtol=1e-10, atol=1e-12)
        distance = found
    assert distance is not None
    outputs = {
        "distance": distance,
        "distance_row_normalised": row_normalised(distance),
        "variance_share": variance_share(distance),
        "generated": rank_orders(distance, params.get("top_k", 2), method="fill").orders,
    }
    if "curricula" in inputs:
        outputs["score_float"] = score_orders(distance, inputs["curricula"])
        outputs["score_rank"] = score_orders(distance, inputs["curricula"], variant="rank")
    return outputs
