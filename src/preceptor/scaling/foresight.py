"""How well a law foretells: fit the smaller runs, predict the largest, and do the same with naive fits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from preceptor.scaling.fitting import fit
from preceptor.scaling.forms import POWER_CONSTANT, Array, Form


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """Errors |predicted / measured - 1| on the runs held out, mean and largest.

    Attributes:
        held: rows that were held out.
        mean: rival -> mean error; ``law`` is the law itself, ``least squares`` the same law by least squares of log residuals, ``line`` a
            straight line (of log loss on log x, or for a law of scores of the score on log x), ``last`` the value of the largest run kept;
            for the law product also ``total``, a law in Ne + Nd alone.
        largest: rival -> largest error.
    """

    held: tuple[int, ...]
    mean: dict[str, float]
    largest: dict[str, float]


def foresight(form: Form, x: ArrayLike, y: ArrayLike, *, share: float = 0.2, **options: Any) -> Foresight | None:
    """Hold out the largest sizes.

    Args:
        form, x, y: as in `preceptor.scaling.fitting.fit`.
        share: part of the distinct sizes (with several axes: of the products) that is held out, in (0, 1); one at least.
        options: more of `fit`.
    Returns:
        None when what is left cannot be fitted.
    Raises:
        ValueError: share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"holdout: expected a share in (0, 1), got {share}")
    points = np.asarray(x, dtype=float).reshape(len(np.asarray(y)), -1)
    values = np.asarray(y, dtype=float)
    order = np.log(points).sum(1).round(9)
    sizes = np.unique(order)
    limit = sizes[-max(1, math.floor(share * len(sizes)))]
    kept = order < limit
    try:
        law = fit(form, points[kept], values[kept], **options).predict(points[~kept])
        squares = fit(form, points[kept], values[kept], **{**options, "delta": math.inf}).predict(points[~kept])
    except ValueError:
        return None
    largest = order[kept] == order[kept].max()
    predicted = {
        "law": law,
        "least squares": squares,
        "line": straight_line(points[kept], values[kept], points[~kept], of_scores=form.gains),
        "last": np.full(int((~kept).sum()), values[kept][largest].mean()),
    }
    total = points.sum(1)
    if form.name == "product" and np.ptp(total[kept]) > 0:
        rival = fit(POWER_CONSTANT, total[kept], values[kept], **{key: value for key, value in options.items() if key != "bounds"})
        predicted["total"] = rival.predict(total[~kept])
    errors = {name: np.abs(guess / values[~kept] - 1) for name, guess in predicted.items()}
    return Foresight(
        held=tuple(np.flatnonzero(~kept).tolist()),
        mean={name: float(error.mean()) for name, error in errors.items()},
        largest={name: float(error.max()) for name, error in errors.items()},
    )


def straight_line(x: ArrayLike, y: ArrayLike, at: ArrayLike, *, of_scores: bool = False) -> Array:
    """Predictions (m,) at ``at`` (m, axes) of a line in log x fitted by least squares: of log y, or of y itself for scores."""
    points, ends = (np.log(np.asarray(part, dtype=float)).reshape(len(np.asarray(part)), -1) for part in (x, at))
    values = np.asarray(y, dtype=float) if of_scores else np.log(np.asarray(y, dtype=float))
    line = np.linalg.lstsq(np.column_stack([np.ones(len(points)), points]), values, rcond=None)[0]
    predicted = np.column_stack([np.ones(len(ends)), ends]) @ line
    return predicted if of_scores else np.exp(predicted)
