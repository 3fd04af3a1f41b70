"""Forecasts of students' series: naive ones, exponential smoothing, and regressions and networks that all students share; their errors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

from preceptor.education.panel import Panel, carried
from preceptor.education.series_networks import SeriesTraining, forecast_by_network

Forecaster = Literal["naive", "seasonal-naive", "simple", "holt", "holt-winters", "ar", "dlinear", "gru", "tcn"]
"""The last value; the last season; exponential smoothing of the level, also of a trend, also of a season; ridge on the last values; the
same on their trend and the rest apart; networks."""

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


def forecast(
    panel: Panel,
    horizon: int,
    method: Forecaster,
    *,
    period: int = 7,
    lags: int = 28,
    training: SeriesTraining | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Forecasts (U, horizon) of the first dimension from all of a panel; missing values are taken for the last known ones before them.

    Smoothing has parameters for each student, those of a small grid with the least squared one-step error. With fewer than two seasons the
    forecast is the last value, but for methods without a season; so is that of a regression or network with too little past.

    Args:
        panel: the past.
        horizon: steps ahead.
        method: see `Forecaster`.
        period: m; 1 for no season.
        lags: values that a regression sees, or fewer, so that it learns from as many times as a season has.
        training: of a network.
        seed: of a network.
    Raises:
        ValueError: another method, or a horizon < 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected at least 1, got {horizon}")
    x = carried(panel)
    steps = x.shape[1]
    seasons = 2 * period
    needed = {"simple": 2, "holt": 2} | dict.fromkeys(("ar", "dlinear", "gru", "tcn"), seasons + horizon)
    if method == "naive" or steps < needed.get(method, seasons):
        return np.repeat(x[:, -1:], horizon, 1)
    if method == "seasonal-naive":
        return x[:, steps - period + np.arange(horizon) % period]
    if method in ("simple", "holt", "holt-winters"):
        return smooth(x, period=period, horizon=horizon, method=method).forecast
    if method in ("ar", "dlinear"):
        return _regress(x, horizon, min(lags, steps - horizon - period), apart=method == "dlinear", period=period)
    if method in ("gru", "tcn"):
        return forecast_by_network(panel, horizon, method, period=period, training=training, seed=seed)
    raise ValueError(f"method: expected {', '.join(get_args(Forecaster)[:-1])} or tcn, got {method!r}")


def smooth(x: np.ndarray, *, period: int, horizon: int, method: Literal["simple", "holt", "holt-winters"] = "holt-winters") -> Smoothed:
    """Exponential smoothing of series (U, T), each with the parameters of a small grid that have the least squared one-step error.

    ``simple`` is a level alone, from the first value; ``holt`` a level and a trend, from the first value and the first difference; both
    are `holt_winters` with a season of 1 that stays 0.
    """
    alphas, betas, gammas = _GRID
    start, skipped = None, period
    if method != "holt-winters":
        gammas, skipped, period = (0.0,), 2, 1
        betas = (0.0,) if method == "simple" else betas
        trend = np.zeros(len(x)) if method == "simple" else x[:, 1] - x[:, 0]
        start = (x[:, 0] - trend, trend, np.zeros((len(x), 1)))
    least, best = np.full(len(x), np.inf), None
    for alpha, beta, gamma in product(alphas, betas, gammas):
        made = holt_winters(x, period=period, alpha=alpha, beta=beta, gamma=gamma, horizon=horizon, start=start)
        error = ((made.fitted - x)[:, skipped:] ** 2).mean(1) if x.shape[1] > skipped else np.zeros(len(x))
        better = (error < least)[:, None]
        least = np.minimum(error, least)
        best = (
            made
            if best is None
            else Smoothed(
                fitted=np.where(better, made.fitted, best.fitted),
                level=np.where(better, made.level, best.level),
                forecast=np.where(better, made.forecast, best.forecast),
            )
        )
    assert best is not None
    return best


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
    """(U,) mean absolute error over that of the seasonal naive forecast on the past; NaN where the past repeats itself exactly.

    NaN in ``truth`` and ``past`` is missing and does not count; with nothing to count the answer is NaN.
    """
    scale = mase_scale(past, period=period)
    return _mean(np.abs(forecasts - truth)) / np.where(scale > 0, scale, np.nan)


def mase_scale(past: np.ndarray, *, period: int = 7) -> np.ndarray:
    """(U,) mean absolute difference to the value one season before, of those that are known; NaN without one."""
    return _mean(np.abs(past[:, period:] - past[:, :-period]))


def _mean(x: np.ndarray) -> np.ndarray:
    known = np.isfinite(x)
    count = known.sum(1)
    return np.where(count > 0, np.where(known, x, 0.0).sum(1) / np.maximum(count, 1), np.nan)


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
