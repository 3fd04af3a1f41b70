"""Forecasts of students' series: naive ones, exponential smoothing, and regressions that all students share; errors and intervals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from preceptor.education.panel import Panel

Forecaster = Literal["naive", "seasonal-naive", "holt-winters", "ar", "dlinear"]
"""The last value; the last season; additive Holt-Winters; ridge on the last values; the same on their trend and the rest apart."""

_RIDGE = 1.0
_GRID = ((0.05, 0.15, 0.3, 0.6), (0.01, 0.1, 0.3), (0.05, 0.2, 0.5))  # alpha, beta, gamma


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """What Holt-Winters found, for series (..., T): one-step ``fitted`` and ``level`` (..., T), ``forecast`` (..., horizon)."""

    fitted: np.ndarray
    level: np.ndarray
    forecast: np.ndarray


def holt_winters(
    x: np.ndarray,
    *,
    period: int,
    alpha: float | np.ndarray,
    beta: float | np.ndarray,
    gamma: float | np.ndarray,
    horizon: int,
    start: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Smoothed:
    """Additive Holt-Winters with given parameters and first states.

        l_t = a (x_t - s_{t-m}) + (1 - a)(l_{t-1} + b_{t-1}),  b_t = beta (l_t - l_{t-1}) + (1 - beta) b_{t-1},
        s_t = gamma (x_t - l_{t-1} - b_{t-1}) + (1 - gamma) s_{t-m},  forecast l_T + k b_T + s_{T-m+1+(k-1) mod m}

    By default it starts from the mean of the first season, a trend of (second mean - first mean) / m, and the first season less its level.

    Args:
        x: (..., T) with T >= 2 m.
        period: m >= 1.
        alpha: in [0, 1], or shaped to broadcast with (...).
        beta: the same.
        gamma: the same.
        horizon: steps ahead.
        start: level (...) and trend (...) before the first step, and its season (..., m).
    Raises:
        ValueError: fewer than two seasons, or a parameter outside [0, 1].
    """
    if period < 1 or x.shape[-1] < 2 * period:
        raise ValueError(f"x: expected at least two seasons of {period}, got {x.shape[-1]} steps")
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        if not (np.all(np.asarray(value) >= 0) and np.all(np.asarray(value) <= 1)):
            raise ValueError(f"{name}: expected numbers in [0, 1], got {value}")
    level = x[..., :period].mean(-1)
    trend, first = (x[..., period : 2 * period].mean(-1) - level) / period, x[..., :period] - level[..., None]
    if start is not None:
        level, trend, first = start
    season = [first[..., i] for i in range(period)]
    fitted, levels = [], []
    for t in range(x.shape[-1]):
        now, old = x[..., t], season[t]
        expected = level + trend
        fitted.append(expected + old)
        new = alpha * (now - old) + (1 - alpha) * expected
        season.append(gamma * (now - expected) + (1 - gamma) * old)
        trend = beta * (new - level) + (1 - beta) * trend
        level = new
        levels.append(level)
    ahead = [level + (k + 1) * trend + season[x.shape[-1] + k % period] for k in range(horizon)]
    return Smoothed(fitted=np.stack(fitted, -1), level=np.stack(levels, -1), forecast=np.stack(ahead, -1))


def forecast(panel: Panel, horizon: int, method: Forecaster, *, period: int = 7, lags: int = 28) -> np.ndarray:
    """Forecasts (U, horizon) of the first dimension from all of a panel; missing values are taken for the last known ones before them.

    Holt-Winters has parameters for each student, those of a small grid with the least squared one-step error; with fewer than two seasons
    it is the last value, as is a regression with too little past.

    Args:
        panel: the past.
        horizon: steps ahead.
        method: see `Forecaster`.
        period: m; 1 for no season.
        lags: values that a regression sees.
    Raises:
        ValueError: another method, or a horizon < 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected at least 1, got {horizon}")
    x = carried(panel)
    steps = x.shape[1]
    if method == "naive" or steps < 2 * period or (method in ("ar", "dlinear") and steps <= lags + horizon):
        return np.repeat(x[:, -1:], horizon, 1)
    if method == "seasonal-naive":
        return x[:, steps - period + np.arange(horizon) % period]
    if method == "holt-winters":
        return _smooth(x, period, horizon)
    if method in ("ar", "dlinear"):
        return _regress(x, horizon, lags, apart=method == "dlinear", period=period)
    raise ValueError(f"method: expected naive, seasonal-naive, holt-winters, ar or dlinear, got {method!r}")


def carried(panel: Panel) -> np.ndarray:
    """(U, T): the first dimension, each missing value replaced by the last known one, 0 before the first."""
    place = np.maximum.accumulate(np.where(panel.mask, np.arange(panel.mask.shape[1]), -1), 1)
    found = np.take_along_axis(panel.values[..., 0], place.clip(min=0), 1)
    return np.where(place >= 0, found, 0.0)


def _smooth(x: np.ndarray, period: int, horizon: int) -> np.ndarray:
    best, found = np.full(len(x), np.inf), np.zeros((len(x), horizon))
    for alpha, beta, gamma in product(*_GRID):
        made = holt_winters(x, period=period, alpha=alpha, beta=beta, gamma=gamma, horizon=horizon)
        error = ((made.fitted - x)[:, period:] ** 2).mean(1)
        better = error < best
        best, found = np.where(better, error, best), np.where(better[:, None], made.forecast, found)
    return found


def _regress(x: np.ndarray, horizon: int, lags: int, *, apart: bool, period: int) -> np.ndarray:
    """Ridge from the last values, scaled by each student's level, to the next ``horizon``, over all students and times."""
    scale = np.abs(x).mean(1, keepdims=True) + 1e-9
    scaled = x / scale
    inside = np.lib.stride_tricks.sliding_window_view(scaled, lags + horizon, axis=1)
    seen, wanted = inside[..., :lags].reshape(-1, lags), inside[..., lags:].reshape(-1, horizon)
    last = scaled[:, -lags:]

    def features(rows: np.ndarray) -> np.ndarray:
        if apart:
            kernel = np.ones(period) / period
            padded = np.pad(rows, ((0, 0), (period // 2, period - 1 - period // 2)), mode="edge")
            trend = np.stack([np.convolve(row, kernel, "valid") for row in padded])
            rows = np.concatenate([trend, rows - trend], 1)
        return np.concatenate([rows, np.ones((len(rows), 1))], 1)

    design = features(seen)
    weights = np.linalg.solve(design.T @ design + _RIDGE * np.eye(design.shape[1]), design.T @ wanted)
    return features(last) @ weights * scale


def mase(forecasts: np.ndarray, truth: np.ndarray, past: np.ndarray, *, period: int = 7) -> np.ndarray:
    """(U,) mean absolute error over that of the seasonal naive forecast on the past; NaN where the past repeats itself exactly."""
    scale = np.abs(past[:, period:] - past[:, :-period]).mean(1)
    return np.where(scale > 0, np.abs(forecasts - truth).mean(1) / np.where(scale > 0, scale, 1.0), np.nan)


def smape(forecasts: np.ndarray, truth: np.ndarray) -> float:
    """Mean of 2 |f - x| / (|f| + |x|), 0 where both are 0; in [0, 2]."""
    total = np.abs(forecasts) + np.abs(truth)
    return float(np.where(total > 0, 2 * np.abs(forecasts - truth) / np.where(total > 0, total, 1.0), 0.0).mean())


def pinball(forecasts: np.ndarray, truth: np.ndarray, *, level: float) -> float:
    """Mean loss of a forecast of the quantile ``level``, in the unit of the series."""
    error = truth - forecasts
    return float(np.maximum(level * error, (level - 1) * error).mean())


def conformal_radius(residuals: np.ndarray, *, alpha: float = 0.1) -> float:
    """Half the width of a split-conformal interval: the ceil((n + 1)(1 - alpha))-th smallest |residual| of n; infinite for a small n.

    Raises:
        ValueError: alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a number in (0, 1), got {alpha}")
    rank = int(np.ceil((residuals.size + 1) * (1 - alpha)))
    return float(np.sort(np.abs(residuals), axis=None)[rank - 1]) if 1 <= rank <= residuals.size else float("inf")
