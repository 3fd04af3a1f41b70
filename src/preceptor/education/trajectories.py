"""Classes, clusters and anomalies of students' series, by scikit-learn where it has them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from preceptor.core.optional import require
from preceptor.education.dtw import dtw_matrix
from preceptor.education.forecasting import carried
from preceptor.education.panel import Panel, z_scored

Classifier = Literal["logistic", "boosting", "nearest", "nearest-dtw"]
"""Logistic regression or boosted trees on features; the label of the nearest series, by Euclid or by warping."""

Metric = Literal["euclid", "dtw", "k-means", "mixture"]
"""k-medoids by Euclid or by warping; scikit-learn's k-means and Gaussian mixture."""

Detector = Literal["seasonal", "value", "isolation"]
"""Residual to the median of the same weekday; the value itself; an isolation forest over windows."""


def features(panel: Panel, *, last: int = 7, period: int = 7) -> np.ndarray:
    """(U, 7): mean, standard deviation, slope, mean of the last values, longest and last run of zeros, entropy over the days of a season.

    Only known values count; all from the first dimension.
    """
    x, mask = panel.values[..., 0] * panel.mask, panel.mask
    count = np.maximum(mask.sum(1), 1)
    mean = x.sum(1) / count
    away = (x - mean[:, None]) * mask
    t = np.arange(x.shape[1]) * mask
    centred = (t - (t.sum(1) / count)[:, None]) * mask
    slope = (centred * away).sum(1) / np.maximum((centred**2).sum(1), 1e-12)
    recent = x[:, -last:].sum(1) / np.maximum(mask[:, -last:].sum(1), 1)
    zero = mask & (x == 0)
    run, longest = np.zeros(len(x)), np.zeros(len(x))
    for step in range(x.shape[1]):
        run = np.where(zero[:, step], run + 1, np.where(mask[:, step], 0, run))
        longest = np.maximum(longest, run)
    days = np.stack([np.abs(x[:, day::period]).sum(1) for day in range(period)], 1)
    share = days / np.maximum(days.sum(1, keepdims=True), 1e-12)
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(1)
    return np.stack([mean, np.sqrt((away**2).sum(1) / count), slope, recent, longest, run, entropy], 1)


def classify(
    train: Panel, test: Panel, method: Classifier, *, prefix: float = 1.0, radius: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Learn the labels of some students and tell those of others, from the first part of their series.

    Args:
        train: with labels (U,).
        test: of other students.
        method: see `Classifier`.
        prefix: share of the series that is known, in (0, 1].
        radius: of warping.
        seed: of the trees.
    Returns:
        Labels (V,), and for two classes the chance, or for a neighbour the margin, of the larger label, (V,).
    Raises:
        ValueError: no labels, only one class, or a prefix outside (0, 1].
    """
    if train.labels is None or train.labels.ndim != 1 or len(np.unique(train.labels)) < 2:
        raise ValueError("labels: expected one per student and at least two classes, got fewer")
    if not 0 < prefix <= 1:
        raise ValueError(f"prefix: expected a share in (0, 1], got {prefix}")
    steps = max(1, round(prefix * train.values.shape[1]))
    known, asked = train.first(steps), test.first(steps)
    labels = np.asarray(train.labels)
    if method in ("nearest", "nearest-dtw"):
        a, b = (z_scored(part, past=steps).values for part in (asked, known))
        distance = dtw_matrix(a, b, radius=radius if method == "nearest-dtw" else 0)  # without a band's width warping is Euclid
        positive = labels == labels.max()
        margin = distance[:, ~positive].min(1) - distance[:, positive].min(1)
        return labels[distance.argmin(1)], margin
    if method == "logistic":
        pipeline = require("sklearn.pipeline", extra="education", purpose="classification")
        scaling = require("sklearn.preprocessing", extra="education", purpose="classification")
        model = pipeline.make_pipeline(scaling.StandardScaler(), _linear().LogisticRegression(max_iter=1000))
    elif method == "boosting":
        model = require("sklearn.ensemble", extra="education", purpose="classification").HistGradientBoostingClassifier(
            max_iter=60, min_samples_leaf=5, random_state=seed
        )
    else:
        raise ValueError(f"method: expected logistic, boosting, nearest or nearest-dtw, got {method!r}")
    model.fit(features(known), labels)
    given = features(asked)
    return model.predict(given), model.predict_proba(given)[:, -1]


def cluster(panel: Panel, k: int, metric: Metric, *, radius: int | None = None, restarts: int = 10, seed: int = 0) -> np.ndarray:
    """Labels (U,) in [0, k) of the z-scored series.

    Raises:
        ValueError: k outside [1, U], or another metric.
    """
    if not 1 <= k <= len(panel.values):
        raise ValueError(f"k: expected a number in [1, {len(panel.values)}], got {k}")
    x = z_scored(panel, past=panel.values.shape[1]).values
    flat = x.reshape(len(x), -1)
    if metric == "k-means":
        means = require("sklearn.cluster", extra="education", purpose="clustering").KMeans(k, n_init=restarts, random_state=seed)
        return means.fit_predict(flat)
    if metric == "mixture":
        mixture = require("sklearn.mixture", extra="education", purpose="clustering")
        return mixture.GaussianMixture(k, covariance_type="diag", n_init=restarts, random_state=seed).fit_predict(flat)
    if metric not in ("euclid", "dtw"):
        raise ValueError(f"metric: expected euclid, dtw, k-means or mixture, got {metric!r}")
    return k_medoids(dtw_matrix(x, radius=radius if metric == "dtw" else 0), k, restarts=restarts, seed=seed)


def k_medoids(distances: np.ndarray, k: int, *, restarts: int = 10, seed: int = 0) -> np.ndarray:
    """Partitioning around medoids (Kaufman and Rousseeuw 1990): swap a medoid for another point while that lowers the sum of distances.

    Args:
        distances: (n, n).
        k: clusters, 1 <= k <= n.
        restarts: random beginnings; the best counts.
        seed: of these.
    """
    random, size = np.random.default_rng(seed), len(distances)
    best, labels = np.inf, np.zeros(size, np.int64)
    for _ in range(restarts):
        medoids = random.choice(size, k, replace=False)
        cost = distances[:, medoids].min(1).sum()
        while True:
            # sums after putting each point in the place of each medoid
            others = [np.delete(distances[:, medoids], place, 1).min(1, initial=np.inf) for place in range(k)]
            sums = np.stack([np.minimum(rest[:, None], distances).sum(0) for rest in others])
            place, point = np.unravel_index(sums.argmin(), sums.shape)
            if sums[place, point] >= cost - 1e-12:
                break
            medoids[place], cost = point, sums[place, point]
        if cost < best:
            best, labels = cost, distances[:, medoids].argmin(1)
    return labels


def detect(panel: Panel, method: Detector, *, period: int = 7, seed: int = 0) -> np.ndarray:
    """How strange every value is, (U, T); 0 where it is missing. Each score looks at the whole series of the student.

    Args:
        panel: counts, in its first dimension.
        method: ``seasonal``: (x - median) / sqrt(median + 1) over the student's same days of the season; ``value``: x itself;
            ``isolation``: a forest over the value, its distance from the day before, and its residual as above.
        period: of the season.
        seed: of the forest.
    Raises:
        ValueError: another method.
    """
    x = np.where(panel.mask, panel.values[..., 0], np.nan)
    residual = np.zeros(x.shape)
    for day in range(period):
        own = x[:, day::period]
        known = np.isfinite(own).any(1)
        median = np.zeros(len(x))
        median[known] = np.nanmedian(own[known], axis=1)
        residual[:, day::period] = (own - median[:, None]) / np.sqrt(np.maximum(median, 0)[:, None] + 1)
    if method == "seasonal":
        return np.where(panel.mask, residual, 0.0)
    if method == "value":
        return np.where(panel.mask, x, 0.0)
    if method != "isolation":
        raise ValueError(f"method: expected seasonal, value or isolation, got {method!r}")
    forest = require("sklearn.ensemble", extra="education", purpose="isolation forests").IsolationForest(random_state=seed)
    filled = carried(panel)
    rows = np.stack([filled, np.diff(filled, axis=1, prepend=filled[:, :1]), np.nan_to_num(residual)], -1)[panel.mask]
    found = np.zeros(x.shape)
    found[panel.mask] = -forest.fit(rows).score_samples(rows)
    return found


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


def _linear() -> Any:
    return require("sklearn.linear_model", extra="education", purpose="classification")
