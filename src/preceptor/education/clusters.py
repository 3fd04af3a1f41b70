"""Clusters whose number is found: DP-means, refined until the strategies inside one are interchangeable, and even samples of them.

Kulis and Jordan 2012, Revisiting k-means: New Algorithms via Bayesian Nonparametrics (arXiv:1111.0352), minimise
    sum_i |x_i - mu_{a_i}|^2 + lambda K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """``labels`` (n,) in [0, K), ``centres`` (K, D), the objective after every sweep, and the penalty that was used."""

    labels: np.ndarray
    centres: np.ndarray
    trace: tuple[float, ...]
    penalty: float


def dp_means(
    x: np.ndarray, penalty: float, *, max_iter: int = 100, restarts: int = 3, max_clusters: int | None = None, seed: int = 0
) -> Clusters:
    """Cluster points, a new cluster costing ``penalty``; the best of some orders of the points.

    Args:
        x: (n, D), n >= 1.
        penalty: lambda > 0, a squared distance.
        max_iter: sweeps.
        restarts: orders tried.
        max_clusters: with more than that the penalty is doubled.
        seed: of the orders.
    Raises:
        ValueError: no point, a value that is not finite, or a penalty that is not > 0.
    """
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"x: expected at least one row of finite numbers, got shape {x.shape}")
    if not 0 < penalty < float("inf"):
        raise ValueError(f"penalty: expected a finite number > 0, got {penalty}")
    random = np.random.default_rng(seed)
    while True:
        found = [_one(x, penalty, random.permutation(len(x)), max_iter) for _ in range(restarts)]
        best = min(found, key=lambda clusters: clusters.trace[-1])
        if max_clusters is None or len(best.centres) <= max_clusters:
            return best
        penalty *= 2


def _one(x: np.ndarray, penalty: float, order: np.ndarray, max_iter: int) -> Clusters:
    centres = np.empty((0, x.shape[1]))  # the first point opens the first cluster
    labels, trace = np.full(len(x), -1), []
    for _ in range(max_iter):
        distance = squared_distances(x, centres)
        nearest = distance.min(1, initial=np.inf)
        assigned = distance.argmin(1) if len(centres) else labels
        for i in order:  # in this order a point that is too far opens a cluster, which later points may join
            if nearest[i] > penalty:
                own = ((x - x[i]) ** 2).sum(1)
                closer = own < nearest
                nearest, assigned = np.where(closer, own, nearest), np.where(closer, len(centres), assigned)
                centres = np.concatenate([centres, x[i : i + 1]])
        used, assigned = np.unique(assigned, return_inverse=True)
        centres = _means(x, assigned, len(used))
        trace.append(float(((x - centres[assigned]) ** 2).sum() + penalty * len(used)))
        if np.array_equal(assigned, labels):
            break
        labels = assigned
    return Clusters(labels=labels, centres=centres, trace=tuple(trace), penalty=penalty)


def squared_distances(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n, K)."""
    return np.array([((x - centre) ** 2).sum(1) for centre in centres]).reshape(len(centres), len(x)).T


def _means(x: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, x.shape[1]))
    np.add.at(sums, labels, x)
    return sums / np.bincount(labels, minlength=count)[:, None]


def default_penalty(x: np.ndarray, *, guess: int = 10) -> float:
    """The largest squared distance to the nearest of ``guess`` points that were picked farthest first, from the mean on (Kulis, Jordan)."""
    nearest = ((x - x.mean(0)) ** 2).sum(1)
    for _ in range(min(guess, len(x) - 1)):
        nearest = np.minimum(nearest, ((x - x[nearest.argmax()]) ** 2).sum(1))
    return float(max(nearest.max(), 1e-12))


def edit_distance(first: Sequence[int], second: Sequence[int]) -> int:
    """Levenshtein: fewest insertions, deletions and replacements."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def similarity(first: Sequence[int], second: Sequence[int]) -> float:
    """1 less the edit distance over the longer length; 1 for two empty ones."""
    longest = max(len(first), len(second))
    return 1 - edit_distance(first, second) / longest if longest else 1.0


def symmetry(strategies: Sequence[Sequence[int]], *, pairs: int = 30, seed: int = 0) -> float:
    """Mean `similarity` of at most ``pairs`` pairs of different members; 1 with fewer than two."""
    if len(strategies) < 2:
        return 1.0
    random = np.random.default_rng(seed)
    first = random.integers(0, len(strategies), pairs)
    second = (first + random.integers(1, len(strategies), pairs)) % len(strategies)
    return float(np.mean([similarity(strategies[a], strategies[b]) for a, b in zip(first, second, strict=True)]))


def refine(
    x: np.ndarray,
    strategies: Sequence[Sequence[int]],
    *,
    penalty: float | None = None,
    threshold: float = 0.8,
    min_members: int = 10,
    levels: int = 6,
    fit_on: int = 20_000,
    seed: int = 0,
) -> np.ndarray:
    """Labels (n,), coarse to fine: a cluster of more than ``min_members`` with a symmetry below ``threshold`` is split at half the penalty.

    Args:
        x: (n, D).
        strategies: n of them.
        penalty: of the first level; None: `default_penalty`.
        threshold: sigma.
        min_members: n_min.
        levels: at most.
        fit_on: of more points than that, so many are drawn and clustered, the others go to the nearest mean.
        seed: of orders, pairs and what is drawn.
    """
    if len(x) > fit_on:
        rows = np.random.default_rng(seed).choice(len(x), fit_on, replace=False)
        options = {"penalty": penalty, "threshold": threshold, "min_members": min_members, "levels": levels, "seed": seed}
        found = refine(x[rows], [strategies[row] for row in rows], fit_on=fit_on, **options)
        means = _means(x[rows], found, int(found.max()) + 1)
        parts = np.array_split(x, -(-len(x) // fit_on))
        labels = np.concatenate([squared_distances(part, means).argmin(1) for part in parts])
        labels[rows] = found
        return labels
    penalty = default_penalty(x) if penalty is None else penalty
    labels = dp_means(x, penalty, seed=seed).labels
    settled: set[int] = set()
    for _ in range(levels - 1):
        penalty /= 2
        for label in sorted(set(labels.tolist()) - settled):
            members = np.flatnonzero(labels == label)
            if len(members) <= min_members or symmetry([strategies[i] for i in members], seed=seed) >= threshold:
                settled.add(label)
                continue
            parts = dp_means(x[members], penalty, max_clusters=max(2, len(members) // min_members), seed=seed).labels
            labels[members] = np.where(parts == 0, label, labels.max() + parts)
    return np.unique(labels, return_inverse=True)[1]


def cluster_sample(labels: np.ndarray, budget: int, *, seed: int = 0) -> np.ndarray:
    """``budget`` members, as many of each cluster as there are: ceil(budget / K) at most, what is left over goes round the larger ones.

    Args:
        labels: (n,) in [0, K).
        budget: 1 <= budget <= n.
        seed: of the draw.
    Raises:
        ValueError: budget out of range.
    """
    if not 1 <= budget <= len(labels):
        raise ValueError(f"budget: expected a number in [1, {len(labels)}], got {budget}")
    random = np.random.default_rng(seed)
    members = [random.permutation(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]
    members = sorted((part for part in members if len(part)), key=len, reverse=True)
    cap = -(-budget // len(members))
    taken = [min(len(part), cap) for part in members]
    place = len(members) - 1
    while sum(taken) > budget:  # ceil may have taken too many: the smallest clusters that reached it give one back
        if taken[place] == cap:
            taken[place] -= 1
        place -= 1
    while sum(taken) < budget:
        for i, part in enumerate(members):
            if taken[i] < len(part) and sum(taken) < budget:
                taken[i] += 1
    return np.sort(np.concatenate([part[:count] for part, count in zip(members, taken, strict=True)]))
