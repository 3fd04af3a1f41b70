"""The entropy toolkit: against slow loops, limits, and scipy."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import entropy as shannon

from preceptor.metrics.entropy import (
    composite_index,
    eigenvalue_entropy,
    heading_entropy,
    histogram_entropy,
    knn_distances,
    knn_variation,
    normalised_entropy,
    similarity_entropy,
    unit,
)


def directions(number, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((number, 3)))


def test_normalised_entropy_is_that_of_scipy_and_its_ends_are_0_and_1():
    mass = np.random.default_rng(0).random((3, 5))
    assert normalised_entropy(mass) == pytest.approx(shannon(mass.ravel()) / math.log(15), rel=1e-12)
    assert normalised_entropy(np.ones(7)) == pytest.approx(1, abs=1e-15)
    assert str(normalised_entropy([0, 4, 0])) == "0.0"  # not -0.0
    assert normalised_entropy([3.0]) == 0.0
    assert math.isnan(normalised_entropy([0, 0]))
    assert normalised_entropy(mass * 1e-300) == pytest.approx(normalised_entropy(mass))


def test_the_correction_adds_half_the_bins_less_one_over_the_samples():
    counts = [4, 3, 0, 1]
    plain = -sum(c / 8 * math.log(c / 8) for c in counts if c)
    assert normalised_entropy(counts, num_samples=8) == pytest.approx((plain + 2 / 16) / math.log(4), rel=1e-12)
    assert normalised_entropy([1, 1, 1], num_samples=3) == 1.0  # cut


def test_the_correction_takes_most_of_the_bias_away():
    rng = np.random.default_rng(0)
    samples = rng.random((200, 60))
    errors = [
        1 - np.mean([histogram_entropy(row, bins=20, range=(0, 1), correction=correction) for row in samples])
        for correction in (False, True)
    ]
    assert abs(errors[1]) < 0.25 * errors[0]


def test_histogram_entropy_against_a_loop():
    samples, weights = [0.0, 0.1, 0.25, 0.26, 0.9, 1.0, 1.2, -0.1], [1, 2, 1, 0.5, 1, 3, 9, 9]
    mass = [0.0] * 4
    for sample, weight in zip(samples, weights, strict=True):
        if 0 <= sample <= 1:  # what is outside is dropped, the upper end is in the last bin
            mass[min(int(sample * 4), 3)] += weight
    expected = -sum(m / 8.5 * math.log(m / 8.5) for m in mass if m) / math.log(4)
    assert histogram_entropy(samples, bins=4, range=(0, 1), weights=weights) == pytest.approx(expected, rel=1e-12)
    size = 8.5**2 / sum(w * w for w in weights[:6])
    corrected = expected + (sum(m > 0 for m in mass) - 1) / (2 * size) / math.log(4)
    assert histogram_entropy(samples, bins=4, range=(0, 1), weights=weights, correction=True) == pytest.approx(corrected, rel=1e-12)
    assert histogram_entropy(samples, bins=4, range=(0, 1), correction=True) == pytest.approx(
        histogram_entropy(samples, bins=4, range=(0, 1), weights=np.ones(8), correction=True)
    )
    assert math.isnan(histogram_entropy([5.0], bins=3, range=(0, 1), correction=True))


def test_headings_that_agree_have_entropy_0_on_every_sphere():
    for weighting in ("sine", "equal-area"):
        assert heading_entropy(np.tile([[0.3, -0.5, 0.2]], (9, 1)), weighting=weighting) == 0.0
        assert heading_entropy(np.tile([[0, 0, -2.0]], (9, 1)), weighting=weighting) == 0.0


def test_sine_weights_stay_below_1_for_uniform_headings_and_equal_areas_do_not():
    headings = directions(400_000)
    assert heading_entropy(headings) == pytest.approx(0.946, abs=1e-3)
    assert heading_entropy(headings, weighting="equal-area") == pytest.approx(1, abs=1e-3)
    few = np.mean([heading_entropy(directions(150, seed)) for seed in range(20)])
    assert few == pytest.approx(0.80, abs=0.01)
    for number, best in ((150, 0.85), (1500, 0.998)):  # with fewer headings than bins the correction helps, and is too small
        drawn = [directions(number, seed) for seed in range(20)]
        plain, corrected = (np.mean([heading_entropy(d, weighting="equal-area", correction=c) for d in drawn]) for c in (False, True))
        assert plain < best < corrected <= 1


def test_heading_entropy_against_a_loop():
    headings = directions(40)
    for weighting in ("sine", "equal-area"):
        mass = np.zeros((3, 4))
        for x, y, z in headings:
            row = math.acos(z) / math.pi * 3 if weighting == "sine" else (z + 1) / 2 * 3
            column = (math.atan2(y, x) + math.pi) / (2 * math.pi) * 4
            mass[int(row), int(column)] += math.sin((int(row) + 0.5) * math.pi / 3) if weighting == "sine" else 1
        expected = shannon(mass.ravel()) / math.log(12)
        assert heading_entropy(5 * headings, bins=(3, 4), weighting=weighting) == pytest.approx(expected, rel=1e-12)


def test_eigenvalue_entropy_is_1_for_a_round_cloud_0_for_a_line_and_blind_to_rotation():
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
    assert eigenvalue_entropy(corners) == pytest.approx(1, abs=1e-12)
    assert eigenvalue_entropy(np.arange(5)[:, None] * np.array([[1.0, 2, 3]])) < 1e-8
    points = np.random.default_rng(0).standard_normal((30, 3)) * [1, 2, 5]
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    assert eigenvalue_entropy(points @ rotation + 7) == pytest.approx(eigenvalue_entropy(points), rel=1e-10)
    spectrum = np.linalg.eigvalsh(np.cov(points.T))
    assert 3 ** eigenvalue_entropy(points) == pytest.approx(math.exp(shannon(spectrum)), rel=1e-10)  # the effective rank
    flat = np.random.default_rng(0).standard_normal((500, 2)) @ np.array([[1.0, 0, 0], [0, 1, 0]])
    assert eigenvalue_entropy(flat) == pytest.approx(math.log(2) / math.log(3), abs=0.01)


def test_similarity_entropy_counts_every_pair_once_in_any_blocks(monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((23, 5))
    found = similarity_entropy(vectors)
    samples = []
    for i in range(23):
        for j in range(i):
            cosine = vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
            samples.append((1 + cosine) / 2)
    assert found == pytest.approx(histogram_entropy(samples, bins=20, range=(0, 1)), rel=1e-12)
    for block in (1, 24, 100, 161):
        monkeypatch.setattr("preceptor.metrics.entropy._BLOCK", block)
        assert similarity_entropy(vectors) == found
    for row in unit(np.random.default_rng(0).standard_normal((60, 300))):  # a cosine that rounding puts above 1 counts
        assert similarity_entropy(np.tile(row, (3, 1))) == 0.0
    assert math.isnan(similarity_entropy(vectors[:1]))


def test_drawn_pairs_come_near_all_pairs():
    vectors = directions(300) + np.array([0.7, 0, 0])
    drawn = [similarity_entropy(vectors, max_pairs=20_000, seed=seed) for seed in range(3)]
    assert drawn == pytest.approx([similarity_entropy(vectors)] * 3, abs=5e-3)
    assert drawn[0] == similarity_entropy(vectors, max_pairs=20_000)
    assert drawn[0] != drawn[1]


def test_knn_distances_against_all_distances():
    points = np.random.default_rng(0).uniform(0, 4, (40, 3))
    apart = points[:, None] - points
    for box, distance in ((None, cdist(points, points)), (4.0, np.linalg.norm(apart - 4 * np.round(apart / 4), axis=-1))):
        assert knn_distances(points, 6, box=box) == pytest.approx(np.sort(distance, axis=1)[:, 1:7], abs=1e-12)
    same = np.zeros((4, 3))
    assert knn_distances(same, 2).tolist() == [[0, 0]] * 4
    assert knn_variation([[1.0, 1, 1], [1, 2, 3]]) == pytest.approx([0, math.sqrt(2 / 3) / 2])


def test_composite_index():
    assert composite_index({"a": 1.0, "b": 0.5, "c": 9.0}, {"a": 0.25, "b": 0.75}) == 0.625


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalised_entropy([]), "mass: expected at least one bin, all finite and >= 0, got []"),
        (lambda: normalised_entropy([1, -1]), "mass: expected at least one bin, all finite and >= 0, got [1.0, -1.0]"),
        (lambda: normalised_entropy([1], num_samples=0), "num_samples: expected a number above 0, got 0"),
        (lambda: histogram_entropy([1.0, math.nan], bins=2, range=(0, 1)), "samples: expected finite numbers, got 1 of 2 that are not"),
        (lambda: histogram_entropy([1.0], bins=0, range=(0, 1)), "bins: expected at least 1, got 0"),
        (lambda: histogram_entropy([1.0], bins=2, range=(1, 1)), "range: expected two ends, the lower first, got (1, 1)"),
        (lambda: histogram_entropy([1.0], bins=2, range=(0, 1), weights=[1, 2]), "weights: expected shape (1,) like samples, got (2,)"),
        (lambda: heading_entropy([[1.0, 2]]), "headings: expected shape (N, 3), got (1, 2)"),
        (lambda: heading_entropy([[1.0, 2, 3]], weighting="no"), "weighting: expected 'sine' or 'equal-area', got 'no'"),
        (lambda: heading_entropy([[1.0, 2, 3]], bins=(0, 3)), "bins: expected two numbers above 0, got (0, 3)"),
        (lambda: eigenvalue_entropy([[1.0, 2]]), "points: expected shape (N, D) with N >= 2, got (1, 2)"),
        (lambda: eigenvalue_entropy([[1.0], [2]], floor=0), "floor: expected a number above 0, got 0"),
        (lambda: similarity_entropy([1.0]), "vectors: expected shape (N, D), got (1,)"),
        (lambda: similarity_entropy([[1.0]], max_pairs=0), "bins, max_pairs: expected numbers above 0, got 20, 0"),
        (lambda: knn_distances([1.0], 1), "points: expected shape (N, D), got (1,)"),
        (lambda: knn_distances([[1.0], [2]], 2), "k: expected 1 to 1 for 2 points, got 2"),
        (lambda: knn_distances([[1.0], [2]], 1, box=2), "points: expected all in [0, 2), got 1 to 2"),
        (lambda: composite_index({"a": 1.0}, {"a": 0.5, "b": 0.5}), "values: expected a value for each weight, got none for b"),
        (lambda: composite_index({"a": 1.0}, {"a": 0.5}), "weights: expected numbers >= 0 with sum 1, got {'a': 0.5}"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value) == message
