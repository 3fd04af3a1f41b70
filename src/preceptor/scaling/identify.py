"""What points can tell: they are refused when they cannot be fitted, and parameters that they leave open are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from preceptor.scaling.forms import CURVATURE, STEEPEST, Array, Box, Form, LogLaw

_SINGULAR = 1e-5  # smallest singular value of the normalised Jacobian, relative, that still tells the parameters apart
_UNSEEN = 1e-3  # share of the smallest prediction below which a constant is not visible


def columns(x: ArrayLike, form: Form) -> Array:
    """The sizes of a law as (n, axes).

    Raises:
        ValueError: another number of columns, or a size that is not finite and above 0 (its row, from 0, is named).
    """
    points = np.asarray(x, dtype=float)
    points = points.reshape(-1, 1) if points.ndim < 2 else points
    if points.ndim != 2 or points.shape[1] != len(form.axes):
        raise ValueError(f"x: expected {len(form.axes)} columns ({', '.join(form.axes)}) for the law {form.name}, got shape {points.shape}")
    for name, column in zip(form.axes, points.T, strict=True):
        check_positive(name, column)
    return points


def check_positive(name: str, values: Array) -> None:
    """Refuse values that are not finite and above 0.

    Raises:
        ValueError: names the first such row, from 0.
    """
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(f"{name}: expected finite numbers above 0, got {values[bad[0]]} in row {bad[0]}{more}")


def check_points(form: Form, x: Array, y: Array, bounds: Mapping[str, Box]) -> None:
    """Refuse points that cannot identify a law.

    Raises:
        ValueError: not one value per row, values not above 0, fewer points than parameters + 1, one size only along an axis, or axes that
            move together.
    """
    what = "score" if form.gains else "loss"
    if y.shape != (len(x),):
        raise ValueError(f"{what}: expected one number for each of the {len(x)} rows, got shape {y.shape}")
    check_positive(what, y)
    free = len(form.parameters) - sum(low == high for low, high in bounds.values())
    if len(y) < free + 1:
        raise ValueError(f"points: expected at least {free + 1} for the {free} parameters of the law {form.name}, got {len(y)}")
    for axis, name in enumerate(form.axes):
        if np.ptp(np.log(x[:, axis])) < 1e-9:
            power = next(power for power, of in form.axis_of.items() if of == axis)
            raise ValueError(f"{name}: expected at least two sizes to identify {power}, got {x[0, axis]:g} in every row")
    if len(form.axes) > 1:
        spread = np.linalg.svd(np.log(x) - np.log(x).mean(0), compute_uv=False)
        if spread[-1] < 1e-4 * spread[0]:
            which = "p_e + p_d" if form.name == "product" else "one exponent"
            raise ValueError(
                f"{', '.join(form.axes)}: expected sizes that move apart, got a single sweep in which they move together:"
                f" it identifies {which} only, fit power-constant to one of them"
            )


def diagnose(form: Form, theta: Array, jacobian: Array, box: Sequence[Box], least: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a finished fit leaves open.

    Args:
        form, theta, box: the law, its parameters and their limits.
        jacobian: (n, parameters), derivatives of the log predictions there, each row times the root of its weight.
        least: the smallest prediction.
    Returns:
        Names of parameters that the points cannot tell, where J^T J is singular, and warnings in words.
    """
    names, free = np.array(form.parameters), np.array([low < high for low, high in box])
    warnings = []
    lengths = np.linalg.norm(jacobian, axis=0) / np.sqrt(len(jacobian))
    dark = free & (lengths < 1e-6)
    hidden = set(names[dark].tolist())
    seen = free & ~dark
    _, singular, rows = np.linalg.svd(jacobian[:, seen] / lengths[seen], full_matrices=False)
    for row in rows[singular < _SINGULAR * singular.max(initial=0.0)]:
        hidden |= set(names[seen][np.abs(row) > 0.1 * np.abs(row).max()].tolist())
    for name, value, moves in zip(form.parameters, theta.tolist(), free.tolist(), strict=True):
        if not moves:
            continue
        if name == "e" and np.exp(value) < _UNSEEN * least:
            warnings.append("E: no irreducible loss is visible in these points")
            hidden.discard("e")
        if name in form.axis_of and value <= 1e-6:
            warnings.append(f"{name}: at its bound 0, the loss does not fall with {form.axes[form.axis_of[name]]}")
            hidden.discard(name)
        if name in form.axis_of and value >= 0.999 * STEEPEST:
            warnings.append(f"{name}: at its bound {STEEPEST:g}")
    if isinstance(form, LogLaw) and free[2] and not 1.01 * CURVATURE[0] < theta[2] < 0.99 * CURVATURE[1]:
        warnings.append(f"beta: at its bound {theta[2]:.2g}, the curvature is not identified")
    ordered = tuple(name for name in form.parameters if name in hidden)
    if ordered:
        warnings.append(f"{', '.join(ordered)}: not identified by these points (singular Hessian)")
    return ordered, tuple(warnings)
