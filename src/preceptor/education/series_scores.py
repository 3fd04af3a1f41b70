"""What forecasts, classes and alarms of students' series are worth: over rolling origins, as rankings, per group, and as delays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preceptor.education.forecasting import Forecaster, conformal_radius, forecast, mase, mase_scale, smape
from preceptor.education.panel import Panel, rolling_origins
from preceptor.education.scores import auc
from preceptor.education.series_networks import SeriesTraining


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sum over falling thresholds of (recall - recall before) precision, equal scores together; NaN without a positive item.

    The share of positive items is what chance gets, so that it shows rare classes as they are, where the AUC does not. Arrays (n,).
    """
    if not (labels == 1).any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # only the last of equal scores is a threshold
    found = np.cumsum(labels[order] == 1)[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def ranking(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``auc``, ``average_precision``, ``positives``, their share, and ``n``, of scores (n,) against labels of 0 and 1 (n,)."""
    share = float((labels == 1).mean()) if len(labels) else float("nan")
    return {
        "auc": auc(scores, labels),
        "average_precision": average_precision(scores, labels),
        "positives": share,
        "n": float(len(labels)),
    }


def by_group(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, threshold: float) -> dict[str, dict[str, float]]:
    """`ranking` of each group of students, with ``flagged``, the share at or above the threshold, ``recall`` and ``precision`` of it.

    Args:
        scores: (n,).
        labels: (n,) of 0 and 1.
        groups: (n,) names or numbers.
        threshold: the same for all groups.
    """
    found = {}
    for group in np.unique(groups):
        inside = groups == group
        found[str(group)] = ranking(scores[inside], labels[inside]) | flags(scores[inside] >= threshold, labels[inside])
    return found


def flags(flagged: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``flagged``, their share, and the ``precision`` and ``recall`` of it, NaN where there is nothing to divide by; arrays (n,)."""
    positive = labels == 1
    hits = int((flagged & positive).sum())
    return {
        "flagged": float(flagged.mean()) if len(flagged) else float("nan"),
        "precision": hits / int(flagged.sum()) if flagged.any() else float("nan"),
        "recall": hits / int(positive.sum()) if positive.any() else float("nan"),
    }


def detection(
    scores: np.ndarray, events: np.ndarray, threshold: float, *, mask: np.ndarray | None = None, grace: int = 0
) -> dict[str, float]:
    """How many events an alarm finds, how late, and how often it is false. Points are never credited for others of their event.

    An event is a run of 1 in a student's row. It is found by the first alarm from its first step to ``grace`` steps after its last one; an
    alarm is a known step whose score is at or above the threshold, and false where no event and no such time of grace is.

    Args:
        scores: (U, T); those that look at the future say nothing about delays, see ``past_only`` of `preceptor.education.anomalies.detect`.
        events: (U, T) of 0 and 1.
        threshold: of an alarm.
        mask: (U, T) known steps; None: all.
        grace: steps, >= 0.
    Returns:
        ``events``, their number; ``found``, the share that is found; ``delay``, mean steps from the first of an event to its alarm, a
        missed one counting as its whole length and the grace; ``delay_found``, the mean of the found ones; ``false_alarms`` per known step
        outside. NaN where there is nothing to divide by.
    Raises:
        ValueError: shapes differ, or a grace below 0.
    """
    if scores.shape != events.shape or scores.ndim != 2:
        raise ValueError(f"events: expected shape (U, T) {scores.shape} like scores, got {events.shape}")
    if grace < 0:
        raise ValueError(f"grace: expected at least 0, got {grace}")
    known = np.ones(scores.shape, bool) if mask is None else mask
    alarm, inside = (scores >= threshold) & known, np.zeros(scores.shape, bool)
    edges = np.diff(np.pad((events == 1).astype(int), ((0, 0), (1, 1))), axis=1)
    begins, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    delays, missed = [], []
    for (row, begin), (_, end) in zip(begins, ends, strict=True):
        inside[row, begin : end + grace] = True
        found = np.flatnonzero(alarm[row, begin : end + grace])
        delays += [int(found[0])] if len(found) else []
        missed += [] if len(found) else [int(end - begin) + grace]
    outside = known & ~inside
    return {
        "events": float(len(begins)),
        "found": len(delays) / len(begins) if len(begins) else float("nan"),
        "delay": float(np.mean(delays + missed)) if len(begins) else float("nan"),
        "delay_found": float(np.mean(delays)) if delays else float("nan"),
        "false_alarms": float(alarm[outside].mean()) if outside.any() else float("nan"),
    }


def compare_forecasts(
    panel: Panel,
    horizon: int,
    methods: Sequence[Forecaster],
    *,
    period: int = 7,
    origins: int = 3,
    alpha: float = 0.1,
    groups: np.ndarray | None = None,
    training: SeriesTraining | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Errors of forecasters over rolling origins: each forecasts from what was known at an origin and is judged by what came after.

    Intervals are split-conformal: errors of all earlier origins, each over the student's scale of the MASE, give the radius at a later
    one. Missing values are never judged.

    Args:
        panel: at least ``origins * horizon + 2`` steps; its first dimension.
        horizon: steps ahead.
        methods: see `Forecaster`.
        period: of the season.
        origins: number of them.
        alpha: share of values that may lie outside of the interval.
        groups: (U,) of the students, adds ``mase/GROUP``.
        training: of networks.
        seed: of networks.
    Returns:
        By method: ``mase``, mean over students and origins; ``smape``; ``coverage`` and ``width`` of the interval, in the unit of the
        series, over the origins but the first (NaN with a single one); ``excluded``, the share of students and origins without a scale.
    Raises:
        ValueError: the panel is too short.
    """
    found = {}
    for method in methods:
        errors, shares, covered, widths, residuals = [], [], [], [], np.zeros(0)
        for past, future in rolling_origins(panel.values.shape[1], horizon, count=origins):
            begun = panel.first(past.stop)
            said = forecast(begun, horizon, method, period=period, training=training, seed=seed)
            truth = np.where(panel.mask[:, future], panel.values[:, future, 0], np.nan)
            before = np.where(begun.mask, begun.values[..., 0], np.nan)
            errors.append(mase(said, truth, before, period=period))
            shares.append(smape(said[np.isfinite(truth)], truth[np.isfinite(truth)]))
            scale = mase_scale(before, period=period)[:, None]
            relative = (said - truth) / np.where(scale > 0, scale, np.nan)
            judged = np.isfinite(relative)
            if residuals.size:
                radius = conformal_radius(residuals, alpha=alpha)
                covered.append(np.abs(relative[judged]) <= radius)
                widths.append(np.broadcast_to(2 * radius * scale, judged.shape)[judged])
            residuals = np.concatenate([residuals, relative[judged]])
        all_errors = np.stack(errors, 1)
        found[method] = {
            "mase": _known_mean(all_errors),
            "smape": _known_mean(np.array(shares)),
            "coverage": _known_mean(np.concatenate([np.zeros(0), *covered])),
            "width": _known_mean(np.concatenate([np.zeros(0), *widths])),
            "excluded": float((~np.isfinite(all_errors)).mean()),
        }
        if groups is not None:
            found[method] |= {f"mase/{group}": _known_mean(all_errors[groups == group]) for group in np.unique(groups)}
    return found


def _known_mean(x: np.ndarray) -> float:
    known = x[np.isfinite(x)]
    return float(known.mean()) if known.size else float("nan")
