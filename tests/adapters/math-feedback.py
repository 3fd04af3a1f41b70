"""Adapter of the fixtures ``math-feedback``: distances, nearest past answers, and how well the copied scores are."""

from __future__ import annotations

from typing import Any

import numpy as np

from preceptor.education.feedback import scoring_report
from preceptor.education.open_answers import NearestAnswerScorer, distances


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Everything of one case; embeddings stand in for the texts they belong to."""
    metric = params.get("metric", "canberra")
    history, queries = (inputs[name].detach().numpy() for name in ("history_embeddings", "query_embeddings"))
    table = {f"history {i}": row for i, row in enumerate(history)} | {f"query {i}": row for i, row in enumerate(queries)}
    scorer = NearestAnswerScorer(embed=lambda texts: np.stack([table[text] for text in texts]), metric=metric, k=params.get("k", 1))
    past, asked = [f"history {i}" for i in range(len(history))], [f"query {i}" for i in range(len(queries))]
    scorer.fit([""] * len(past), past, inputs["history_scores"].int().tolist(), [""] * len(past))
    predicted = [rating.score for rating in scorer.predict([""] * len(asked), asked)]
    gaps = distances(queries, history, metric=metric)
    report = scoring_report(inputs["query_scores"].int().tolist(), predicted, scores=len(params.get("scores", range(5))))
    return {
        "distance": gaps.tolist(),
        "nearest": gaps.argmin(1).tolist(),
        "pred": predicted,
        "rmse": report.rmse,
        "kappa": report.kappa,
        "kappa_quadratic": report.kappa_quadratic,
        "auc_one_vs_rest": list(report.auc),
        "auc_mean": report.auc_mean,
    }
