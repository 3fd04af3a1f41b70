"""Clusters of students' series, and how many there are: silhouettes, and whether the same clusters come back from other samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from preceptor.core.optional import require
from preceptor.education.dtw import dtw_matrix
from preceptor.education.panel import Panel, z_scored

Metric = Literal["euclid", "dtw", "k-means", "mixture"]
"""k-medoids by Euclid or by warping; scikit-learn's k-means and Gaussian mixture."""

_ON_POINTS = ("k-means", "mixture")


def cluster(panel: Panel, k: int, metric: Metric, *, radius: int | None = None, restarts: int = 10, seed: int = 0) -> np.ndarray:
    """Labels (U,) in [0, k) of the z-scored series.

    Raises:
        ValueError: k outside [1, U], or another metric.
    """
    if not 1 <= k <= len(panel.values):
        raise ValueError(f"k: expected a number in [1, {len(panel.values)}], got {k}")
    x = _scaled(panel, metric)
    return _labels(x if metric in _ON_POINTS else _distances(x, metric, radius), k, metric, restarts, seed)


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


def adjusted_rand(first: np.ndarray, second: np.ndarray) -> float:
    """Agreement of two partitions of n items, 1 for the same one and about 0 by chance (Hubert and Arabie 1985)."""
    table = np.zeros((int(first.max()) + 1, int(second.max()) + 1))
    np.add.at(table, (first, second), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns, total = pairs(table), pairs(table.sum(1)), pairs(table.sum(0)), pairs(np.array([float(len(first))]))
    chance = rows * columns / total if total else 0.0
    largest = (rows + columns) / 2
    return (both - chance) / (largest - chance) if largest != chance else 1.0


def silhouette(distances: np.ndarray, labels: np.ndarray) -> float:
    """Mean over n items of (b - a) / max(a, b), in [-1, 1]; 0 for an item that is alone, NaN with a single cluster.

    Rousseeuw 1987: a is the mean distance to the others of its own cluster, b that to the nearest other cluster.

    Args:
        distances: (n, n).
        labels: (n,).
    """
    names, place = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return float("nan")
    member = np.eye(len(names))[place]
    sums, counts = distances @ member, member.sum(0)
    own = counts[place]
    a = sums[np.arange(len(place)), place] / np.maximum(own - 1, 1)
    b = np.where(member > 0, np.inf, sums / counts).min(1)
    largest = np.maximum(a, b)
    return float(np.where((own > 1) & (largest > 0), (b - a) / np.where(largest > 0, largest, 1.0), 0.0).mean())


def partition_quality(
    panel: Panel,
    ks: Iterable[int],
    metric: Metric,
    *,
    radius: int | None = None,
    pairs: int = 10,
    restarts: int = 5,
    seed: int = 0,
) -> dict[int, dict[str, float]]:
    """What speaks for each number of clusters: ``silhouette``, and ``stability``, the mean agreement over pairs of bootstrap samples.

    Two samples of U students, with replacement, are clustered, and the labels of the students who are in both are compared by the adjusted
    Rand index (Ben-Hur, Elisseeff, Guyon 2002, with the bootstrap for their subsamples). Clusters that are there come back; a number
    that cuts them anyhow does not. Every number of clusters sees the same samples.

    Args:
        panel: of U students.
        ks: numbers of clusters, each in [2, U].
        metric: see `Metric`; silhouettes are of warping distances for ``dtw``, of Euclid's for the others.
        radius: of warping.
        pairs: of samples, at least 1.
        restarts: of every clustering.
        seed: of samples and clusterings.
    Raises:
        ValueError: a number out of range, or another metric.
    """
    if pairs < 1:
        raise ValueError(f"pairs: expected at least 1, got {pairs}")
    x = _scaled(panel, metric)
    distances, size = _distances(x, metric, radius), len(x)

    def labels_of(rows: np.ndarray, k: int) -> np.ndarray:
        return _labels(x[rows] if metric in _ON_POINTS else distances[np.ix_(rows, rows)], k, metric, restarts, seed)

    random = np.random.default_rng(seed)
    samples = random.integers(0, size, (pairs, 2, size))
    found = {}
    for k in ks:
        if not 2 <= k <= size:
            raise ValueError(f"ks: expected numbers in [2, {size}], got {k}")
        agreement = []
        for pair in samples:
            told = np.full((2, size), -1)
            for side, rows in enumerate(pair):
                told[side, rows] = labels_of(rows, k)
            both = (told >= 0).all(0)
            agreement.append(adjusted_rand(told[0, both], told[1, both]))
        whole = silhouette(distances, labels_of(np.arange(size), k))
        found[k] = {"silhouette": whole, "stability": float(np.mean(agreement))}
    return found


def _scaled(panel: Panel, metric: Metric) -> np.ndarray:
    """Z-scored series (U, T, d)."""
    if metric not in ("euclid", "dtw", "k-means", "mixture"):
        raise ValueError(f"metric: expected euclid, dtw, k-means or mixture, got {metric!r}")
    return z_scored(panel, past=panel.values.shape[1]).values


def _distances(x: np.ndarray, metric: Metric, radius: int | None) -> np.ndarray:
    return dtw_matrix(x, radius=radius if metric == "dtw" else 0)  # without a band's width warping is Euclid


def _labels(data: np.ndarray, k: int, metric: Metric, restarts: int, seed: int) -> np.ndarray:
    """Labels (n,) from series (n, T, d), or from distances (n, n) for medoids."""
    if metric == "k-means":
        means = require("sklearn.cluster", extra="education", purpose="clustering").KMeans(k, n_init=restarts, random_state=seed)
        return means.fit_predict(data.reshape(len(data), -1))
    if metric == "mixture":
        mixture = require("sklearn.mixture", extra="education", purpose="clustering")
        model = mixture.GaussianMixture(k, covariance_type="diag", n_init=restarts, random_state=seed)
        return model.fit_predict(data.reshape(len(data), -1))
    return k_medoids(data, k, restarts=restarts, seed=seed)
