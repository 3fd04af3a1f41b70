"""How ordered a school is: two order parameters, seven entropies, and their weighted sum.

Herho et al. 2026 (arXiv:2602.07948), with options for what is biased there; the entropies themselves are in `preceptor.metrics.entropy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from preceptor.metrics.entropy import (
    Sphere,
    composite_index,
    eigenvalue_entropy,
    heading_entropy,
    histogram_entropy,
    knn_distances,
    knn_variation,
    similarity_entropy,
    unit,
)
from preceptor.simulation.motion import Frame
from preceptor.simulation.zones import Array

Centroid = Literal["mean", "circular"]
"""Middle of a school: the mean of positions in the box, as published, or one that a boundary does not shift."""

INDEX_WEIGHTS: Mapping[str, float] = {
    "school_cohesion_entropy": 0.18,
    "polarization_entropy": 0.28,
    "depth_stratification_entropy": 0.08,
    "angular_momentum_entropy": 0.08,
    "nearest_neighbor_entropy": 0.10,
    "velocity_correlation_entropy": 0.18,  # + as in the code; the README of the release has 1 - H6
    "school_shape_entropy": 0.10,
}
"""The Oceanic Schooling Index: 0 order, 1 disorder."""

ENTROPIES = tuple(INDEX_WEIGHTS)
METRICS = ("polarization", "rotation", "spread", "order_index", *ENTROPIES, "oceanic_schooling_index")
NEIGHBOURS = 5
_TOO_FEW = 0.5  # what the paper gives where there are too few fish to say


def metrics(
    positions: Array,
    velocities: Array,
    box: float,
    *,
    centroid: Centroid = "mean",
    sphere: Sphere = "sine",
    correction: bool = False,
) -> dict[str, float]:
    """Order parameters, entropies and index of one state, under the names of `METRICS`.

    With u the headings and c the directions from the centroid:
        polarization P = |mean u|,   rotation M = |mean c x u|,   spread = root mean square distance,   order_index = max(P, M);
        school_cohesion       distance to the nearest other, 25 bins on [0, box / 2];
        polarization          headings on the sphere, 12 x 24 bins;
        depth_stratification  z, 15 bins on [0, box];
        angular_momentum      |c x u|, 20 bins on [0, 1];
        nearest_neighbor      coefficient of variation of the 5 nearest distances, 20 bins on [0, 2];
        velocity_correlation  (1 + u_i . u_j) / 2 of all pairs, 20 bins on [0, 1]; beyond 4000 fish of pairs drawn at random;
        school_shape          eigenvalues of the covariance of positions;
        oceanic_schooling_index = sum of `INDEX_WEIGHTS` times entropies.
    An entropy is 0.5 where there are too few fish for it, as published.

    Args:
        positions: (N, 3) in [0, box).
        velocities: (N, 3).
        box: side of the periodic cube.
        centroid: ``"circular"`` also unwraps the positions about it before rotation, spread, momentum and shape; see `Centroid`.
        sphere: how the sphere of headings is divided; see `heading_entropy`.
        correction: Miller and Madow's for the five entropies over single fish; pairs of fish are no independent samples.
    Raises:
        ValueError: shapes that differ, no fish, a position outside the box, or another centroid.
        ImportError: scipy is missing.
    """
    if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions) or velocities.shape != positions.shape:
        raise ValueError(f"positions, velocities: expected the same shape (N, 3), N >= 1, got {positions.shape} and {velocities.shape}")
    agents = len(positions)
    heading, away = unit(velocities), from_centroid(positions, box, centroid)
    momentum = np.cross(unit(away), heading)
    polarization, rotation = (float(np.linalg.norm(x.mean(axis=0))) for x in (heading, momentum))
    near = knn_distances(positions, min(NEIGHBOURS, agents - 1), box=box) if agents > 1 else np.empty((1, 0))
    enough = agents > NEIGHBOURS

    def histogram(samples: Array, bins: int, high: float) -> float:
        return histogram_entropy(samples, bins=bins, range=(0.0, high), correction=correction)

    values = {
        "school_cohesion_entropy": histogram(near[:, 0], 25, box / 2) if agents > 1 else _TOO_FEW,
        "polarization_entropy": heading_entropy(heading, weighting=sphere, correction=correction),
        "depth_stratification_entropy": histogram(positions[:, 2], 15, box),
        "angular_momentum_entropy": histogram(np.minimum(np.linalg.norm(momentum, axis=1), 1.0), 20, 1.0) if agents > 2 else _TOO_FEW,
        "nearest_neighbor_entropy": histogram(knn_variation(near), 20, 2.0) if enough else _TOO_FEW,
        "velocity_correlation_entropy": similarity_entropy(heading) if agents > 1 else _TOO_FEW,
        "school_shape_entropy": eigenvalue_entropy(away) if agents > 3 else _TOO_FEW,
    }
    values = {name: _TOO_FEW if math.isnan(value) else value for name, value in values.items()}  # all samples outside the range
    return {
        "polarization": polarization,
        "rotation": rotation,
        "spread": math.sqrt(float((away * away).sum(axis=1).mean())),
        "order_index": max(polarization, rotation),
        **values,
        "oceanic_schooling_index": composite_index(values, INDEX_WEIGHTS),
    }


def from_centroid(positions: Array, box: float, centroid: Centroid = "mean") -> Array:
    """Positions relative to the middle of the school, (N, 3).

    The mean of positions in a periodic box is wrong for a school that a boundary cuts. The circular mean takes each axis as a circle
    (Bai and Breen 2008), and positions are then those of the nearest image.

    Raises:
        ValueError: another centroid.
    """
    if centroid == "mean":
        return positions - positions.mean(axis=0)
    if centroid != "circular":
        raise ValueError(f"centroid: expected 'mean' or 'circular', got {centroid!r}")
    angle = positions * (2 * math.pi / box)
    middle = np.arctan2(np.sin(angle).mean(axis=0), np.cos(angle).mean(axis=0)) * (box / (2 * math.pi))
    apart = positions - middle
    apart -= box * np.round(apart / box)
    return apart - apart.mean(axis=0)


def state_label(polarization: float, rotation: float) -> str:
    """The paper's name of a state."""
    if polarization > 0.9:
        return "highly parallel"
    if polarization > 0.7:
        return "dynamic parallel"
    if rotation > 0.5:
        return "torus"
    return "transitional" if polarization > 0.4 or rotation > 0.3 else "swarm"


def metrics_series(
    frames: Iterable[Frame], box: float, *, centroid: Centroid = "mean", sphere: Sphere = "sine", correction: bool = False
) -> dict[str, Array]:
    """`metrics` of every frame: name -> (frames,)."""
    found = [metrics(f.positions, f.velocities, box, centroid=centroid, sphere=sphere, correction=correction) for f in frames]
    return {name: np.array([values[name] for values in found]) for name in METRICS}


def summary(series: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Of every series mean and population standard deviation over its second half, last value, and smallest and largest of all."""
    return {
        name: {
            "mean": float(values[len(values) // 2 :].mean()),
            "sd": float(values[len(values) // 2 :].std()),
            "final": float(values[-1]),
            "min": float(values.min()),
            "max": float(values.max()),
        }
        for name, values in series.items()
    }
