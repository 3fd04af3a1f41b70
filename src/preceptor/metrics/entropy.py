"""Entropies of samples, headings, similarities and spectra, each divided by its largest value so that 0 is order and 1 disorder.

numpy arrays in, floats out; nothing is kept between calls. Shannon entropies are in nats before the division. NaN means that there was
nothing to count. The defaults are those of dewi-kadita (Herho et al. 2026, arXiv:2602.07948), which measures schools of fish with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preceptor.core.optional import require

Array = NDArray[np.float64]
Sphere = Literal["sine", "equal-area"]
"""How `heading_entropy` divides the sphere."""

_BLOCK = 1 << 20  # similarities held at once
_PARALLEL = 20_000  # points from which the search for neighbours takes all cores


def unit(vectors: ArrayLike) -> Array:
    """Vectors (N, D) at length 1; one shorter than 1e-10 keeps its length."""
    vectors = np.asarray(vectors, dtype=float)
    length = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return vectors / np.where(length < 1e-10, 1.0, length)


def normalised_entropy(mass: ArrayLike, *, num_samples: float | None = None) -> float:
    """Entropy of a distribution over bins, divided by that of the uniform one.

        H = -sum_b p_b ln p_b / ln B,   p = mass / sum(mass),   and with the correction of Miller and Madow (1955)
        H = (-sum_b p_b ln p_b + (K - 1) / (2 n)) / ln B,       K bins that hold something, n samples.

    The plain estimate is too small by about (K - 1) / (2 n), which is much when samples are fewer than bins.

    Args:
        mass: counts or weights of B bins, >= 0, any shape.
        num_samples: n, which asks for the correction; None: none.
    Returns:
        In [0, 1]: a corrected value above 1 is cut; 0 for one bin; NaN when all masses are 0.
    Raises:
        ValueError: no bin, a mass below 0 or not finite, or num_samples <= 0.
    """
    mass = np.asarray(mass, dtype=float).ravel()
    if not mass.size or not np.isfinite(mass).all() or (mass < 0).any():
        raise ValueError(f"mass: expected at least one bin, all finite and >= 0, got {mass[:6].tolist()}")
    if num_samples is not None and not num_samples > 0:
        raise ValueError(f"num_samples: expected a number above 0, got {num_samples}")
    p = mass[mass > 0]
    if not p.size:
        return math.nan
    p = p / p.sum()
    entropy = -float((p * np.log(p)).sum())
    if num_samples is not None:
        entropy += (p.size - 1) / (2 * num_samples)
    return min(1.0, max(0.0, entropy / math.log(mass.size))) if mass.size > 1 else 0.0


def histogram_entropy(
    samples: ArrayLike, *, bins: int, range: tuple[float, float], weights: ArrayLike | None = None, correction: bool = False
) -> float:
    """`normalised_entropy` of a histogram with equal bins.

    Args:
        samples: any shape; those outside the range are dropped, its upper end belongs to the last bin.
        bins: number of bins, >= 1.
        range: lower and upper end.
        weights: of the samples, the same shape, >= 0; None: all 1.
        correction: Miller and Madow's, with n the effective number of samples in the range, sum(w)^2 / sum(w^2).
    Raises:
        ValueError: a sample or a weight that is not finite, shapes that differ, no bin, or an empty range.
    """
    samples = _finite("samples", samples)
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    low, high = range
    if not low < high:
        raise ValueError(f"range: expected two ends, the lower first, got ({low}, {high})")
    inside = (samples >= low) & (samples <= high)
    kept = np.ones(samples.shape) if weights is None else _finite("weights", weights)
    if kept.shape != samples.shape:
        raise ValueError(f"weights: expected shape {samples.shape} like samples, got {kept.shape}")
    mass = np.histogram(samples, bins=bins, range=range, weights=None if weights is None else kept)[0]
    used = kept[inside]
    size = used.sum() ** 2 / (used**2).sum() if correction and used.any() else None
    return normalised_entropy(mass, num_samples=size)


def heading_entropy(
    headings: ArrayLike, *, bins: tuple[int, int] = (12, 24), weighting: Sphere = "sine", correction: bool = False
) -> float:
    """Entropy of directions in space over a grid of polar angle and azimuth.

    ``"sine"`` is the published form (arXiv:2602.07948): bins equal in the polar angle, counts multiplied by the sine at the bin's centre.
    That counts area twice: uniform directions give 0.946 with the default bins, not 1. ``"equal-area"`` has bins equal in the cosine,
    with no weights, and uniform directions give 1. Both are too small with few directions: see the correction.

    Args:
        headings: (N, 3), of any length above 0; one of length 0 counts as lying in the plane, towards +x.
        bins: of the polar angle and of the azimuth.
        weighting: see above.
        correction: Miller and Madow's, with n = N.
    Returns:
        In [0, 1]; NaN for N = 0.
    Raises:
        ValueError: another shape, a number that is not finite, no bin, or another weighting.
    """
    headings = _finite("headings", headings)
    if headings.ndim != 2 or headings.shape[1] != 3:
        raise ValueError(f"headings: expected shape (N, 3), got {headings.shape}")
    if min(bins) < 1:
        raise ValueError(f"bins: expected two numbers above 0, got {bins}")
    if weighting not in ("sine", "equal-area"):
        raise ValueError(f"weighting: expected 'sine' or 'equal-area', got {weighting!r}")
    u = unit(headings)
    height = np.clip(u[:, 2], -1, 1)
    polar, ends = (np.arccos(height), (0.0, math.pi)) if weighting == "sine" else (height, (-1.0, 1.0))
    azimuth = np.arctan2(u[:, 1], u[:, 0]) + math.pi
    mass = np.histogram2d(polar, azimuth, bins=bins, range=(ends, (0.0, 2 * math.pi)))[0]
    if weighting == "sine":
        edges = np.linspace(0, math.pi, bins[0] + 1)
        mass *= np.sin((edges[:-1] + edges[1:]) / 2)[:, None]
    return normalised_entropy(mass, num_samples=len(u) if correction and len(u) else None)


def eigenvalue_entropy(points: ArrayLike, *, floor: float = 1e-10) -> float:
    """Entropy of the spectrum of the sample covariance: how many directions the points fill.

        H = -sum_k p_k ln p_k / ln D,   p = eigenvalues / sum(eigenvalues).

    D ** H is the effective rank (Roy and Vetterli 2007). 1 is a round cloud, 0 a line.

    Args:
        points: (N, D), N >= 2, D >= 1.
        floor: smallest eigenvalue, > 0, in squared units of the points, as in arXiv:2602.07948.
    Raises:
        ValueError: another shape, fewer than 2 points, a number that is not finite, or a floor <= 0.
    """
    points = _finite("points", points)
    if points.ndim != 2 or len(points) < 2 or not points.shape[1]:
        raise ValueError(f"points: expected shape (N, D) with N >= 2, got {points.shape}")
    if not floor > 0:
        raise ValueError(f"floor: expected a number above 0, got {floor}")
    apart = points - points.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(apart.T @ apart / (len(points) - 1))
    return normalised_entropy(np.maximum(eigenvalues, floor))


def similarity_entropy(vectors: ArrayLike, *, bins: int = 20, max_pairs: int = 8_000_000, seed: int = 0) -> float:
    """Entropy of the cosine similarities of all pairs, (1 + cos) / 2 over equal bins of [0, 1].

    All pairs are counted while they are at most ``max_pairs`` (4000 vectors by default), block by block. Beyond, so many pairs are drawn
    with the seed: the share of a bin is then off by at most 0.5 / sqrt(max_pairs), one standard deviation, 0.0002 by default.

    Args:
        vectors: (N, D), any length; directions are compared, and a vector of length 0 is unlike all by 0.5.
        bins: number of bins, >= 1.
        max_pairs: >= 1.
        seed: of the pairs drawn.
    Returns:
        In [0, 1]; NaN for N < 2.
    Raises:
        ValueError: another shape, a number that is not finite, no bin, or max_pairs < 1.
    """
    vectors = _finite("vectors", vectors)
    if vectors.ndim != 2:
        raise ValueError(f"vectors: expected shape (N, D), got {vectors.shape}")
    if bins < 1 or max_pairs < 1:
        raise ValueError(f"bins, max_pairs: expected numbers above 0, got {bins}, {max_pairs}")
    counts = np.zeros(bins, dtype=np.int64)
    for cosines in _similarities(unit(vectors), max_pairs, seed):
        counts += np.histogram(np.clip((cosines + 1) / 2, 0, 1), bins=bins, range=(0, 1))[0]
    return normalised_entropy(counts)


def knn_distances(points: ArrayLike, k: int, *, box: float | None = None) -> Array:
    """Distances to the k nearest others, by a k-d tree.

    Args:
        points: (N, D), N > k; with a box all in [0, box).
        k: >= 1.
        box: side of a periodic cube, None: open space.
    Returns:
        (N, k), ascending.
    Raises:
        ValueError: another shape, too few points, a number that is not finite, or a point outside the box.
        ImportError: scipy is missing.
    """
    points = _finite("points", points)
    if points.ndim != 2:
        raise ValueError(f"points: expected shape (N, D), got {points.shape}")
    if not 1 <= k < len(points):
        raise ValueError(f"k: expected 1 to {len(points) - 1} for {len(points)} points, got {k}")
    if box is not None and not ((points >= 0) & (points < box)).all():
        raise ValueError(f"points: expected all in [0, {box:g}), got {points.min():g} to {points.max():g}")
    spatial = require("scipy.spatial", extra="study", purpose="nearest neighbours")
    workers = -1 if len(points) >= _PARALLEL else 1
    return spatial.cKDTree(points, boxsize=box).query(points, k=k + 1, workers=workers)[0][:, 1:]


def knn_variation(distances: ArrayLike) -> Array:
    """Coefficient of variation of each point's distances (arXiv:2602.07948): population standard deviation / (mean + 1e-10).

    Args:
        distances: (N, k), from `knn_distances`.
    Returns:
        (N,), >= 0; 0 where all are equal.
    """
    distances = _finite("distances", distances)
    return distances.std(axis=1) / (distances.mean(axis=1) + 1e-10)


def composite_index(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted sum of named measures: in [0, 1] when they are.

    Args:
        values: at least the names of the weights.
        weights: >= 0, with sum 1.
    Raises:
        ValueError: a weight without value, a weight below 0, or a sum that is not 1.
    """
    missing = sorted(weights.keys() - values.keys())
    if missing:
        raise ValueError(f"values: expected a value for each weight, got none for {', '.join(missing)}")
    if min(weights.values(), default=0.0) < 0 or not math.isclose(sum(weights.values()), 1.0, abs_tol=1e-9):
        raise ValueError(f"weights: expected numbers >= 0 with sum 1, got {dict(weights)}")
    return sum(weight * values[name] for name, weight in weights.items())


def _similarities(vectors: Array, max_pairs: int, seed: int) -> Iterator[Array]:
    """Inner products of all pairs i < j in blocks, or of pairs drawn at random."""
    n = len(vectors)
    if n * (n - 1) // 2 > max_pairs:
        rng = np.random.default_rng(seed)
        for start in range(0, max_pairs, _BLOCK):
            size = min(_BLOCK, max_pairs - start)
            first = rng.integers(n, size=size)
            second = (first + rng.integers(1, n, size=size)) % n  # another one, each with the same chance
            yield np.einsum("nd,nd->n", vectors[first], vectors[second])
        return
    rows = max(1, _BLOCK // max(n, 1))
    for start in range(0, n, rows):
        block = vectors[start : start + rows]
        products = block @ vectors[start:].T
        yield products[:, : len(block)][np.triu_indices(len(block), 1)]
        yield products[:, len(block) :].ravel()


def _finite(name: str, values: ArrayLike) -> Array:
    values = np.asarray(values, dtype=float)
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise ValueError(f"{name}: expected finite numbers, got {bad} of {values.size} that are not")
    return values
