"""Adapter of the fixtures ``scaling-autoregressive``: objective, gradient and full fit of the joint law on digitised runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from preceptor.scaling.fitting import fit, objective
from preceptor.scaling.forms import POWER_CONSTANT, SEPARABLE, Form


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Values in the order a, b, e, alpha, beta; without D those of the law of N alone, a, e, alpha."""
    form: Form = SEPARABLE if "D" in inputs else POWER_CONSTANT
    x = np.stack([_numbers(inputs[name]) for name in ("N", "D") if name in inputs], axis=1)
    loss, delta = _numbers(inputs["loss"]), params.get("delta", 1e-3)
    theta = next(np.array(value, dtype=float) for name, value in params.items() if name.startswith("theta"))
    value, gradient = objective(form, theta, form.design(np.log(x)), np.log(loss), delta=delta)
    share = len(loss) if str(params.get("reduction", "sum")).startswith("mean") else 1
    found = {"objective": value / share, "grad_params": (gradient / share).tolist()}
    if len(loss) > len(form.parameters):
        law = fit(form, x, loss, delta=delta)
        natural = {name: float(number) for name, number in law.natural.items()}
        logs = {name.lower(): float(np.log(natural[name])) for name in ("A", "B", "E") if name in natural}
        exponents = {name: natural[name] for name in ("alpha", "beta") if name in natural}
        found["fit"] = {"objective": law.objective / share, **logs, **exponents}
    return found


def _numbers(value: Any) -> np.ndarray:
    return value.detach().double().numpy() if isinstance(value, Tensor) else np.array(value, dtype=float)
