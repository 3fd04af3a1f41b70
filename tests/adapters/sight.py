"""Adapter of the fixtures ``sight``: Cohen's kappa of every two raters, and the regression of model on human agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor

from preceptor.education.agreement import MISSING, agreement
from preceptor.education.reliability import regression


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Kappas by ``kappa_A_B``; a line where the inputs are two lists of kappas, or raters by category."""
    if any(isinstance(value, Mapping) for value in inputs.values()):
        return by_category(inputs)
    if "regression" in str(params):
        x, y = (numbers(value) for value in list(inputs.values())[:2])
        return line(x, y)
    codes = {name: np.array([MISSING if math.isnan(value) else int(value) for value in numbers(given)]) for name, given in inputs.items()}
    weights = params.get("weights") or "nominal"
    pairs = combinations(codes, 2)
    return {f"kappa_{a}_{b}": agreement(codes[a], codes[b], weights=weights, draws=0).kappa.value for a, b in pairs}


def by_category(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Kappas of every category, and the line through those with the model, the last rater, on those of the first two."""
    found = {category: run({}, dict(raters)) for category, raters in inputs.items()}
    points = []
    for kappas in found.values():
        human, *model = kappas.values()
        points += [(human, value) for value in model]
    return {**found, **line(*zip(*points, strict=True))}


def line(x: Any, y: Any) -> dict[str, Any]:
    """Under the names that a fixture may give it."""
    fitted = regression(list(x), list(y))
    named = {"slope": fitted.slope, "intercept": fitted.intercept, "r": fitted.correlation, "correlation": fitted.correlation}
    named |= {"rvalue": fitted.correlation, "r_value": fitted.correlation, "r2": fitted.correlation**2, "n": fitted.points}
    return {**named, **{f"regression_{name}": value for name, value in named.items()}, "regression": named}


def numbers(values: Any) -> list[float]:
    """Codes as floats, NaN for none."""
    given = values.tolist() if isinstance(values, Tensor) else values
    plain = [value.item() if isinstance(value, Tensor) else value for value in given]
    return [math.nan if value is None or value == MISSING else float(value) for value in plain]
