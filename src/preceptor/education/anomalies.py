"""What is strange in students' series: single values, against the student's own week or a forecast, and changes of level."""

from __future__ import annotations

from typing import Literal

import numpy as np

from preceptor.core.optional import require
from preceptor.education.forecasting import holt_winters, smooth
from preceptor.education.panel import Panel, carried

Detector = Literal["seasonal", "robust", "likelihood", "value", "isolation"]
"""Residual to the median of the same weekday, for counts or for any values; surprise of a forecast; the value; an isolation forest."""

_FEWEST = 2  # earlier values of a weekday without which nothing is said
_ALPHA, _BETA, _GAMMA = 0.15, 0.01, 0.2  # of Holt-Winters where nothing of the series may choose them


def detect(panel: Panel, method: Detector, *, period: int = 7, past_only: bool = False, seed: int = 0) -> np.ndarray:
    """How strange every value is, (U, T); 0 where it is missing.

    By default each score looks at the whole series of the student, which serves to read a record afterwards. How early a detector would
    have spoken is only told by scores of ``past_only``: each then depends on its own value and the earlier ones.

    Args:
        panel: its first dimension.
        method: ``seasonal``, for counts: (x - median) / sqrt(median + 1) over the student's same days of the season; ``robust``:
            (x - median) / (1.4826 MAD + a tenth of the student's standard deviation) over these days; ``likelihood``:
            e^2 / (2 sigma^2) + log(2 pi sigma^2) / 2 of the one-step error of Holt-Winters, sigma^2 the student's mean of e^2; ``value``: x
            itself; ``isolation``: a forest over the value, its distance from the day before, and its residual as in ``seasonal``.
        period: of the season.
        past_only: compare with earlier values only; 0 with fewer than two of the same day, and for ``likelihood``, whose parameters are
            then fixed, in the first two seasons.
        seed: of the forest.
    Raises:
        ValueError: another method, or a forest of the past only.
    """
    x = np.where(panel.mask, panel.values[..., 0], np.nan)
    if method == "value":
        found = x
    elif method == "seasonal":
        found = _seasonal(x, period, past_only)
    elif method == "robust":
        median, away = _usual(x, period, past_only)
        found = (x - median) / (1.4826 * away + 0.1 * _spread(x, past_only) + 1e-9)
    elif method == "likelihood":
        found = _surprise(carried(panel), period, past_only)
    elif method == "isolation" and not past_only:
        forest = require("sklearn.ensemble", extra="education", purpose="isolation forests").IsolationForest(random_state=seed)
        filled = carried(panel)
        steps = np.diff(filled, axis=1, prepend=filled[:, :1])
        rows = np.stack([filled, steps, np.nan_to_num(_seasonal(x, period, past_only))], -1)[panel.mask]
        found = np.zeros(x.shape)
        found[panel.mask] = -forest.fit(rows).score_samples(rows)
    elif method == "isolation":
        raise ValueError("past_only: expected False with isolation, whose forest sees all series, got True")
    else:
        raise ValueError(f"method: expected seasonal, robust, likelihood, value or isolation, got {method!r}")
    return np.where(panel.mask, np.nan_to_num(found), 0.0)


def cumulated(scores: np.ndarray, *, drift: float = 0.5) -> np.ndarray:
    """Changes of level from scores of points, by Page's cumulative sum (1954): S_t = max(0, S_{t-1} + score_t - drift).

    Args:
        scores: (..., T), large where the value is larger than usual; with the other sign it finds a fall.
        drift: what is taken off at each step, half of the change that matters; in the unit of the scores.
    """
    total, found = np.zeros(scores.shape[:-1]), []
    for t in range(scores.shape[-1]):
        total = np.maximum(0.0, total + scores[..., t] - drift)
        found.append(total)
    return np.stack(found, -1)


def change_points(x: np.ndarray, *, penalty: float | None = None, min_size: int = 2) -> list[int]:
    """Where the mean of a series (T,) changes, by optimal partitioning with pruning (PELT; Killick et al. 2012, arXiv:1101.1438).

    Args:
        x: (T,).
        penalty: of a change; None: 2 sigma^2 log T, with sigma from the differences.
        min_size: least length of a part.
    Returns:
        The first index of every part but the first.
    """
    steps = len(x)
    if penalty is None:
        noise = np.median(np.abs(np.diff(x))) / (0.6745 * np.sqrt(2)) if steps > 1 else 0.0
        penalty = 2 * max(float(noise) ** 2, 1e-12) * float(np.log(max(steps, 2)))
    price = penalty
    total, squares = np.concatenate([[0.0], np.cumsum(x)]), np.concatenate([[0.0], np.cumsum(x**2)])

    def cost(begin: np.ndarray, end: int) -> np.ndarray:
        return squares[end] - squares[begin] - (total[end] - total[begin]) ** 2 / (end - begin)

    best, before = np.full(steps + 1, np.inf), np.zeros(steps + 1, np.int64)
    best[0] = -price
    candidates = np.array([0])
    for end in range(min_size, steps + 1):
        usable = candidates[candidates <= end - min_size]
        values = best[usable] + cost(usable, end) + price
        best[end], before[end] = values.min(), usable[values.argmin()]
        alive = usable[values - price <= best[end]]
        candidates = np.concatenate([alive, candidates[candidates > end - min_size], [end - min_size + 1]])
    found, end = [], steps
    while end > 0 and before[end] > 0:
        end = int(before[end])
        found.append(end)
    return found[::-1]


def _seasonal(x: np.ndarray, period: int, past_only: bool) -> np.ndarray:
    median = _usual(x, period, past_only)[0]
    return (x - median) / np.sqrt(np.maximum(median, 0) + 1)


def _usual(x: np.ndarray, period: int, past_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """(U, T) median, and median distance from it, of the student's known values of the same day, or the earlier ones; NaN for too few."""
    median, away = np.full(x.shape, np.nan), np.full(x.shape, np.nan)
    for t in range(x.shape[1]):
        if not past_only and t >= period:
            median[:, t], away[:, t] = median[:, t - period], away[:, t - period]
            continue
        own = x[:, t % period : t if past_only else None : period]
        enough = np.isfinite(own).sum(1) >= (_FEWEST if past_only else 1)
        median[enough, t] = np.nanmedian(own[enough], axis=1)
        away[enough, t] = np.nanmedian(np.abs(own - median[:, t, None])[enough], axis=1)
    return median, away


def _spread(x: np.ndarray, past_only: bool) -> np.ndarray:
    """(U, T) or (U, 1): standard deviation of the student's known values, or of the earlier ones."""
    known, value = np.isfinite(x), np.nan_to_num(x)
    count, total, squares = (part.astype(float).cumsum(1) for part in (known, value, value**2))
    mean = total / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    return np.pad(spread, ((0, 0), (1, 0)))[:, :-1] if past_only else spread[:, -1:]


def _surprise(x: np.ndarray, period: int, past_only: bool) -> np.ndarray:
    if x.shape[1] < 2 * period:
        return np.zeros(x.shape)
    if past_only:
        made = holt_winters(x, period=period, alpha=_ALPHA, beta=_BETA, gamma=_GAMMA, horizon=1)
    else:
        made = smooth(x, period=period, horizon=1)
    squares = (x - made.fitted) ** 2
    if past_only:
        squares[:, : 2 * period] = 0  # the first states are taken from there
        count = np.arange(x.shape[1]) - 2 * period
        variance = np.pad(squares.cumsum(1), ((0, 0), (1, 0)))[:, :-1] / np.maximum(count, 1)
        told = count >= _FEWEST
    else:
        variance, told = squares.mean(1, keepdims=True), np.ones(x.shape[1], bool)
    variance = np.maximum(variance, 1e-9)
    return np.where(told, squares / (2 * variance) + np.log(2 * np.pi * variance) / 2, 0.0)
