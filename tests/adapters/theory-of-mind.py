"""Adapter of the fixtures ``theory-of-mind``: which questions are explained at each budget."""

from __future__ import annotations

from typing import Any

from preceptor.teachers.interventions import num_explained, rank_interventions

STRATEGIES = {"mm_both": "utility", "mm_no_inter": "no-intervention", "mm_inter": "intervention"}


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The chosen questions in their order; the released code misleads by utility only."""
    without, helped = (inputs[f"p_correct_{name}_intervention"].detach() for name in ("no", "with"))
    strategy = STRATEGIES[params["strategy"]]
    deceive = bool(params.get("deceive")) and strategy == "utility"
    order = rank_interventions(without, helped, strategy, deceive=deceive).tolist()
    return {"selected_per_budget": [order[: num_explained(budget, len(order))] for budget in params["budgets"]]}
