"""Adapter of the fixtures ``pedagogy-benchmark``: letters of raw answers, and tables of accuracy and bad format."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from preceptor.education.multiple_choice import strict_letter
from preceptor.education.scoring import accuracy_table


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """``letters``, or every group's ``{model: [accuracy, bad, items]}``; models at or above the threshold of bad format are left out."""
    if "responses" in inputs:
        return {"letters": [strict_letter(plain(text)) for text in inputs["responses"]]}
    models = [name.removeprefix("pred_") for name in inputs if name.startswith("pred_")]
    categories = [plain(value) for value in inputs["category"]] if "category" in inputs else [""] * len(inputs["answer"])
    tables = {model: accuracy_table(categories, inputs["answer"], [plain(value) for value in inputs[f"pred_{model}"]]) for model in models}
    limit = params.get("bad_format_threshold")
    kept = {model: table for model, table in tables.items() if limit is None or table["overall"][1] < limit}
    groups = dict.fromkeys(name for table in tables.values() for name in table)
    return {group: {model: list(table[group]) for model, table in kept.items()} for group in groups}


def plain(value: Any) -> str | None:
    """Text, or None for a missing value."""
    value = value.item() if isinstance(value, Tensor) else value
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value
