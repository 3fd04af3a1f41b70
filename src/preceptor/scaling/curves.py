"""What a fitted law looks like: curves with bands beside the points, as plain values for a page to draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from preceptor.scaling import answers
from preceptor.scaling.fitting import Fit
from preceptor.scaling.forms import Array, Natural

FAR = 10.0
"""Times the largest run: curves end there, and answers beyond are marked as bold projections."""

_GRID = 80


def draw(found: Fit, names: tuple[str, ...], *, costs: tuple[float, float] = (1.0, 1.0)) -> list[dict[str, Any]]:
    """The charts of a law.

    Args:
        found: the fit, with samples for a band.
        names: quantities of its axes.
        costs: of the law product, see `answers.optimal_split`.
    Returns:
        For each: ``title``, ``x`` and ``y`` (labels), ``curve`` (what the line is), ``log_x``, ``grid``, ``value``, ``low`` and ``high``
        (None without a bootstrap), ``points`` (x and y of the runs).
    """
    x, y = found.x, found.y
    if found.form.name == "separable":
        compute = answers.FLOPS * x.prod(1)
        grid = _reach(compute)

        def best(natural: Natural) -> answers.Optimum:
            return answers.compute_optimal(natural, grid[:, None])

        return [
            _chart("Loss against compute", "C (FLOP)", "loss", "the law at the best N and D")
            | _curve(found, grid, lambda p: best(p).loss, compute, y),
            _chart("The best size", "C (FLOP)", "N", "the best N") | _curve(found, grid, lambda p: best(p).first, compute, x[:, 0]),
        ]
    if found.form.name == "product":
        total, shares = (x * np.array(costs)).sum(1), np.linspace(0.02, 0.98, _GRID)
        grid = _reach(total)
        return [
            _chart("Loss against budget", "Ne + Nd" if costs == (1.0, 1.0) else "cost", "loss", "the law at the best split")
            | _curve(found, grid, lambda p: answers.optimal_split(p, grid[:, None], costs=costs).loss, total, y),
            _chart("What another split costs", "encoder's share", "factor of the reducible loss", "the law")
            | _curve(found, shares, lambda p: answers.suboptimality(p, shares[:, None]), x[:0, 0], y[:0])
            | {"log_x": False},
        ]
    of, name, grid = "score" if found.form.gains else "loss", names[0], _reach(x[:, 0])
    chart = _chart(f"{of.capitalize()} against {name}", f"{name} (FLOP)" if name == "C" else name, of, "the law")
    return [chart | _values(grid, found.predict(grid), found.band(grid), x[:, 0], y)]


def plain(value: float | None) -> float | str | None:
    """A number as JSON has it: infinite is "never", no size reaches it; what is unknown is None."""
    if value is None or np.isnan(value):
        return None
    return float(value) if np.isfinite(value) else "never"


def _reach(sizes: Array) -> Array:
    return np.geomspace(sizes.min(), FAR * sizes.max(), _GRID)


def _chart(title: str, x: str, y: str, curve: str) -> dict[str, Any]:
    return {"title": title, "x": x, "y": y, "curve": curve, "log_x": True}


def _curve(found: Fit, grid: Array, measure: Callable[[Natural], Any], x: Array, y: Array) -> dict[str, Any]:
    """A curve made of the parameters: ``measure`` takes (draws,) and returns (grid, draws)."""
    one = {name: np.asarray([value]) for name, value in found.natural.items()}
    band = None
    if found.samples is not None:
        band = np.nanquantile(measure(found.form.natural(found.samples, found.centre)), [0.025, 0.975], axis=1)
    return _values(grid, measure(one)[:, 0], band, x, y)


def _values(grid: Array, value: Array, band: Array | None, x: Array, y: Array) -> dict[str, Any]:
    low, high = (None, None) if band is None else ([plain(v) for v in end.tolist()] for end in band)
    return {
        "grid": grid.tolist(),
        "value": [plain(v) for v in value.tolist()],
        "low": low,
        "high": high,
        "points": [x.tolist(), y.tolist()],
    }
