"""How many clusters: silhouettes against scikit-learn, and what comes back from other samples."""

import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, silhouette_score

from preceptor.education.panel import panel_of, synthetic_panel, z_scored
from preceptor.education.partitions import adjusted_rand, cluster, k_medoids, partition_quality, silhouette

RANDOM = np.random.default_rng(0)


def apart(students=30, noise=0.02):
    """Series of three shapes far apart."""
    t = np.linspace(0, 1, 12)
    shapes = np.stack([t, -t, np.abs(t - 0.5)])
    label = np.arange(students) % 3
    return panel_of(shapes[label] + noise * np.random.default_rng(3).standard_normal((students, 12)), labels=label)


def test_silhouettes_are_those_of_scikit_learn():
    x = RANDOM.standard_normal((25, 3))
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    for labels in (RANDOM.integers(0, 4, 25), np.r_[np.zeros(24, int), 1], 7 + 3 * (x[:, 0] > 0).astype(int)):
        assert math.isclose(silhouette(distances, labels), silhouette_score(distances, labels, metric="precomputed"), rel_tol=1e-9)
    assert math.isnan(silhouette(distances, np.zeros(25, int)))
    assert silhouette(np.zeros((4, 4)), np.array([0, 0, 1, 1])) == 0
    twice = np.repeat([0.0, 9.0], 3)
    assert silhouette(np.abs(twice[:, None] - twice), np.repeat([4, 2], 3)) == 1


@pytest.mark.parametrize("metric", ["euclid", "dtw", "k-means", "mixture"])
def test_the_true_number_comes_back_and_too_many_do_not(metric):
    panel = apart()
    found = partition_quality(panel, (2, 3, 5), metric, pairs=3, restarts=3)
    assert found[3]["stability"] == 1
    assert found[3]["silhouette"] == max(row["silhouette"] for row in found.values())
    assert found[5]["stability"] < 0.9
    assert found[3] == partition_quality(panel, (3,), metric, pairs=3, restarts=3)[3]  # samples do not depend on the other numbers
    assert adjusted_rand(cluster(panel, 3, metric), panel.labels) == 1


def test_noise_is_not_stable_and_warped_shapes_are_by_warping_alone():
    noise = partition_quality(panel_of(RANDOM.standard_normal((40, 12))), (3,), "euclid", pairs=4)
    assert noise[3]["stability"] < 0.5
    shapes = synthetic_panel("archetypes", 0, students=45)
    warped, euclid = (partition_quality(shapes, (3,), metric, pairs=4)[3] for metric in ("dtw", "euclid"))
    assert warped["stability"] > euclid["stability"]
    assert warped["silhouette"] > euclid["silhouette"]
    narrow = partition_quality(shapes, (3,), "dtw", pairs=1, radius=0)[3]
    assert narrow == partition_quality(shapes, (3,), "euclid", pairs=1)[3]


def test_stability_against_a_slow_loop():
    panel = apart(12, noise=0.6)
    flat = z_scored(panel, past=12).values[..., 0]
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    agreement = []
    for first, second in np.random.default_rng(5).integers(0, 12, (3, 2, 12)):
        told = [
            dict(zip(rows.tolist(), k_medoids(distances[rows][:, rows], 3, restarts=2, seed=5), strict=True)) for rows in (first, second)
        ]
        both = sorted(told[0].keys() & told[1].keys())
        agreement.append(adjusted_rand_score(*([labels[student] for student in both] for labels in told)))
    found = partition_quality(panel, (3,), "euclid", pairs=3, restarts=2, seed=5)[3]
    assert math.isclose(found["stability"], np.mean(agreement), rel_tol=1e-9)
    assert found["stability"] < 1


def test_bad_numbers_are_refused():
    panel = apart(6)
    for call, message in (
        (lambda: partition_quality(panel, (1,), "euclid"), r"^ks: expected numbers in \[2, 6\], got 1$"),
        (lambda: partition_quality(panel, (2,), "euclid", pairs=0), r"^pairs: expected at least 1, got 0$"),
        (lambda: partition_quality(panel, (2,), "cosine"), r"^metric: expected euclid, dtw, k-means or mixture, got 'cosine'$"),
        (lambda: cluster(panel, 2, "cosine"), r"^metric: expected euclid, dtw, k-means or mixture, got 'cosine'$"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
