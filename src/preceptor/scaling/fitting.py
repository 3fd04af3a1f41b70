"""The robust fitter of all laws: a sum of Huber losses of log residuals, many starts, and a bootstrap.

    objective = sum_i w_i Huber_delta(log f(x_i) - log y_i),   Huber_delta(r) = r^2 / 2 if |r| <= delta else delta (|r| - delta / 2)

Hoffmann et al. 2022 (arXiv:2203.15556), Sec. D.2; Besiroglu et al. 2024 (arXiv:2404.10102) found what spoiled that fit: with a mean in
place of the sum the objective is so small that the optimiser stops far too early. Here it is a sum, a thousand times as large, minimised
by L-BFGS-B from the best starts of a grid and polished by BFGS, in float64, with one thread of BLAS (a second one costs far more than
it brings for matrices this small).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from preceptor.core.optional import require
from preceptor.scaling.forms import Array, Box, Form, Natural
from preceptor.scaling.identify import check_points, columns, diagnose

FEWEST_SIZES = 6
"""Distinct x below which no interval is given."""

_FEW, _COLD = 50, 10  # with more points than the first, draws of a bootstrap from one cold start to the next
_SCALE = 1e3  # of the objective during the search


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law.

    Attributes:
        form: the law.
        x: (n, axes), y: (n,), as given; weights: (n,).
        centre: (axes,), mean of log x; theta: parameters in centred coordinates.
        objective: its least value.
        residuals: (n,), log prediction - log y.
        unidentified: parameters that these points cannot tell; `parameters` has NaN for them.
        warnings: what a reader must know.
        samples: (draws, parameters) of the bootstrap, like theta; None without one.
    """

    form: Form
    x: Array
    y: Array
    weights: Array
    delta: float
    box: tuple[Box, ...]
    centre: Array
    theta: Array
    objective: float
    residuals: Array
    unidentified: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    samples: Array | None = None

    @property
    def natural(self) -> Natural:
        """Parameters of the equation, identified or not: what predictions are made with."""
        return self.form.natural(self.theta, self.centre)

    @property
    def parameters(self) -> dict[str, float]:
        """Parameters of the equation; NaN where the points cannot tell."""
        hidden = {name.upper() if len(name) == 1 else name.removeprefix("log_") for name in self.unidentified}
        if self.form.gains and hidden:
            hidden |= {"alpha", "log_A"}  # both are made of all three
        return {name: float("nan") if name in hidden else float(value) for name, value in self.natural.items()}

    @property
    def r_squared(self) -> float:
        """Share of the variance of log y that the law explains."""
        log_y = np.log(self.y)
        spread = float(((log_y - log_y.mean()) ** 2).sum())
        return 1 - float((self.residuals**2).sum()) / spread if spread > 0 else float("nan")

    def predict(self, x: ArrayLike) -> Array:
        """Predictions (m,) at x (m,) or (m, axes); NaN outside the law's domain."""
        return np.exp(self._log(self.theta, self._u(x)))

    def interval(self, measure: Callable[[Natural], Any], *, level: float = 0.95) -> tuple[float, float] | None:
        """Percentiles over the bootstrap of a number made from the parameters; None without a bootstrap.

        Args:
            measure: takes parameters by name, arrays (draws,), and returns (draws,).
            level: coverage, in (0, 1).
        """
        if self.samples is None:
            return None
        values = np.asarray(measure(self.form.natural(self.samples, self.centre)), dtype=float)
        tail = (1 - level) / 2
        # Infinite is a value here, "never": percentiles take a member of the sample, as a mean of it with another would be no number.
        low, high = np.nanquantile(values, [tail, 1 - tail], method="closest_observation")
        return float(low), float(high)

    def band(self, x: ArrayLike, *, level: float = 0.95) -> Array | None:
        """Percentiles (2, m) over the bootstrap of the predictions at x; None without a bootstrap."""
        if self.samples is None:
            return None
        u = self._u(x)
        draws = np.exp([self._log(theta, u) for theta in self.samples])
        return np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)

    def _u(self, x: ArrayLike) -> Array:
        return np.log(columns(x, self.form)) - self.centre

    def _log(self, theta: Array, u: Array) -> Array:
        return self.form.predict_log(theta, self.form.design(u))[0]


def objective(form: Form, theta: Array, design: Array, log_y: Array, *, delta: float, weights: Array | float = 1.0) -> tuple[float, Array]:
    """The sum of Huber losses, and its gradient (parameters,).

    Args:
        theta, design: as `forms.TermLaw.predict_log` takes them.
        log_y: (n,).
        delta: threshold > 0; infinite for least squares.
        weights: (n,), how often each point counts.
    """
    log_prediction, jacobian = form.predict_log(theta, design)
    residual = log_prediction - log_y
    clipped = residual.clip(-delta, delta)
    # both branches of Huber's loss at once: c (r - c / 2) with c = r inside and delta sign(r) outside
    return float((weights * clipped * (residual - clipped / 2)).sum()), (weights * clipped) @ jacobian


def fit(
    form: Form,
    x: ArrayLike,
    y: ArrayLike,
    *,
    delta: float | None = None,
    weights: ArrayLike | None = None,
    bounds: Mapping[str, Box] | None = None,
    starts: int = 48,
) -> Fit:
    """Fit a law to points.

    Args:
        form: see `preceptor.scaling.forms.LAWS`.
        x: sizes > 0, (n,) or (n, axes).
        y: losses or scores > 0, (n,).
        delta: threshold of the Huber loss, of log residuals; the law's own by default, infinite for least squares.
        weights: (n,), >= 0; all 1 by default.
        bounds: limits of exponents and of the constant E, equal ends fix one.
        starts: how many of the grid's starts are followed, the best ones.
    Raises:
        ValueError: a value that is not above 0 (rows are named), fewer points than parameters + 1, or sizes that cannot tell the
            parameters apart.
        ImportError: scipy is missing.
    """
    points, values = columns(x, form), np.asarray(y, dtype=float)
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    delta = form.delta if delta is None else delta
    if not delta > 0:
        raise ValueError(f"delta: expected a number above 0, got {delta}")
    check_points(form, points, values, bounds or {})
    log_x, log_y = np.log(points), np.log(values)
    centre = log_x.mean(0)
    u = log_x - centre
    box = tuple(form.box(u, log_y, bounds or {}))
    search = _Search(form, form.design(u), log_y, delta, box)
    with single_threaded():
        grid = np.clip(form.starts(u, log_y), [low for low, _ in box], [high for _, high in box])
        first = np.array([search.value(start, counts)[0] for start in grid])
        ends = [search.descend(grid[i], counts) for i in first.argsort(kind="stable")[:starts]]
        ends.sort(key=lambda end: end[0])
        best = min((search.polish(theta, counts) for _, theta in ends[:3]), key=lambda end: end[0])
    value, theta = best
    log_prediction, jacobian = form.predict_log(theta, search.design)
    jacobian *= np.sqrt(counts)[:, None]
    unidentified, warnings = diagnose(form, theta, jacobian, box, float(np.exp(log_prediction.min())))
    return Fit(
        form=form,
        x=points,
        y=values,
        weights=counts,
        delta=delta,
        box=box,
        centre=centre,
        theta=theta,
        objective=value,
        residuals=log_prediction - log_y,
        unidentified=unidentified,
        warnings=warnings,
    )


def bootstrap(found: Fit, *, draws: int = 1000, seed: int = 0, strata: Sequence[Any] | None = None) -> Fit:
    """Fit to points drawn with replacement, from the optimum of all points and from a cold start; the lower end is taken.

    With more than 50 points only every tenth draw has its cold start, to watch over the warm ones: a warning says when one ended lower.

    Args:
        found: the fit of all points.
        draws: >= 1; percentiles at 95 % want about 1,000.
        seed: of the draws.
        strata: (n,), the sweep that each point belongs to: every sweep keeps its number of points.
    Returns:
        The fit with its ``samples``; without them and with a warning where there are fewer than `FEWEST_SIZES` distinct x.
    Raises:
        ValueError: draws < 1.
    """
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    distinct = len(np.unique(found.x, axis=0))
    if distinct < FEWEST_SIZES:
        line = f"no intervals: expected at least {FEWEST_SIZES} distinct sizes for a bootstrap, got {distinct}"
        return replace(found, warnings=(*found.warnings, line))
    form, log_y = found.form, np.log(found.y)
    u = np.log(found.x) - found.centre
    search = _Search(form, form.design(u), log_y, found.delta, found.box)
    groups = [np.arange(len(log_y))] if strata is None else [np.flatnonzero(np.array(strata) == name) for name in dict.fromkeys(strata)]
    generator = np.random.default_rng(seed)
    with single_threaded():
        grid = np.clip(form.starts(u, log_y), [low for low, _ in found.box], [high for _, high in found.box])
        cold = grid[np.argmin([search.value(start, found.weights)[0] for start in grid])]
        samples, missed, every = [], 0, _COLD if len(log_y) > _FEW else 1
        for number in range(draws):
            drawn = np.concatenate([generator.choice(group, len(group)) for group in groups])
            counts = found.weights * np.bincount(drawn, minlength=len(log_y))
            value, theta = search.descend(found.theta, counts)
            if number % every == 0:
                other = search.descend(cold, counts)
                missed += every > 1 and other[0] < 0.999 * value
                value, theta = min((value, theta), other, key=lambda end: end[0])
            samples.append(theta)
    line = f"intervals: {missed} of {-(-draws // _COLD)} cold starts ended lower than the warm ones, they may be too narrow"
    return replace(found, samples=np.array(samples), warnings=(*found.warnings, *[line] * (missed > 0)))


def drop_highest(x: ArrayLike, y: ArrayLike, count: int) -> tuple[Array, Array]:
    """The outlier rule of Besiroglu et al. 2024: leave out the points with the highest loss (there 5).

    Raises:
        ValueError: count is negative, or nothing would be left.
    """
    points, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not 0 <= count < len(values):
        raise ValueError(f"drop: expected a number in [0, {len(values)}), got {count}")
    kept = np.sort(np.argsort(values, kind="stable")[: len(values) - count])
    return points[kept], values[kept]


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread of BLAS inside the block, where threadpoolctl is installed."""
    try:
        limits = importlib.import_module("threadpoolctl").threadpool_limits
    except ModuleNotFoundError:
        yield
        return
    with limits(limits=1):
        yield


class _Search:
    """The optimiser on one set of points; only the weights change between draws of a bootstrap."""

    def __init__(self, form: Form, design: Array, log_y: Array, delta: float, box: Sequence[Box]) -> None:
        self.minimize = require("scipy.optimize", extra="study", purpose="fitting scaling laws").minimize
        self.form, self.design, self.log_y, self.delta, self.box = form, design, log_y, delta, list(box)
        self.free = np.array([low < high for low, high in box])

    def value(self, theta: Array, weights: Array) -> tuple[float, Array]:
        value, slope = objective(self.form, theta, self.design, self.log_y, delta=self.delta, weights=weights)
        return _SCALE * value, _SCALE * slope

    def descend(self, start: Array, weights: Array) -> tuple[float, Array]:
        """L-BFGS-B from one start: the unscaled objective, and where."""
        options = {"maxiter": 500, "maxfun": 2000, "ftol": 1e-13, "gtol": 1e-8, "maxcor": 20}
        end = self.minimize(self.value, start, args=(weights,), jac=True, method="L-BFGS-B", bounds=self.box, options=options)
        return float(end.fun) / _SCALE, end.x

    def polish(self, theta: Array, weights: Array) -> tuple[float, Array]:
        """BFGS over the parameters that are not fixed; kept where it is lower and inside the box."""
        before = self.value(theta, weights)[0]

        def part(free: Array) -> tuple[float, Array]:
            value, slope = self.value(whole(free), weights)
            return value, slope[self.free]

        def whole(free: Array) -> Array:
            full = theta.copy()
            full[self.free] = free
            return full

        with np.errstate(all="ignore"):
            end = self.minimize(part, theta[self.free], jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 300})
        moved = whole(end.x)
        inside = all(low <= value <= high for value, (low, high) in zip(moved, self.box, strict=True))
        return (float(end.fun) / _SCALE, moved) if inside and end.fun < before else (before / _SCALE, theta)
